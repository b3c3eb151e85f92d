// Starts a kernel: what <<<>>> does on a GPU, with its error checked and shared memory above 48 KB
// opted into; fibers under LLMJP_SIMT.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "host/error.h"
#include "host/stream.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#include "host/device_limits.h"
#elif defined(LLMJP_SIMT)
#include "simt/engine.h"
#else
#error "host/launch.h is for translation units that hold kernels"
#endif

namespace llmjp::host {

struct LaunchConfig {
  int64_t blocks;
  int threads;
  int64_t shared_bytes = 0;
  Stream stream = nullptr;
};

// The grid runs along x; a kernel with more dimensions splits block_index_x() itself.
inline int checked_blocks(int64_t blocks, const char* kernel_name) {
  if (blocks < 1 || blocks > std::numeric_limits<int>::max()) {
    throw Unsupported(std::string(kernel_name) + " needs " + std::to_string(blocks) +
                      " blocks; a grid has 1 to 2147483647");
  }
  return static_cast<int>(blocks);
}

// `allowed` is what the GPU gives a block: about 99 KB on sm_86, sm_89 and sm_120.
inline void check_shared_bytes(int64_t bytes, int64_t allowed, const char* kernel_name) {
  if (bytes > allowed) {
    throw Unsupported(std::string(kernel_name) + " needs " + std::to_string(bytes) +
                      " bytes of shared memory a block; this GPU gives " + std::to_string(allowed));
  }
}

template <class... Parameters>
void launch(const char* kernel_name, void (*kernel)(Parameters...), const LaunchConfig& config,
            Parameters... arguments) {
  const int blocks = checked_blocks(config.blocks, kernel_name);
#if defined(__CUDACC__)
  const auto check = [&](cudaError_t status) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // a launch error is not sticky: leave none behind for the caller's next
                         // call
    throw CudaError(std::string(kernel_name) + " (" + std::to_string(blocks) + " blocks of " +
                    std::to_string(config.threads) + " threads, " +
                    std::to_string(config.shared_bytes) +
                    " bytes of shared memory): " + cudaGetErrorString(status));
  };
  constexpr int64_t kSharedBytesWithoutOptIn = 48 * 1024;
  if (config.shared_bytes > kSharedBytesWithoutOptIn) {
    // All that there is, whatever this launch takes: the limit belongs to the kernel, and another
    // thread's launch with more must not meet this one's.
    const int64_t allowed = device_limits().shared_bytes_per_block;
    check_shared_bytes(config.shared_bytes, allowed, kernel_name);
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(allowed)));
  }
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
  check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                         dim3(static_cast<unsigned>(config.threads)), pointers,
                         static_cast<size_t>(config.shared_bytes), config.stream));
#else
  simt::Grid grid;
  grid.blocks.x = blocks;
  grid.threads_per_block = config.threads;
  grid.shared_bytes = static_cast<size_t>(config.shared_bytes);
  try {
    simt::launch(grid, [&] { kernel(arguments...); });
  } catch (const simt::Fault& fault) {
    throw simt::Fault(std::string(kernel_name) + ": " + fault.what());
  }
#endif
}

}  // namespace llmjp::host
