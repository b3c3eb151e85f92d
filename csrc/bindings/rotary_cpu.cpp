// Rotary ops of CPU tensors, over torch's threads.
#include <algorithm>

#include "bindings/cpu_rows.h"
#include "bindings/library.h"
#include "bindings/rotary_operands.h"
#include "rotary/rotary_cpu.h"

namespace llmjp::bindings {
namespace {

// Angles of q's type, which the native code takes as float32.
Tensor in_float32(const Tensor& angles, const Tensor& q) {
  const ScalarType type = angles.scalar_type();
  if (type == ScalarType::Float || type != q.scalar_type()) return angles;
  return torch::stable::to(angles, ScalarType::Float);
}

void turn(const RotaryForward& params) {
  check(params.head_dim <= rotary::kMostHeadDim, "rotary: head_dim must be at most ",
        rotary::kMostHeadDim, ", got ", params.head_dim, ".");
  check(params.angle_type == host::DType::kFloat32,
        "rotary takes cos and sin of the type of q or float32; got ", host::name(params.type),
        " and ", host::name(params.angle_type), ".");
  const int64_t width = (params.q.heads + params.k.heads) * params.head_dim;
  if (params.batch * params.tokens * width == 0) return;
  torch::stable::parallel_for(
      0, params.batch * params.tokens, rows_of_thread(width),
      [&](int64_t first, int64_t last) { rotary::rotary_tokens(params, first, last); });
}

std::tuple<Tensor, Tensor> rotary_turned(const Tensor& q, const Tensor& k, const Tensor& cos,
                                         const Tensor& sin, bool interleaved, bool inverse) {
  return rotary_copied(q, k, in_float32(cos, q), in_float32(sin, q), interleaved, inverse, turn);
}

void rotary_inplace(Tensor q, Tensor k, const Tensor& cos, const Tensor& sin, bool interleaved,
                    bool inverse) {
  rotary_overwritten(q, k, in_float32(cos, q), in_float32(sin, q), interleaved, inverse, turn);
}

}  // namespace
}  // namespace llmjp::bindings

LLMJP_LIBRARY_IMPL(LLMJP_NAMESPACE, CPU, library) {
  library.impl("rotary", TORCH_BOX(&llmjp::bindings::rotary_turned));
  library.impl("rotary_inplace", TORCH_BOX(&llmjp::bindings::rotary_inplace));
}
