#include "norm/layer_norm.h"

#include <string>

#include "host/device_limits.h"
#include "host/error.h"
#include "norm/layer_norm_launch.h"
#include "norm/layer_norm_plan.h"

namespace llmjp::norm {
namespace {

using device::bfloat16;
using device::float16;
using host::DType;

template <class T>
struct Type {
  using type = T;
};

// Calls visit(Type<X>, Type<R>, Type<W>) for the types that the parameters name.
template <class Params, class Visit>
void visit_types(const Params& p, Visit visit) {
  const auto given = [&](DType x, DType row, DType weight) {
    return p.x_type == x && p.row_type == row && p.weight_type == weight;
  };
  constexpr auto f32 = DType::kFloat32;
  constexpr auto f16 = DType::kFloat16;
  constexpr auto bf16 = DType::kBFloat16;
  if (given(f32, f32, f32)) return visit(Type<float>{}, Type<float>{}, Type<float>{});
  if (given(f16, f16, f16)) return visit(Type<float16>{}, Type<float16>{}, Type<float16>{});
  if (given(f16, f16, f32)) return visit(Type<float16>{}, Type<float16>{}, Type<float>{});
  if (given(f16, f32, f32)) return visit(Type<float16>{}, Type<float>{}, Type<float>{});
  if (given(bf16, bf16, bf16)) return visit(Type<bfloat16>{}, Type<bfloat16>{}, Type<bfloat16>{});
  if (given(bf16, bf16, f32)) return visit(Type<bfloat16>{}, Type<bfloat16>{}, Type<float>{});
  if (given(bf16, f32, f32)) return visit(Type<bfloat16>{}, Type<float>{}, Type<float>{});
  throw host::Unsupported(
      std::string("a norm takes x, residual and weight of one type, a 16-bit x and residual "
                  "with float32 weight, or a 16-bit x with float32 residual and weight; got ") +
      name(p.x_type) + ", " + name(p.row_type) + " and " + name(p.weight_type));
}

}  // namespace

void layer_norm_forward(const LayerNormForward& params, host::Stream stream) {
  if (params.rows == 0 || params.width == 0) return;
  visit_types(params, [&](auto x, auto row, auto weight) {
    launch_layer_norm_forward<typename decltype(x)::type, typename decltype(row)::type,
                              typename decltype(weight)::type>(params, stream);
  });
}

int64_t layer_norm_backward_workspace(const LayerNormBackward& params) {
  if (params.rows == 0 || params.width == 0) return 0;
  const int sums = params.centred ? 2 : 1;  // of dweight, and of dbias
  return sums * plan_backward(params, host::device_limits()).groups * params.width;
}

void layer_norm_backward(const LayerNormBackward& params, host::Stream stream) {
  if (params.rows == 0 || params.width == 0) return;
  visit_types(params, [&](auto x, auto row, auto weight) {
    launch_layer_norm_backward<typename decltype(x)::type, typename decltype(row)::type,
                               typename decltype(weight)::type>(params, stream);
  });
}

}  // namespace llmjp::norm
