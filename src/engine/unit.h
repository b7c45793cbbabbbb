// One finished unit of work as bytes: a representation tree with its arrays, and what the fit predicted. Units live in
// OUT.work/ (plan/work_folder.h) between the fit of a tensor and the writing of the file.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "formats/bytes.h"
#include "represent/node.h"

namespace pith {

struct Unit {
  NodePtr node;
  double loss = 0;  ///< predicted, nats a token (engine/fit.h)
};

std::vector<std::byte> pack_unit(const Unit& unit);
/// The arrays of the result point into `data`.
Result<Unit> unpack_unit(const Bytes& data, const Limits& limits);

}  // namespace pith
