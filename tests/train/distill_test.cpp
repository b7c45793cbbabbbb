// Tuning by distillation: what a tuner sees of a representation is exactly what is stored; nothing moves without steps;
// the loss falls on tokens that were not learned from, within the bytes of before; a run that was stopped goes on.
#include "train/distill.h"

#include <gtest/gtest.h>

#include <cmath>

#include "engine/assemble.h"
#include "formats/ggml_blocks.h"
#include "maths/additive_code.h"
#include "maths/grid_fit.h"
#include "represent/blocks.h"
#include "represent/codes.h"
#include "represent/combine.h"
#include "represent/dense.h"
#include "represent/grid.h"
#include "represent/low_rank.h"
#include "runtime/model_file.h"
#include "tensor/device.h"
#include "train/lm_trainer.h"
#include "train/stop_after.h"
#include "train/tunable.h"

namespace pith {
namespace {

LmConfig tiny() {
  LmConfig c;
  c.hidden = 32, c.layers = 2, c.heads = 4, c.kv_heads = 2, c.head_dim = 8, c.intermediate = 64, c.vocab = 48;
  c.context = 32;
  c.tied_embeddings = true;
  return c;
}

std::span<const float> values_of(const Tensor& t) {
  return {t.const_data_ptr<float>(), static_cast<size_t>(t.numel())};
}

/// Codes of a matrix for steps that differ by row and column.
NodePtr ec_grid(const Tensor& w, float base) {
  std::vector<uint8_t> rows, cols;
  for (int64_t r = 0; r < w.size(0); ++r) rows.push_back(static_cast<uint8_t>(2 * (r % 5)));
  for (int64_t c = 0; c < w.size(1); ++c) cols.push_back(static_cast<uint8_t>(2 * (c % 7)));
  const FieldPtr field = must(RowColField::make(base, rows, cols, 2));
  std::vector<int16_t> codes;
  std::vector<float> step(static_cast<size_t>(w.size(1)));
  for (int64_t r = 0; r < w.size(0); ++r) {
    field->row(r, step.data());
    for (int64_t c = 0; c < w.size(1); ++c)
      codes.push_back(static_cast<int16_t>(
          std::lround(w.const_data_ptr<float>()[r * w.size(1) + c] / step[static_cast<size_t>(c)])));
  }
  return must(Grid::make(must(PackedCodes::pack(w.size(0), w.size(1), 16, -32768, codes)), {}, field));
}

NodePtr ggml(GgmlType type, const Tensor& w) {
  return must(Blocks::quantize(type, w.size(0), w.size(1), values_of(w)));
}

Tensor noise(at::IntArrayRef shape, uint64_t seed) {
  auto generator = at::detail::createCPUGenerator(seed);
  return at::randn(shape, generator, at::kFloat);
}

NodePtr fixed_grid(const Tensor& w, GridSpec spec) {
  GridBuilder grid(w.size(0), w.size(1), spec, w.abs().max().item<float>());
  grid.round_all(w.const_data_ptr<float>());
  return grid.build();
}

/// Two books of 16 entries of `length` values, with or without scales of the rows and a basis of half the width.
NodePtr books(const Tensor& w, int64_t length, bool scaled, bool basis = false) {
  const int64_t groups = (w.size(1) + length - 1) / length;
  AdditiveTarget target{at::zeros({w.size(0), groups * length}), at::eye(groups * length)};
  target.weight.narrow(1, 0, w.size(1)).copy_(w);
  AdditiveCode code = residual_kmeans(target, length, 2, 16, 10, 1, "test");
  CodebookParts parts{.cols = w.size(1), .length = length, .books = code.books};
  parts.codes = at::from_blob(code.codes.data(), {w.size(0), groups * 2}, at::kInt);
  if (scaled) parts.scales = code.scales;
  if (basis) parts.books = code.books.narrow(2, 0, length / 2), parts.basis = noise({length / 2, length}, 5);
  return codebook_node(parts);
}

NodePtr path_of(int64_t rows, int64_t cols, int64_t rank, double size) {
  const Tensor u = noise({rows, rank}, 3) * size, v = noise({rank, cols}, 4) * size;
  return must(LowRank::make(must(Dense::from(DType::f16, rows, rank, values_of(u))),
                            must(Dense::from(DType::f16, rank, cols, values_of(v)))));
}

Model model_of(const LmConfig& config, const TensorMap& tensors, const std::function<NodePtr(const Tensor&)>& matrix) {
  Model model;
  model.config = config;
  for (const TensorSpec& spec : expected_tensors(config)) {
    const Tensor& t = tensors.at(spec.name);
    const NodePtr node = spec.shape.size() == 2 ? matrix(t) : must(Dense::from(DType::f16, 1, t.numel(), values_of(t)));
    model.tensors.push_back({spec.name, spec.shape, node});
  }
  return model;
}

/// A random network, larger weights than at the start of a training so that rounding them hurts, and its coarse copy.
struct Pair {
  std::unique_ptr<LmWeights> teacher;
  Model student;
  Tensor train, validation;

