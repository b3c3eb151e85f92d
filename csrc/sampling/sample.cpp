#include "sampling/sample.h"

#include <string>

#include "host/error.h"
#include "sampling/sample_launch.h"

namespace llmjp::sampling {

void sample(const Sample& params, host::Stream stream) {
  if (params.rows == 0) return;
  if (params.classes > kMostClasses) {
    throw host::Unsupported("sample: at most " + std::to_string(kMostClasses) +
                            " ids are supported on CUDA, got " + std::to_string(params.classes));
  }
  switch (params.type) {
    case host::DType::kFloat32:
      return launch_sample<float>(params, stream);
    case host::DType::kFloat16:
      return launch_sample<device::float16>(params, stream);
    case host::DType::kBFloat16:
      return launch_sample<device::bfloat16>(params, stream);
  }
}

}  // namespace llmjp::sampling
