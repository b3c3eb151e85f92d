#include "bindings/device_scope.h"

#include <dlfcn.h>

#include <stdexcept>
#include <string>

namespace llmjp::bindings {
namespace {

using CurrentStream = AOTITorchError (*)(int32_t device_index, void** stream);

// Looked up in the CUDA library that torch has loaded. A link-time reference would keep _ops.so
// from loading into a CPU-only torch, and a weak one stays null because torch loads its libraries
// RTLD_LOCAL.
CurrentStream find_current_stream() {
  void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
  if (library == nullptr) {
    return nullptr;
  }
  return reinterpret_cast<CurrentStream>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
}

}  // namespace

int32_t cuda_index(const torch::stable::Tensor& tensor) {
  if (!tensor.is_cuda()) {
    throw std::runtime_error(
        "llmjp_ext: all tensors of a call must be on one device, got CUDA tensors and others.");
  }
  return tensor.get_device_index();
}

host::Stream current_stream(int32_t device_index) {
  static const CurrentStream current = find_current_stream();
  if (current == nullptr) {
    throw std::runtime_error(
        "llmjp_ext: the running torch has no CUDA support (aoti_torch_get_current_cuda_stream was "
        "not "
        "found in libtorch_cuda.so); install a CUDA build of torch to run on a GPU.");
  }
  void* stream = nullptr;
  if (current(device_index, &stream) != AOTI_TORCH_SUCCESS) {
    throw std::runtime_error("llmjp_ext: torch could not name the current stream of CUDA device " +
                             std::to_string(device_index) + ".");
  }
  return static_cast<host::Stream>(stream);
}

}  // namespace llmjp::bindings
