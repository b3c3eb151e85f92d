#include "attention/attention.h"

#include <string>

#include "attention/attention_launch.h"
#include "host/error.h"

namespace llmjp::attention {
namespace {

template <class T>
void launch_by_head_dim(const AttentionForward& params, host::Stream stream) {
  if (params.head_dim <= 64) return launch_attention_forward<64, T>(params, stream);
  if (params.head_dim <= 128) return launch_attention_forward<128, T>(params, stream);
  return launch_attention_forward<256, T>(params, stream);
}

}  // namespace

void attention_forward(const AttentionForward& params, host::Stream stream) {
  if (params.batch == 0 || params.tokens == 0 || params.heads == 0) return;
  if (params.head_dim < 8 || params.head_dim > kLargestHeadDim || params.head_dim % 8 != 0) {
    throw host::Unsupported("attention takes head_dim in multiples of 8 up to " +
                            std::to_string(kLargestHeadDim) + ", got " +
                            std::to_string(params.head_dim));
  }
  switch (params.type) {
    case host::DType::kFloat16:
      return launch_by_head_dim<device::float16>(params, stream);
    case host::DType::kBFloat16:
      return launch_by_head_dim<device::bfloat16>(params, stream);
    case host::DType::kFloat32:
      break;
  }
  throw host::Unsupported(std::string("attention takes float16 and bfloat16 on CUDA, got ") +
                          name(params.type));
}

}  // namespace llmjp::attention
