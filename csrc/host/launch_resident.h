// Starts a kernel whose blocks wait for each other, all of which must so run at once; and zeroes
// what they count themselves in.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "host/launch.h"

namespace llmjp::host {

// Blocks of a kernel that the device runs at once: what its launch bounds promise, or fewer where a
// tool that rewrites kernels to watch them has this one take more registers.
template <class... Parameters>
int64_t resident_blocks(const char* kernel_name, void (*kernel)(Parameters...), int threads,
                        int64_t shared_bytes) {
#if defined(__CUDACC__)
  const int64_t allowed = device_limits().shared_bytes_per_block;
  check_shared_bytes(shared_bytes, allowed, kernel_name);
  const void* function = reinterpret_cast<const void*>(kernel);
  int blocks = 0;  // of a multiprocessor
  cudaError_t status = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(allowed));
  if (status == cudaSuccess) {
    status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function, threads,
                                                           static_cast<size_t>(shared_bytes));
  }
  if (status == cudaSuccess) return int64_t{blocks} * device_limits().multiprocessors;
  cudaGetLastError();  // not sticky: leave none behind for the caller's next call
  throw CudaError(std::string(kernel_name) +
                  ": cannot query its resident blocks: " + cudaGetErrorString(status));
#else
  const char* blocks = std::getenv("LLMJP_SIMT_RESIDENT_BLOCKS");
  return blocks == nullptr ? std::numeric_limits<int>::max() : std::atoi(blocks);
#endif
}

// As launch(), of no more blocks than resident_blocks() says: CUDA refuses a grid whose blocks
// cannot all be resident, and does not start it before they can.
template <class... Parameters>
void launch_resident(const char* kernel_name, void (*kernel)(Parameters...),
                     const LaunchConfig& config, Parameters... arguments) {
  const int blocks = checked_blocks(config.blocks, kernel_name);
#if defined(__CUDACC__)
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
  const cudaError_t status = cudaLaunchCooperativeKernel(
      reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
      dim3(static_cast<unsigned>(config.threads)), pointers,
      static_cast<size_t>(config.shared_bytes), config.stream);
  if (status == cudaSuccess) return;
  cudaGetLastError();  // not sticky: leave none behind for the caller's next call
  throw CudaError(std::string(kernel_name) + " (" + std::to_string(blocks) + " blocks of " +
                  std::to_string(config.threads) + " threads at once, " +
                  std::to_string(config.shared_bytes) +
                  " bytes of shared memory): " + cudaGetErrorString(status));
#else
  simt::Grid grid;
  grid.blocks.x = blocks;
  grid.threads_per_block = config.threads;
  grid.shared_bytes = static_cast<size_t>(config.shared_bytes);
  simt::Options options = simt::next_default_options();
  const int64_t room = resident_blocks(kernel_name, kernel, config.threads, config.shared_bytes);
  options.resident_blocks = static_cast<int>(std::min<int64_t>(blocks, room));
  try {
    simt::launch(grid, options, [&] { kernel(arguments...); });
  } catch (const simt::Fault& fault) {
    throw simt::Fault(std::string(kernel_name) + ": " + fault.what());
  }
#endif
}

// In the stream's order.
inline void clear(void* memory, int64_t bytes, [[maybe_unused]] Stream stream) {
#if defined(__CUDACC__)
  const cudaError_t status = cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), stream);
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw CudaError("cannot zero " + std::to_string(bytes) +
                  " bytes of the device: " + cudaGetErrorString(status));
#else
  std::memset(memory, 0, static_cast<size_t>(bytes));
#endif
}

}  // namespace llmjp::host
