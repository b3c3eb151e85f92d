// The two compilers that kernel code meets, and the words that differ between them.
//
// nvcc gives the vocabulary of this folder its meaning on a GPU. With LLMJP_SIMT defined, g++ gives
// it the same meaning on the CPU, each GPU thread being a fiber (csrc/simt): tests only. Every
// wrapper is inlined, so that nvcc's machine code shows nothing of it. The host never calls a
// device function.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)

#define LLMJP_DEVICE __device__ __forceinline__
#define LLMJP_KERNEL __global__ void
#define LLMJP_LAUNCH_BOUNDS(max_threads, min_blocks) __launch_bounds__(max_threads, min_blocks)
#define LLMJP_UNROLL _Pragma("unroll")
#define LLMJP_DO_NOT_UNROLL _Pragma("unroll 1")

#elif defined(LLMJP_SIMT)

#include <source_location>

#define LLMJP_DEVICE inline
#define LLMJP_KERNEL void
#define LLMJP_LAUNCH_BOUNDS(max_threads, min_blocks)
#define LLMJP_UNROLL
#define LLMJP_DO_NOT_UNROLL

#else
#error "csrc/device is for kernels: compile with nvcc, or with LLMJP_SIMT"
#endif

namespace llmjp::device {

constexpr int kWarpSize = 32;
constexpr uint32_t kFullMask = 0xffffffffu;

}  // namespace llmjp::device
