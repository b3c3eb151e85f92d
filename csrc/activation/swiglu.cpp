#include "activation/swiglu.h"

#include "activation/swiglu_launch.h"

namespace llmjp::activation {

using host::DType;

void swiglu_forward(const SwigluForward& params, host::Stream stream) {
  if (params.rows == 0 || params.width == 0) return;
  switch (params.type) {
    case DType::kFloat32:
      return launch_swiglu_forward<float>(params, stream);
    case DType::kFloat16:
      return launch_swiglu_forward<device::float16>(params, stream);
    case DType::kBFloat16:
      return launch_swiglu_forward<device::bfloat16>(params, stream);
  }
}

void swiglu_backward(const SwigluBackward& params, host::Stream stream) {
  if (params.rows == 0 || params.width == 0) return;
  switch (params.type) {
    case DType::kFloat32:
      return launch_swiglu_backward<float>(params, stream);
    case DType::kFloat16:
      return launch_swiglu_backward<device::float16>(params, stream);
    case DType::kBFloat16:
      return launch_swiglu_backward<device::bfloat16>(params, stream);
  }
}

}  // namespace llmjp::activation
