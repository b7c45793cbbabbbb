// Entry points that must survive any bytes: no crash, no hang, no allocation out of proportion to the input. libFuzzer
// calls them (`make fuzz`), and tests/formats/fuzz_replay_test.cpp replays the corpus and mutations without an engine.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pith {

int fuzz_gguf(const uint8_t* data, size_t size);         ///< a GGUF file
int fuzz_safetensors(const uint8_t* data, size_t size);  ///< a safetensors file
int fuzz_tokenizer(const uint8_t* data, size_t size);    ///< tokenizer.json, or a packed tokenizer after a byte 1
int fuzz_config(const uint8_t* data, size_t size);       ///< config.json
int fuzz_pith(const uint8_t* data, size_t size);  ///< a .pith file, or after a byte 1: manifest JSON, newline, data
int fuzz_plan(const uint8_t* data, size_t size);  ///< plan JSON

}  // namespace pith

// Under libFuzzer (-DPITH_LIBFUZZER) a file is a program of its own.
#ifdef PITH_LIBFUZZER
#define PITH_FUZZ_TARGET(function)                                         \
  extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size); \
  extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { return pith::function(data, size); }
#else
#define PITH_FUZZ_TARGET(function)
#endif
