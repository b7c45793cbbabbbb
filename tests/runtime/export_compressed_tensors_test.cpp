#include "runtime/export_compressed_tensors.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/half.h"
#include "formats/safetensors.h"
#include "represent/combine.h"
#include "represent/dense.h"
#include "represent/grid.h"
#include "represent/tiny_model.h"

namespace pith::test {
namespace {

// A llama whose matrices are on a grid; `zero_at` is every zero (NaN: none).
Model quantized_model(unsigned bits, int offset, int64_t group, float zero_at) {
  Model model = tiny_model("llama", DType::f16, 1);
  Random random(2);
  for (ModelTensor& tensor : model.tensors) {
    if (tensor.name.find("_proj") == std::string::npos) continue;
    const int64_t rows = tensor.node->rows(), cols = tensor.node->cols(), g = group == 0 ? cols : group;
    std::vector<int16_t> codes(static_cast<size_t>(rows * cols));
    for (auto& v : codes) v = static_cast<int16_t>(random.between(offset, offset + (1 << bits) - 1));
    std::vector<float> scale(static_cast<size_t>(rows * ((cols + g - 1) / g)), 0.25f), zero(scale.size(), zero_at);
    tensor.node = Grid::make(PackedCodes::pack(rows, cols, bits, offset, codes).value(), {},
                             AffineField::from(rows, cols, g, DType::f16, scale).value(),
                             std::isnan(zero_at) ? nullptr : AffineField::from(rows, cols, g, DType::f16, zero).value())
                      .value();
  }
  return model;
}

// Weights by the layout's own rule, from the file alone.
std::vector<float> unpack(const SafetensorsFile& file, const std::string& module, int bits, bool zero) {
  const auto bytes = [&](const std::string& name) {
    const auto* entry = file.find(module + "." + name);
    EXPECT_NE(entry, nullptr) << name;
    return file.data(*entry);
  };
  const auto bit_field = [&](const std::byte* words, int64_t i) {
    uint32_t value = 0;
    for (int b = 0; b < bits; ++b) {
      const int64_t bit = i * bits + b;
      value |= (static_cast<uint32_t>(words[bit / 8]) >> (bit % 8) & 1u) << b;
    }
    return static_cast<int>(value) - (1 << (bits - 1));
  };
  int64_t shape[2];
  std::memcpy(shape, bytes("weight_shape").data(), 16);
  const auto packed = bytes("weight_packed"), scale = bytes("weight_scale");
  const int64_t rows = shape[0], cols = shape[1], row_bytes = static_cast<int64_t>(packed.size()) / rows;
  const int64_t groups = static_cast<int64_t>(scale.size()) / 2 / rows;
  std::vector<float> weights;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t g = c / (cols / groups);
      uint16_t s;
      std::memcpy(&s, scale.data() + 2 * (r * groups + g), 2);
      int z = 0;
      if (zero) {  // one column of the table, its words below each other
        const auto table = bytes("weight_zero_point");
        std::vector<std::byte> column;
        for (size_t w = 0; w * static_cast<size_t>(4 * groups) < table.size(); ++w)
          for (size_t b = 0; b < 4; ++b)
            column.push_back(table.data()[w * static_cast<size_t>(4 * groups) + static_cast<size_t>(4 * g) + b]);
        z = bit_field(column.data(), r);
      }
      weights.push_back(half_to_float(s) * static_cast<float>(bit_field(packed.data() + r * row_bytes, c) - z));
    }
  return weights;
}

TEST(CompressedTensors, LayoutHoldsTheSameWeights) {
  TempFolder folder;
  struct Case {
    unsigned bits;
    int offset;
    int64_t group;
    float zero;
    bool symmetric;
  };
  const float none = std::nanf("");
  for (const Case& c : {Case{4, -8, 32, none, true}, Case{4, 0, 16, 7, false}, Case{8, -128, 0, none, true},
                        Case{8, 0, 32, 200, false}, Case{4, 0, 0, none, false}, Case{3, 0, 32, 2, false}}) {
    SCOPED_TRACE(std::to_string(c.bits) + " bits, group " + std::to_string(c.group));
    const Model model = quantized_model(c.bits, c.offset, c.group, c.zero);
    const std::string path = folder / "ct";
    const Status status = write_compressed_tensors(model, path, DType::f16, true);
    ASSERT_TRUE(status.ok()) << status.error().message;
    const auto file = SafetensorsFile::open(path + "/model.safetensors", {}).value();
    for (const ModelTensor& tensor : model.tensors) {
      if (tensor.node->kind() != "grid") {
        ASSERT_NE(file.find(tensor.name), nullptr);
        continue;
      }
      const std::string module = tensor.name.substr(0, tensor.name.size() - 7);
      EXPECT_EQ(file.find(tensor.name), nullptr);
      EXPECT_EQ(unpack(file, module, c.bits == 8 ? 8 : 4, !c.symmetric), decode_all(*tensor.node)) << tensor.name;
    }
    const auto config = nlohmann::json::parse(read_text(path + "/config.json", 1 << 20).value());
    const auto& q = config["quantization_config"];
    EXPECT_EQ(q["quant_method"], "compressed-tensors");
    EXPECT_EQ(q["format"], "pack-quantized");
    EXPECT_EQ(q["ignore"], nlohmann::json::array({"lm_head"}));
    const auto& weights = q["config_groups"]["group_0"]["weights"];
    EXPECT_EQ(weights["symmetric"], c.symmetric);
    EXPECT_EQ(weights["strategy"], c.group == 0 ? "channel" : "group");
  }
}

TEST(CompressedTensors, RefusesWhatDoesNotFitAndSaysWhy) {
  TempFolder folder;
  const auto message = [&](const Model& model) {
    const Status status = write_compressed_tensors(model, folder / "ct", DType::f16, true);
    return status.ok() ? std::string() : status.error().message;
  };
  EXPECT_NE(message(tiny_model("llama", DType::f16, 1)).find("4 or 8 bit grid"), std::string::npos);
  EXPECT_NE(message(quantized_model(4, 0, 32, 7.5f)).find("zero 7.5"), std::string::npos);
  EXPECT_NE(message(quantized_model(4, 0, 32, 16)).find("zero 16"), std::string::npos);
  EXPECT_NE(message(quantized_model(10, 0, 32, 3)).find("more than 8 bits"), std::string::npos);
  EXPECT_NE(message(quantized_model(4, -8, 28, std::nanf(""))).find("groups of 28"), std::string::npos);
  Model model = quantized_model(4, -8, 32, std::nanf(""));
  for (ModelTensor& tensor : model.tensors)
    if (tensor.node->kind() == "grid") tensor.node = Sum::make({tensor.node, tensor.node}).value();
  const std::string text = message(model);
  EXPECT_NE(text.find("q_proj"), std::string::npos) << text;
  EXPECT_NE(text.find("--to hf"), std::string::npos) << text;
  EXPECT_FALSE(file_exists(folder / "ct")) << "nothing half-written";
}

}  // namespace
}  // namespace pith::test