  explicit Pair(const std::function<NodePtr(const Tensor&)>& matrix) {
    TensorMap tensors = initial_weights(tiny(), 3);
    for (auto& [name, t] : tensors)
      if (t.dim() == 2) t.mul_(8);
    teacher = weights_of(tiny(), tensors);
    student = model_of(tiny(), tensors, matrix);
    auto generator = at::detail::createCPUGenerator(7);
    const Tensor tokens = at::randint(0, 48, {72, 24}, generator, at::kLong);
    train = tokens.narrow(0, 0, 64).contiguous(), validation = tokens.narrow(0, 64, 8).contiguous();
  }
};

NodePtr coarse(const Tensor& w) { return ec_grid(w, 0.12f); }

DistillOptions quick(int64_t steps) {
  DistillOptions o;
  o.steps = steps, o.batch = 16, o.looks = 4, o.rate = 0.03;
  return o;
}

std::vector<float> flat(const NodeMap& nodes) {
  std::vector<float> all;
  for (const auto& [name, node] : nodes) {
    const std::vector<float> values = decode_all(*node);
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

TEST(Tunable, SeesTheValuesThatTheNodeStoresAndGivesThemBack) {
  const Tensor w = noise({6, 512}, 1);
  std::vector<NodePtr> nodes{ec_grid(w, 0.05f)};
  for (const GgmlType type :
       {GgmlType::q4_0, GgmlType::q4_1, GgmlType::q5_0, GgmlType::q5_1, GgmlType::q8_0, GgmlType::iq4_nl,
        GgmlType::q2_k, GgmlType::q3_k, GgmlType::q4_k, GgmlType::q5_k, GgmlType::q6_k})
    nodes.push_back(ggml(type, w));
  for (const GridSpec& spec :
       {GridSpec{.bits = 3, .group = 48}, GridSpec{.shape = GridShape::sym, .bits = 2, .group = 0},
        GridSpec{.shape = GridShape::nf, .bits = 3, .group = 64},
        GridSpec{.bits = 3, .group = 16, .stat_bits = 4, .stat_group = 4}})
    nodes.push_back(fixed_grid(w, spec));
  nodes.push_back(must(Sum::make({fixed_grid(w, {.bits = 3, .group = 48}), ec_grid(w, 0.5f)})));
  for (const int64_t length : {8, 24}) nodes.push_back(books(w, length, true));
  nodes.push_back(books(w, 8, false)), nodes.push_back(books(w, 8, true, true));
  for (const NodePtr& node : nodes) {
    Model model;
    model.tensors.push_back({"w", {6, 512}, node});
    const auto m = tunable(*node, CodePrices(model), at::kCPU);
    ASSERT_NE(m, nullptr) << node->describe();
    const std::vector<float> stored = decode_all(*node);
    const Tensor seen = m->values().detach().contiguous();
    EXPECT_TRUE(std::ranges::equal(values_of(seen), stored)) << node->describe();
    EXPECT_EQ(decode_all(*m->node()), stored) << node->describe();
    // Values that are there already are their own projection, whatever a bit costs.
    m->project(seen, 0.06);
    EXPECT_EQ(decode_all(*m->node()), stored) << node->describe();
    // Values far outside stay within what the type can hold.
    m->project(seen * 1e3, 0.06);
    for (const float v : decode_all(*m->node())) ASSERT_TRUE(std::isfinite(v)) << node->describe();
    // The distance to a neighbour is what unit() says.
    // (IQ4's and NF's levels are not evenly spaced; sums of entries may be near to one another.)
    if (node->describe() == "IQ4_NL" || node->describe().find("levels") != std::string::npos || m->group() > 1)
      continue;
    m->project(seen + 0.2 * m->unit(), 0);
    EXPECT_EQ(decode_all(*m->node()), stored) << node->describe();
  }
}

TEST(Tunable, ADearBitMakesCodesSmaller) {
  const NodePtr node = ec_grid(noise({64, 96}, 2), 0.3f);
  Model model;
  model.tensors.push_back({"w", {64, 96}, node});
  const auto m = tunable(*node, CodePrices(model), at::kCPU);
  const Tensor target = m->values() + m->unit() * (at::rand({64, 96}, at::detail::createCPUGenerator(1)) - 0.5);
  m->project(target, 0);
  const double free = m->bits();
  m->project(target, 0.06);
  const double priced = m->bits();
  m->project(target, 0.3);
  EXPECT_LT(priced, free);
  EXPECT_LT(m->bits(), priced);
}

TEST(Tunable, CodesOfCodebooksMoveTowardsWhatIsAskedForWhereItIsAskedFor) {
  const Tensor w = noise({20, 64}, 6);
  const NodePtr node = books(w, 8, true);
  const auto m = tunable(*node, CodePrices(Model()), at::kCPU);
  const Tensor before = m->values().detach().clone();
  Tensor target = before.clone();
  target.narrow(0, 4, 3).copy_(noise({3, 64}, 7));
  m->project(target, 0);
  const Tensor after = m->values().detach();
  EXPECT_TRUE(after.narrow(0, 0, 4).equal(before.narrow(0, 0, 4)));
  EXPECT_TRUE(after.narrow(0, 7, 13).equal(before.narrow(0, 7, 13)));
  const auto off = [&](const Tensor& x) { return (x - target).narrow(0, 4, 3).square().sum().item<double>(); };
  EXPECT_LT(off(after), 0.6 * off(before));
}

TEST(Tunable, LowRankPartsMoveBesideAMatrixThatStays) {
  const Tensor w = noise({12, 64}, 1);
  // A dense matrix is nothing to tune: it stays, the path beside it moves.
  const NodePtr dense = must(Dense::from(DType::f16, 12, 64, values_of(w)));
  const auto m = tunable(*must(Sum::make({dense, path_of(12, 64, 4, 0.3)})), CodePrices(Model()), at::kCPU);
  ASSERT_NE(m, nullptr);
  EXPECT_FALSE(m->codes().defined());
  ASSERT_EQ(m->continuous().size(), 2u);
  {
    const at::NoGradGuard no_grad;
    m->continuous()[0].value.mul_(-2);
  }
  const Tensor values = m->values().detach().contiguous();
  const std::vector<float> stored = decode_all(*m->node());
  for (size_t i = 0; i < stored.size(); ++i) ASSERT_NEAR(stored[i], values_of(values)[i], 1e-5);
  EXPECT_EQ(decode_all(*m->node()->children()[0]), decode_all(*dense));
}

TEST(Tunable, TreesWithoutMovableCodesAreLeftAlone) {
  const Tensor w = noise({4, 8}, 1);
  const NodePtr dense = must(Dense::from(DType::f16, 4, 8, values_of(w)));
  EXPECT_EQ(tunable(*dense, CodePrices(Model()), at::kCPU), nullptr);
}

TEST(Distill, NothingMovesInNoSteps) {
  const Pair p(coarse);
  const Distilled d = distill(*p.teacher, p.student, p.train, p.validation, quick(0));
  EXPECT_TRUE(d.nodes.empty());
  EXPECT_GT(d.before, 0);
  EXPECT_EQ(d.before, d.after);
}

TEST(Distill, LossFallsOnTokensNotLearnedFromWithinTheBytes) {
  const Pair p(coarse);
  const auto bytes = [&](const NodeMap& nodes) { return assemble(p.student, source_of(nodes)).bits().total(); };
  DistillOptions o = quick(60);
  o.size = bytes, o.budget = bytes({});
  const Distilled d = distill(*p.teacher, p.student, p.train, p.validation, o);
  EXPECT_LT(d.after, 0.8 * d.before);
  EXPECT_LE(bytes(d.nodes), o.budget);
  // Steps did not change, only codes: every value is still a whole number of its step.
  for (const ModelTensor& t : p.student.tensors) {
    if (t.shape.size() == 1) continue;
    const auto& was = static_cast<const Grid&>(*t.node);
    const auto& is = static_cast<const Grid&>(*d.nodes.at(t.name));
    EXPECT_EQ(is.scale(), was.scale());
  }
  // The result is what was judged.
  const auto tuned = with_nodes(p.student, d.nodes);
  const Distilled again = distill(*p.teacher, tuned, p.train, p.validation, quick(0));
  EXPECT_NEAR(again.before, d.after, 1e-6);
}

TEST(Distill, GgmlBlocksAreTunedInTheirOwnType) {
  const Pair p([](const Tensor& w) { return ggml(GgmlType::q4_0, w); });
  const Distilled d = distill(*p.teacher, p.student, p.train, p.validation, quick(60));
  EXPECT_LT(d.after, 0.9 * d.before);
  for (const ModelTensor& t : p.student.tensors)
    EXPECT_EQ(d.nodes.at(t.name)->describe(), t.shape.size() == 2 ? "Q4_0" : "fp16");
}

TEST(Distill, CodebooksAreTunedAndTheirCodesPay) {
  const Pair p([](const Tensor& w) { return books(w, 4, true); });
  const auto bytes = [&](const NodeMap& nodes) { return assemble(p.student, source_of(nodes)).bits().total(); };
  DistillOptions o = quick(30);
  o.size = bytes, o.budget = bytes({});
  const Distilled codes = distill(*p.teacher, p.student, p.train, p.validation, o);
  o.rate = 0;
  const Distilled fixed = distill(*p.teacher, p.student, p.train, p.validation, o);
  EXPECT_LT(fixed.after, fixed.before);
  EXPECT_LT(codes.after, fixed.after);
  const NodePtr& node = codes.nodes.at("model.layers.0.mlp.up_proj.weight");
  EXPECT_EQ(node->describe(), p.student.find("model.layers.0.mlp.up_proj.weight")->node->describe());
  EXPECT_LE(bytes(codes.nodes), o.budget);
}

TEST(Distill, AShareBoundsTheCodesThatChangeInAStep) {
  const Pair p([](const Tensor& w) { return books(w, 4, true); });
  DistillOptions o = quick(4);
  o.rate = 0.5, o.share = 0.004, o.vector_rate = 0;  // at most one to three groups of a matrix in a step
  const auto changed = [&](const Distilled& d) {
    int64_t groups = 0, all = 0;
    for (const ModelTensor& t : p.student.tensors) {
      if (t.shape.size() == 1) continue;
      const std::vector<float> was = decode_all(*t.node), is = decode_all(*d.nodes.at(t.name));
      for (size_t i = 0; i < was.size(); i += 4, ++all)
        groups += !std::equal(was.begin() + static_cast<int64_t>(i), was.begin() + static_cast<int64_t>(i) + 4,
                              is.begin() + static_cast<int64_t>(i));
    }
    return static_cast<double>(groups) / static_cast<double>(all);
  };
  const Distilled few = distill(*p.teacher, p.student, p.train, p.validation, o);
  ASSERT_FALSE(few.nodes.empty());
  EXPECT_GT(changed(few), 0);
  EXPECT_LT(changed(few), 0.03);
  o.share = 1;
  const Distilled all = distill(*p.teacher, p.student, p.train, p.validation, o);
  ASSERT_FALSE(all.nodes.empty());
  EXPECT_GT(changed(all), 0.05);
}

TEST(Distill, WithCodesKeptOnlyTheLowRankPartsMove) {
  const Pair p([](const Tensor& w) {
    return must(Sum::make({fixed_grid(w, {.shape = GridShape::nf, .bits = 2, .group = 32, .stat_bits = 4}),
                           path_of(w.size(0), w.size(1), 2, 1e-3)}));
  });
  DistillOptions o = quick(40);
  o.rate = 0, o.vector_rate = 1e-2;
  const Distilled d = distill(*p.teacher, p.student, p.train, p.validation, o);
  EXPECT_LT(d.after, 0.9 * d.before);
  for (const ModelTensor& t : p.student.tensors) {
    if (t.shape.size() == 1) continue;
    const auto& was = static_cast<const Sum&>(*t.node);
    const auto& is = static_cast<const Sum&>(*d.nodes.at(t.name));
    EXPECT_EQ(decode_all(*is.terms()[0]), decode_all(*was.terms()[0])) << t.name;
    EXPECT_NE(decode_all(*is.terms()[1]), decode_all(*was.terms()[1])) << t.name;
  }
}

class Resumed : public ::testing::TestWithParam<NodePtr (*)(const Tensor&)> {};

TEST_P(Resumed, GoesOnFromACheckpointToTheSameModelWithAnyNumberOfThreads) {
  const Pair p(GetParam());
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const Distilled whole = distill(*p.teacher, p.student, p.train, p.validation, quick(20));
  at::set_num_threads(3);
  DistillOptions o = quick(20);
  o.save = [&](std::span<const std::byte> bytes) {
    o.saved = Bytes::own(std::vector<std::byte>(bytes.begin(), bytes.end()));
  };
  for (const uint64_t stop : {7, 13}) {
    const DistillOptions now = o;
    test::StopAfter progress(stop);
    EXPECT_THROW(distill(*p.teacher, p.student, p.train, p.validation, now, progress), Failure);
  }
  const Distilled parts = distill(*p.teacher, p.student, p.train, p.validation, DistillOptions(o));
  at::set_num_threads(threads);
  EXPECT_EQ(whole.after, parts.after);
  EXPECT_EQ(whole.best_step, parts.best_step);
  EXPECT_EQ(flat(whole.nodes), flat(parts.nodes));

  o.seed = 9;  // another run
  EXPECT_THROW(distill(*p.teacher, p.student, p.train, p.validation, DistillOptions(o)), Failure);
}

INSTANTIATE_TEST_SUITE_P(
    Distill, Resumed,
    ::testing::Values(
        +coarse, +[](const Tensor& w) { return books(w, 4, true); },
        +[](const Tensor& w) {
          return must(Sum::make({fixed_grid(w, {.bits = 2, .group = 16}), path_of(w.size(0), w.size(1), 2, 0.05)}));
        }));

TEST(Distill, StopsAndKeepsTheBestWhenItDiverges) {
  const Pair p(coarse);
  DistillOptions o = quick(60);
  o.vector_rate = 100;
  const Distilled d = distill(*p.teacher, p.student, p.train, p.validation, o);
  EXPECT_TRUE(d.diverged);
  EXPECT_LT(d.steps, 60);
  EXPECT_LE(d.after, d.before);
}

TEST(Device, ErrorsSayWhatIsMissing) {
  EXPECT_EQ(open_device("cpu"), at::Device(at::kCPU));
  try {
    open_device("gpu");
    FAIL();
  } catch (const Failure& failure) {
    EXPECT_NE(failure.error().message.find("'gpu'"), std::string::npos);
  }
}

}  // namespace
}  // namespace pith
