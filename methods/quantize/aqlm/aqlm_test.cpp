#include <gtest/gtest.h>

#include "engine/fit_samples.h"
#include "represent/codebook.h"
#include "represent/combine.h"

namespace pith {
namespace {

using test::bits_a_weight;
using test::correlated;
using test::decoded;
using test::fit;
using test::output_error;
using test::weights_like;

TEST(Aqlm, BitsAreThoseOfTheFormula) {
  const Tensor w = weights_like(64, 256, 1);
  const Moments m = correlated(256, 2);
  for (const auto& [books, bits, group] : {std::tuple<int, int, int>{2, 6, 8}, {1, 8, 4}, {3, 4, 8}}) {
    const NodePtr node = fit(
        "aqlm",
        "rounds=1,books=" + std::to_string(books) + ",bits=" + std::to_string(bits) + ",group=" + std::to_string(group),
        w, m);
    EXPECT_DOUBLE_EQ(bits_a_weight(*node), static_cast<double>(books * bits) / group +
                                               books * (1 << bits) * group * 16.0 / (64 * 256) + 16.0 / 256);
  }
}

TEST(Aqlm, AsManyEntriesAsGroupsAreNearlyTheOriginal) {
  const Tensor w = weights_like(8, 64, 3);
  const Moments m = correlated(64, 4);
  const NodePtr node = fit("aqlm", "books=1,bits=16,group=8", w, m);
  const auto& book = static_cast<const Codebook&>(*static_cast<const Scaled&>(*node).child());
  EXPECT_EQ(book.entries(), 64);
  EXPECT_LT((decoded(*node) - w).abs().max().item<float>(), 2e-3 * w.abs().max().item<float>());  // fp16
}

TEST(Aqlm, EveryPartOfTheMethodPays) {
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    const Tensor w = weights_like(96, 256, seed);
    const Moments m = correlated(256, seed + 10);
    const auto error = [&](const std::string& more) {
      return output_error(w, *fit("aqlm", "books=2,bits=6,group=8" + more, w, m), m);
    };
    const double best = error("");
    EXPECT_LT(best, 0.8 * error(",rounds=0"));
    EXPECT_LT(best, 0.8 * error(",norm=weights"));
    EXPECT_LT(best, error(",steps=0"));
    EXPECT_LT(best, error(",rounds=1"));
  }
}

TEST(Aqlm, SumsOfTwoBooksBeatOneBookOfTheSameCodes) {
  const Tensor w = weights_like(128, 256, 5);
  const Moments m = correlated(256, 6);
  // 8 bits a group of 8 both times; two books have an eighth of the entries.
  EXPECT_GT(output_error(w, *fit("aqlm", "books=2,bits=4,group=8", w, m), m),
            output_error(w, *fit("aqlm", "books=1,bits=8,group=8", w, m), m))
      << "a sum of two entries of 16 can say no more than one entry of 256";
  EXPECT_LT(output_error(w, *fit("aqlm", "books=2,bits=8,group=8", w, m), m),
            output_error(w, *fit("aqlm", "books=1,bits=8,group=8", w, m), m));
}

}  // namespace
}  // namespace pith
