// The table of node kinds.
#include <fmt/format.h>

#include "represent/blocks.h"
#include "represent/codebook.h"
#include "represent/combine.h"
#include "represent/dense.h"
#include "represent/grid.h"
#include "represent/json_read.h"
#include "represent/low_rank.h"
#include "represent/node.h"
#include "represent/sparse.h"

namespace pith {

namespace {
struct Kind {
  std::string_view name;
  Result<NodePtr> (*parse)(const nlohmann::json&, const ParseContext&, uint32_t depth);
};
// A node kind added later gets its line here; tests/represent/samples.h then refuses to pass without a sample of it.
constexpr Kind kKinds[] = {
    {"bitmap", &Bitmap::parse},
    {"blocks", &Blocks::parse},
    {"codebook", &Codebook::parse},
    {"csr", &Csr::parse},
    {"dense", &Dense::parse},
    {"depth_line", &DepthLine::parse},
    {"dynamic_int8", &DynamicInt8::parse},
    {"grid", &Grid::parse},
    {"low_rank", &LowRank::parse},
    {"nmask", &NMask::parse},
    {"override", &Override::parse},
    {"permuted", &Permuted::parse},
    {"prefix", &Prefix::parse},
    {"scaled", &Scaled::parse},
    {"sum", &Sum::parse},
};
}  // namespace

std::vector<std::string_view> node_kinds() {
  std::vector<std::string_view> names;
  for (const Kind& kind : kKinds) names.push_back(kind.name);
  return names;
}

Result<NodePtr> parse_node_at(const nlohmann::json& tree, const ParseContext& context, uint32_t depth) {
  if (depth >= context.limits.max_tree_depth)
    return data_error(fmt::format("the tree is nested deeper than {} nodes", context.limits.max_tree_depth));
  PITH_ASSIGN(const std::string name, json_text(tree, "node"));
  for (const Kind& kind : kKinds)
    if (kind.name == name) return kind.parse(tree, context, depth);
  return data_error(fmt::format("node of kind '{}' is not known here; a newer pith may read it", name));
}

Result<NodePtr> parse_node(const nlohmann::json& tree, const ParseContext& context) {
  return parse_node_at(tree, context, 0);
}

}  // namespace pith
