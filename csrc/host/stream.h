// The stream a launch goes to, named without CUDA's headers so that bindings and launch
// declarations compile where no toolkit is installed. cudaStream_t is the same pointer type.
#pragma once

struct CUstream_st;

namespace llmjp::host {

using Stream = CUstream_st*;

}  // namespace llmjp::host
