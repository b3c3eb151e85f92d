#include "cross_entropy/cross_entropy.h"

#include "cross_entropy/cross_entropy_launch.h"

namespace llmjp::cross_entropy {

using device::bfloat16;
using device::float16;
using host::DType;

void cross_entropy_forward(const CrossEntropyForward& params, host::Stream stream) {
  if (params.rows == 0) return;
  switch (params.type) {
    case DType::kFloat32:
      return launch_cross_entropy_forward<float>(params, stream);
    case DType::kFloat16:
      return launch_cross_entropy_forward<float16>(params, stream);
    case DType::kBFloat16:
      return launch_cross_entropy_forward<bfloat16>(params, stream);
  }
}

void cross_entropy_backward(const CrossEntropyBackward& params, host::Stream stream) {
  if (params.rows == 0) return;
  switch (params.type) {
    case DType::kFloat32:
      return launch_cross_entropy_backward<float>(params, stream);
    case DType::kFloat16:
      return launch_cross_entropy_backward<float16>(params, stream);
    case DType::kBFloat16:
      return launch_cross_entropy_backward<bfloat16>(params, stream);
  }
}

}  // namespace llmjp::cross_entropy
