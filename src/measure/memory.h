// Memory of this process as the kernel counts it.
#pragma once

#include <cstdint>

namespace pith {

/// Largest resident set so far, in bytes (VmHWM); 0 when the system does not tell.
uint64_t peak_memory();
/// Resident set now, in bytes.
uint64_t current_memory();
/// The part of the resident set that is not backed by files (RssAnon): what a program needs beside its mapped inputs.
uint64_t current_anonymous_memory();
/// Starts the peak anew from the present size where the system allows it; returns whether it did.
bool reset_peak_memory();
/// Memory of the machine that can be used without swapping, in bytes; 0 when unknown.
uint64_t available_memory();

}  // namespace pith
