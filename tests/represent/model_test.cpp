#include "represent/model.h"

#include <gtest/gtest.h>

#include <cmath>

#include "represent/dense.h"
#include "represent/grid.h"
#include "represent/tiny_model.h"

namespace pith::test {
namespace {

std::string message(const Status& status) { return status.ok() ? "" : status.error().message; }

TEST(Model, CheckNamesWhatIsWrong) {
  for (const char* architecture : kArchitectures) {
    SCOPED_TRACE(architecture);
    const Model good = tiny_model(architecture, DType::f16, 1);
    EXPECT_EQ(message(check_model(good)), "");
    EXPECT_EQ(message(check_finite(good)), "");

    Model missing = good;
    missing.tensors.erase(missing.tensors.begin() + 3);
    EXPECT_NE(message(check_model(missing)).find("'" + good.tensors[3].name + "'"), std::string::npos);

    Model twice = good;
    twice.tensors.push_back(good.tensors[0]);
    EXPECT_NE(message(check_model(twice)).find("twice"), std::string::npos);

    Model extra = good;
    extra.tensors.push_back({"model.extra", {1}, Dense::from(DType::f32, 1, 1, std::vector<float>{1}).value()});
    EXPECT_NE(message(check_model(extra)).find("'model.extra'"), std::string::npos);

    Model shape = good;
    shape.tensors[1].shape.push_back(1);
    EXPECT_NE(message(check_model(shape)).find("'" + good.tensors[1].name + "' has shape"), std::string::npos);

    Model node = good;
    node.tensors[1].node = good.tensors[0].node;
    EXPECT_NE(message(check_model(node)).find("stored as"), std::string::npos);
  }
}

TEST(Model, NotFiniteIsFoundWithItsPlace) {
  for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
    Model model = tiny_model("llama", DType::f16, 1);
    ModelTensor& tensor = model.tensors[4];
    auto values = decode_all(*tensor.node);
    values[static_cast<size_t>(tensor.node->cols() * 5 + 7)] = bad;
    tensor.node = Dense::from(DType::f16, tensor.node->rows(), tensor.node->cols(), values).value();
    const std::string text = message(check_finite(model));
    EXPECT_NE(text.find(tensor.name), std::string::npos) << text;
    EXPECT_NE(text.find("row 5, column 7"), std::string::npos) << text;
  }
}

TEST(Model, HashSeesEveryKindOfChange) {
  const Model model = tiny_model("llama", DType::f16, 1);
  const std::string hash = model.content_hash();
  EXPECT_EQ(hash, tiny_model("llama", DType::f16, 1).content_hash());
  EXPECT_NE(hash, tiny_model("llama", DType::f16, 2).content_hash());
  Model changed = model;
  changed.config.rope_theta = 20000;
  EXPECT_NE(hash, changed.content_hash());
  changed = model;
  std::swap(changed.tensors[2].node, changed.tensors[3].node);
  EXPECT_NE(hash, changed.content_hash());
}

TEST(Model, SharedTablesCountOnce) {
  Model model = tiny_model("llama", DType::f16, 1);
  uint64_t before = model.bits().total(), own = 0;
  for (ModelTensor& tensor : model.tensors) {
    const int64_t rows = tensor.node->rows(), cols = tensor.node->cols();
    const std::vector<int16_t> codes(static_cast<size_t>(rows * cols), 3);
    const std::vector<float> scale(static_cast<size_t>(rows), 1.0f);
    tensor.node = Grid::make(PackedCodes::pack(rows, cols, 4, 0, codes).value(), normal_float_levels(4),
                             AffineField::from(rows, cols, cols, DType::f16, scale).value())
                      .value();
    own += tensor.node->bits().total();
  }
  EXPECT_LT(own, before / 3);
  EXPECT_EQ(model.bits().total(), own + 16 * 32) << "one table of 16 fp32 levels for the whole model";
}

}  // namespace
}  // namespace pith::test
