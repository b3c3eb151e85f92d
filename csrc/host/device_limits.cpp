#include "host/device_limits.h"

#include "host/error.h"

#if defined(LLMJP_SIMT)
#include <cstdlib>
#else
#include <cuda_runtime_api.h>

#include <array>
#include <mutex>
#endif

namespace llmjp::host {

#if defined(LLMJP_SIMT)

// A GPU small enough that persistent kernels loop, unless LLMJP_SIMT_MULTIPROCESSORS makes room for
// many blocks at once; with sm_86's shared memory, so that a tile chosen for more than 99 KB shows
// here.
DeviceLimits device_limits() {
  const char* multiprocessors = std::getenv("LLMJP_SIMT_MULTIPROCESSORS");
  return {multiprocessors == nullptr ? 2 : std::atoi(multiprocessors), 99 * 1024, 100 * 1024};
}

#else

namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  const cudaError_t status = cudaDeviceGetAttribute(&value, which, device);
  if (status != cudaSuccess) {
    throw CudaError(std::string("cannot query the CUDA device: ") + cudaGetErrorString(status));
  }
  return value;
}

}  // namespace

DeviceLimits device_limits() {
  int device = 0;
  const cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) {
    throw CudaError(std::string("no CUDA device is current: ") + cudaGetErrorString(status));
  }
  constexpr int kCached = 64;
  static std::array<DeviceLimits, kCached> limits;
  static std::array<std::once_flag, kCached> queried;
  const auto query = [device] {
    return DeviceLimits{attribute(cudaDevAttrMultiProcessorCount, device),
                        attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
                        attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device)};
  };
  if (device >= kCached) return query();
  std::call_once(queried[device], [&] { limits[device] = query(); });
  return limits[device];
}

#endif

}  // namespace llmjp::host
