// aqlm: groups of weights as sums of codebook entries, chosen by what they do to the layer's output.
// Egiazarian, Panferov, Kuznedelev, Frantar, Babenko, Alistarh: AQLM, 2024 (arXiv 2401.06118); it is also where
// PV-Tuning (Malinovskii et al. 2024, arXiv 2405.14852) begins.
//
//   w[r, group] = s_r sum_{m=1..M} C_m[code_m],   C_m: 2^bits entries of `group` values, fp16, one set a matrix
//
//   1. rows divided by their root mean square; residual k-means, book after book
//   2. rounds of (a) books and scales that minimise tr((W - Q) H (W - Q)^T), codes fixed, (b) one pass of beam search
//   over
//      all groups in a random order, books and scales fixed; until a round gains less than `tolerance`
//
// Bits a weight: books bits / group + books 2^bits group 16 / (rows cols) + 16 / cols. On small matrices the books are
// most of it: choose fewer bits. A matrix with fewer groups than 2^bits gets as many entries as it has groups. Layout:
// Scaled by rows(Codebook). AQLM's schemes: 2x8g8 is books=2,bits=8,group=8; 1x16g8 is books=1,bits=16,group=8.
//
// Differs from the paper: with codes fixed the loss is a square in the books, so they are found by conjugate gradients,
// and each scale in closed form, instead of 100 steps of Adam; the beam spans the books of one group, not several
// groups; no step may raise the loss, and the best is kept. What the paper does after that is `--tune` (or `pith
// tune`): entries, scales, norms and, by PV-Tuning, codes of the whole model at once (train/distill.h) instead of block
// after block.
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"books", ParamType::integer, "2", 1, 4, "", "codebooks whose entries are added (M)"},
    {"bits", ParamType::integer, "8", 1, 16, "", "bits of a code: 2^bits entries in a codebook (B)"},
    {"group", ParamType::integer, "8", 1, 64, "", "neighbouring weights of a row that share a code (g)"},
    {"rounds", ParamType::integer, "6", 0, 100, "", "of books, scales and search, at most; 0 = only k-means"},
    {"tolerance", ParamType::real, "0.01", 0, 1, "", "stop when a round lowers the loss by less than this share"},
    {"beam", ParamType::integer, "4", 1, 8, "", "combinations of entries kept while the books of a group are searched"},
    {"steps", ParamType::integer, "20", 0, 100, "", "conjugate gradients for the books, each round"},
    {"clusters", ParamType::integer, "50", 1, 200, "", "rounds of k-means, at most"},
    {"norm", ParamType::choice, "inputs", 0, 0, "inputs|weights",
     "what is kept small: the error at the layer's output, or that of the weights (to compare)"},
    {"damp", ParamType::real, "0.01", 0, 1, "", "added to the diagonal of H, as a share of its mean"},
};

}  // namespace

const Method& aqlm_method() {
  static const Method method{
      .name = "aqlm",
      .family = "quantize",
      .title =
          "Sums of codebook entries for groups of weights, fitted to each layer's output; --tune goes on to the whole "
          "model",
      .paper =
          "Egiazarian, Panferov, Kuznedelev, Frantar, Babenko, Alistarh: Extreme Compression of Large Language Models "
          "via "
          "Additive Quantization, 2024, arXiv 2401.06118",
      .params = kParams,
      .needs = {.moments = true},
      .baseline = false,
      .example = "pith quantize aqlm MODEL --books 2 --bits 8 --group 8 -o small.pith",
      .budget_options = "",
      .needs_with = [](const Options& options) { return Needs{.moments = options.text("norm") == "inputs"}; },
  };
  return method;
}

}  // namespace pith
