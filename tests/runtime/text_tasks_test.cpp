// Tasks over real text: of the length that was asked for, from a seed, and with one answer that can be found.
#include "runtime/text_tasks.h"

#include <gtest/gtest.h>

#include <set>

#include "runtime/builtin_text.h"
#include "runtime/model_file.h"
#include "runtime/tokenizer.h"

namespace pith::test {
namespace {

TEST(TextTasks, EveryTaskHasItsLengthAndOneAnswer) {
  const auto model = open_model(std::string(PITH_SOURCE_DIR) + "/testdata/lm-s");
  ASSERT_TRUE(model.ok()) << model.error().message;
  const auto tokenizer = Tokenizer::create(model->tokenizer);
  ASSERT_TRUE(tokenizer.ok());
  const auto document = tokenizer->encode(builtin_heldout_texts()[2].text, {false, false});
  ASSERT_TRUE(document.ok());
  for (const std::string& name : text_task_names()) {
    std::set<std::string> answers;
    for (const int64_t length : {300, 1000}) {
      double depth = -1;
      for (int64_t item = 0; item < 10; ++item) {
        const auto task = make_text_task(name, *tokenizer, *document, length, item, 10, 7);
        ASSERT_TRUE(task.ok()) << task.error().message;  // the generator asks the solver
        EXPECT_EQ(static_cast<int64_t>(task->text.size() + task->question.size()), length);
        EXPECT_EQ(tokenizer->decode(task->answer), " " + task->solution);
        EXPECT_GT(task->depth, depth - 0.1) << "depths ascend";
        depth = task->depth;
        answers.insert(task->solution);
        const auto again = make_text_task(name, *tokenizer, *document, length, item, 10, 7);
        EXPECT_EQ(again->text, task->text);
        const auto other = make_text_task(name, *tokenizer, *document, length, item, 10, 8);
        EXPECT_NE(other->solution, task->solution);
      }
      EXPECT_GT(depth, name == "passkey" ? 0.8 : 0.4);
    }
    EXPECT_GE(answers.size(), 19u);
    EXPECT_FALSE(make_text_task(name, *tokenizer, *document, 40, 0, 10, 7).ok());
    const auto beyond = make_text_task(name, *tokenizer, std::span(*document).first(100), 300, 0, 10, 7);
    ASSERT_FALSE(beyond.ok());
    EXPECT_EQ(beyond.error().kind, ErrorKind::user);
  }
  EXPECT_FALSE(make_text_task("passkeys", *tokenizer, *document, 300, 0, 10, 7).ok());
}

TEST(TextTasks, TheSolverNeedsTheFactAndOnlyOne) {
  const std::string fact = "Snow fell. The door code is 12345. Rain came.",
                    ask = "\n\nQuestion: What is the door code?";
  EXPECT_EQ(solve_text_task("passkey", fact + ask), "12345");
  EXPECT_EQ(solve_text_task("passkey", "Snow fell." + ask), "");
  EXPECT_EQ(solve_text_task("passkey", fact + " The door code is 54321." + ask), "");
  EXPECT_EQ(solve_text_task("passkey", fact), "");
  const std::string pairs = "The number of the amber kettle is 11111. The number of the olive kettle is 22222.";
  EXPECT_EQ(solve_text_task("niah", pairs + "\n\nQuestion: What is the number of the olive kettle?"), "22222");
  EXPECT_EQ(solve_text_task("niah", pairs + "\n\nQuestion: What is the number of the ivory kettle?"), "");
  const std::string chain = "The value of sigma is 777. The value of kappa is the value of sigma.";
  EXPECT_EQ(solve_text_task("vt", chain + "\n\nQuestion: What is the value of kappa?"), "777");
  EXPECT_EQ(solve_text_task("vt", "The value of kappa is the value of kappa.\n\nQuestion: What is the value of kappa?"),
            "");
}

}  // namespace
}  // namespace pith::test
