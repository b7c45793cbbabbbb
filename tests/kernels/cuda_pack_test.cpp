// The layout of the CUDA kernels, read back on the CPU by the same rules as the kernels read it: this needs no GPU.
#include <gtest/gtest.h>

#include <cstring>

#include "kernels/cuda/layout.h"
#include "kernels/cuda/nodes.h"
#include "kernels/cuda/pack.h"

namespace pith::cuda {
namespace {

size_t at(int64_t i) { return static_cast<size_t>(i); }

float half_at(const std::byte* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return half_to_float(h);
}

// The matrix that a kernel multiplies, column by column as tensor cores see it.
template <int kBits>
std::vector<float> unpack(const PackedGrid& packed) {
  using U = Unit<kBits>;
  const SpanShape shape = span_shape(kBits, packed.slot, packed.two_level);
  std::vector<float> out(at(packed.rows * packed.cols), NAN);
  for (int64_t strip = 0; strip * kStripRows < packed.rows; ++strip)
    for (int64_t s = 0; s < packed.spans(); ++s) {
      const std::byte* span = packed.strips.data() + (strip * packed.spans() + s) * shape.bytes();
      for (int i = 0; i < shape.parts * shape.ops(); ++i)
        for (int lane = 0; lane < 32; ++lane) {
          const int part = i / shape.ops(), op = i % shape.ops();
          const std::byte* codes = span + shape.part_at(part) + shape.codes_at(part);
          const std::byte* stats = span + shape.part_at(part) + shape.stats_at(part);
          uint32_t unit[U::kWords];
          for (int w = 0; w < U::kWords; ++w)
            std::memcpy(&unit[w], codes + 4 * shape.word_at(op / U::kOps * U::kWords + w, lane), 4);
          for (int e = 0; e < 4; ++e) {
            const uint32_t pair = operand<kBits>(unit, U::place(op % U::kOps, e));
            for (int half = 0; half < 2; ++half) {
              const int slot = op / shape.steps(), strip_row = lane / 4 + 8 * (e & 1);
              const int64_t row = strip * kStripRows + strip_row;
              const int64_t col = s * shape.cols() + slot * shape.slot() + part * shape.part +
                                  step_column(shape.steps(), op % shape.steps(), lane % 4) + 2 * (e >> 1) + half;
              if (row >= packed.rows || col >= packed.cols) continue;
              const float code = half_to_float(static_cast<uint16_t>(pair >> (16 * half))) * 0x1p24f /
                                 static_cast<float>(1 << (kBits * U::accumulators(op % U::kOps)));
              float scale, zero;
              // The lane that scales this row and slot, and which of its four numbers it is.
              const int owner = strip_row % 8 * 4 + slot / 2, v = strip_row / 8 * 2 + slot % 2;
              if (shape.two_level) {
                const auto byte = static_cast<unsigned>(stats[owner * 4 + v]);
                const std::byte* second = stats + 128 + slot * 8;
                scale = half_at(second) * (static_cast<float>(byte & 15) - half_at(second + 2));
                zero = half_at(second + 4) * (static_cast<float>(byte >> 4) - half_at(second + 6));
              } else {
                scale = half_at(stats + (owner * 4 + v) * 4), zero = half_at(stats + (owner * 4 + v) * 4 + 2);
              }
              out[at(row * packed.cols + col)] = scale * (code + packed.offset - zero);
            }
          }
        }
    }
  for (int64_t r = 0; r < packed.rows && !packed.row_start.empty(); ++r)
    for (uint32_t i = packed.row_start[at(r)]; i < packed.row_start[at(r) + 1]; ++i)
      out[at(r * packed.cols + (packed.corrections[i] & 0xffff))] +=
          half_to_float(static_cast<uint16_t>(packed.corrections[i] >> 16));
  if (packed.order.empty()) return out;
  std::vector<float> moved(out.size());
  for (int64_t r = 0; r < packed.rows; ++r)
    for (int64_t j = 0; j < packed.cols; ++j)
      moved[at(r * packed.cols + packed.order[at(j)])] = out[at(r * packed.cols + j)];
  return moved;
}

std::vector<float> unpack(const PackedCodebook& packed) {
  const int64_t chunk = packed.table ? kLutGroups : kGatherGroups, tiles = (packed.groups() + chunk - 1) / chunk;
  const auto code = [&](int64_t row, int64_t group, int book) -> uint32_t {
    uint32_t word;
    if (!packed.table) {
      const int64_t block = (row / kStripRows * packed.books + book) * tiles + group / chunk;
      const int64_t lane = row % 8 * 4 + group % 4;
      std::memcpy(&word, packed.codes.data() + block * 512 + lane * 16 + group % chunk / 4 * 4, 4);
      return word >> (16 * (row % kStripRows / 8)) & 0xffff;
    }
    const int64_t words = kLutRows * packed.books / 4, byte = row % kLutRows * packed.books + book;
    const int64_t tile = row / kLutRows * tiles + group / chunk;
    std::memcpy(
        &word, packed.codes.data() + ((tile * words / 4 + byte / 16) * 32 + group % chunk) * 16 + byte % 16 / 4 * 4, 4);
    return word >> (8 * (byte % 4)) & 255;
  };
  std::vector<float> out(at(packed.rows * packed.cols));
  for (int64_t r = 0; r < packed.rows; ++r)
    for (int64_t c = 0; c < packed.cols; ++c) {
      float sum = 0;
      for (int m = 0; m < packed.books; ++m)
        sum += half_to_float(packed.entry[at((int64_t{m} * packed.entries + code(r, c / 8, m)) * 8 + c % 8)]);
      out[at(r * packed.cols + c)] = packed.scale[at(r)] * sum;
    }
  return out;
}

void expect_same(const NodePtr& node) {
  auto packed = pack(*node);
  ASSERT_TRUE(packed.ok()) << packed.error().message;
  std::vector<float> found;
  if (const auto* grid = std::get_if<PackedGrid>(&*packed))
    found = grid->bits == 3 ? unpack<3>(*grid) : unpack<4>(*grid);
  else
    found = unpack(std::get<PackedCodebook>(*packed));
  const std::vector<float> expected = decode_all(*node);
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i)  // fp16 corrections
    ASSERT_NEAR(found[i], expected[i], 2.5e-4f) << node->describe() << " at " << i;
}

TEST(CudaPack, GridsOfAnyShape) {
  test::CudaNodes make(1);
  for (unsigned bits : {3u, 4u})
    for (int64_t group : {32, 64, 128})
      for (bool zeros : {false, true}) {
        expect_same(make.grid(16, 8 * group, bits, group, zeros));
        expect_same(make.grid(37, 8 * group + 3 * group / 2 + 1, bits, group, zeros));
        expect_same(make.grid(1, 5, bits, 5, zeros));  // one scale a row, narrower than any group
      }
  expect_same(make.grid(17, 600, 3, 256, true));
}

TEST(CudaPack, SpqrOfAnyShape) {
  test::CudaNodes make(2);
  for (unsigned bits : {3u, 4u}) {
    expect_same(make.spqr(32, 256, bits, 0, false));
    expect_same(make.spqr(45, 333, bits, 0.02, false));
    expect_same(make.spqr(16, 500, bits, 0.02, true));
  }
}

TEST(CudaPack, CodebooksOfAnyShape) {
  test::CudaNodes make(3);
  for (unsigned bits : {4u, 8u, 10u, 16u})
    for (int64_t books : {1, 2}) {
      expect_same(make.codebook(64, 512, books, bits));
      expect_same(make.codebook(39, 8 * 37 + 3, books, bits));
    }
}

TEST(CudaPack, SaysWhatItCannotTake) {
  test::CudaNodes make(4);
  const auto refusal = [](const NodePtr& node) {
    auto packed = pack(*node);
    return packed.ok() ? std::string("taken") : packed.error().message;
  };
  EXPECT_NE(refusal(make.grid(16, 64, 5, 32, true)).find("3 and 4 bits"), std::string::npos);
  EXPECT_NE(refusal(make.grid(16, 64, 4, 16, true)).find("groups of 16"), std::string::npos);
  EXPECT_NE(refusal(make.codebook(16, 64, 3, 4)).find("3 codebooks"), std::string::npos);
  const auto codes = test::value_or_exit(PackedCodes::pack(1, 32, 4, 0, std::vector<int16_t>(32, 1)));
  const std::vector<float> third{1.0f / 3};
  const auto field = test::value_or_exit(AffineField::from(1, 32, 32, DType::f32, third));
  EXPECT_NE(refusal(test::value_or_exit(Grid::make(codes, {}, field))).find("not an fp16 number"), std::string::npos);
  EXPECT_NE(refusal(test::value_or_exit(Grid::make(codes, normal_float_levels(4), field))).find("table of levels"),
            std::string::npos);
}

}  // namespace
}  // namespace pith::cuda
