// Where a launch goes: makes the tensors' device current and names torch's current stream on it.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "host/stream.h"

namespace llmjp::bindings {

// Index of the CUDA device that the tensor is on; throws when it is on another kind of device, as
// happens when a call mixes devices and another argument made it a CUDA call.
int32_t cuda_index(const torch::stable::Tensor& tensor);

// torch's current CUDA stream of a device; throws where no CUDA torch is loaded.
host::Stream current_stream(int32_t device_index);

#ifdef LLMJP_SIMT
// Simulated kernels have neither devices nor streams.
class DeviceScope {
 public:
  explicit DeviceScope(const torch::stable::Tensor&) {}
  host::Stream stream() const { return nullptr; }
};
#else
class DeviceScope {
 public:
  explicit DeviceScope(const torch::stable::Tensor& tensor)
      : guard_(cuda_index(tensor)), stream_(current_stream(tensor.get_device_index())) {}
  host::Stream stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  host::Stream stream_;
};
#endif

}  // namespace llmjp::bindings
