// What stands between fitted units and the file: entropy coding in two passes over nodes that are not held, and the
// loss of a unit.
#include "engine/assemble.h"

#include <gtest/gtest.h>

#include <atomic>

#include "engine/fit_samples.h"
#include "engine/unit.h"
#include "represent/dense.h"
#include "represent/tiny_model.h"
#include "tensor/parallel.h"

namespace pith {
namespace {

using test::correlated;
using test::decoded;
using test::fit;
using test::weights_like;

Model sample(std::map<std::string, NodePtr>& fitted) {
  Model model;
  int64_t rows = 40;
  for (const char* name : {"a", "b", "c"}) {
    rows += 30;
    const Tensor w = weights_like(rows, 64, static_cast<uint64_t>(rows));
    fitted[name] = fit("ec", "step=0.01", w, correlated(64, 5));
    model.tensors.push_back(
        {name, {rows, 64}, must(Dense::make(DType::f32, rows, 64, Bytes::own(decode_all(*fitted[name]))))});
  }
  return model;
}

TEST(Assemble, KeptElsewhereOrInMemoryTheSameBytes) {
  std::map<std::string, NodePtr> fitted;
  const Model model = sample(fitted);
  std::atomic<int> asked{0}, kept{0};
  const NodeSource source = [&](const std::string& name) {
    ++asked;
    return fitted.at(name);
  };
  const Model held = assemble(model, source);
  const Model elsewhere = assemble(model, source, [&](const std::string&, NodePtr node) {
    ++kept;
    return must(unpack_unit(Bytes::own(pack_unit({node, 0})), {})).node;
  });
  EXPECT_EQ(asked, 2 * 2 * 3);  // twice each, never kept in between
  EXPECT_EQ(kept, 3);
  EXPECT_EQ(held.content_hash(), elsewhere.content_hash());
  EXPECT_EQ(held.bits().total(), elsewhere.bits().total());
  for (const ModelTensor& t : elsewhere.tensors) EXPECT_EQ(decode_all(*t.node), decode_all(*fitted.at(t.name)));
  const OneThread one;
  EXPECT_EQ(assemble(model, source).content_hash(), held.content_hash());
}

TEST(Assemble, AFailingKeeperIsHeard) {
  std::map<std::string, NodePtr> fitted;
  const Model model = sample(fitted);
  const NodeKeeper full = [](const std::string&, NodePtr) -> NodePtr { throw Failure(user_error("no space left")); };
  EXPECT_THROW(assemble(
                   model, [&](const std::string& name) { return fitted.at(name); }, full),
               Failure);
}

TEST(Assemble, CountingForetellsTheSize) {
  std::map<std::string, NodePtr> fitted;
  const Model model = sample(fitted);
  CodeModelBuilder builder;
  for (const auto& [name, node] : fitted) EXPECT_TRUE(count_codes(*node, builder));
  const auto exact =
      static_cast<double>(assemble(model, [&](const std::string& name) { return fitted.at(name); }).bits().total());
  EXPECT_NEAR(builder.estimated_bits(), exact, 0.02 * exact);
  EXPECT_FALSE(count_codes(*model.tensors[0].node, builder));
}

TEST(PredictedLoss, IsTheQuadraticForm) {
  for (const int64_t rows : {3, 300})
    for (const int64_t cols : {7, 256, 600}) {  // within a panel, exactly one, several
      SCOPED_TRACE(testing::Message() << rows << " x " << cols);
      FitJob job;
      job.name = "w";
      job.weight = weights_like(rows, cols, 1);
      const NodePtr node = fit("rtn", "bits=3", job.weight, correlated(cols, 2));
      const Tensor e = (job.weight - decoded(*node)).to(at::kDouble);
      EXPECT_NEAR(predicted_loss(job, *node), 0.5 * e.square().sum().item<double>(), 1e-5 * predicted_loss(job, *node));
      Moments moments = correlated(cols, 2);
      for (const bool compact : {false, true}) {
        if (compact) moments.compact();
        job.inputs = &moments;
        job.row_fisher = at::rand({rows}, test::generator(3), at::kDouble);
        const double want = 0.5 * ((at::mm(e, moments.second()) * e).sum(1) * job.row_fisher).sum().item<double>();
        const double got = predicted_loss(job, *node);
        EXPECT_NEAR(got, want, 1e-5 * want);
        const OneThread one;
        EXPECT_EQ(predicted_loss(job, *node), got);
      }
    }
}

}  // namespace
}  // namespace pith
