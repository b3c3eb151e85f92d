// Starts a kernel whose blocks wait for each other, all of which must so run at once; and zeroes
// what they count themselves in.
#pragma once

#include <cstring>

#include "host/launch.h"

namespace llmjp::host {

// As launch(); CUDA refuses a grid whose blocks cannot all be resident, and does not start it
// before they can.
template <class... Parameters>
void launch_resident(const char* kernel_name, void (*kernel)(Parameters...),
                     const LaunchConfig& config, Parameters... arguments) {
  const int blocks = checked_blocks(config.blocks, kernel_name);
#if defined(__CUDACC__)
  const int64_t allowed = device_limits().shared_bytes_per_block;
  check_shared_bytes(config.shared_bytes, allowed, kernel_name);
  const void* function = reinterpret_cast<const void*>(kernel);
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
  cudaError_t status = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(allowed));
  if (status == cudaSuccess) {
    status = cudaLaunchCooperativeKernel(function, dim3(static_cast<unsigned>(blocks)),
                                         dim3(static_cast<unsigned>(config.threads)), pointers,
                                         static_cast<size_t>(config.shared_bytes), config.stream);
  }
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
  options.resident_blocks = blocks;
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
