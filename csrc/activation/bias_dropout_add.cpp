#include "activation/bias_dropout_add.h"

#include <string>

#include "activation/bias_dropout_add_launch.h"
#include "activation/bias_dropout_add_plan.h"
#include "host/device_limits.h"
#include "host/error.h"

namespace llmjp::activation {
namespace {

using device::bfloat16;
using device::float16;
using host::DType;

template <class T>
struct Type {
  using type = T;
};

// Calls visit(Type<X>, Type<R>, Type<B>) for the types that the parameters name.
template <class Params, class Visit>
void visit_types(const Params& p, Visit visit) {
  const auto given = [&](DType x, DType row, DType bias) {
    return p.x_type == x && p.row_type == row && p.bias_type == bias;
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
      std::string(
          "bias_dropout_add takes x, residual and bias of one type, a 16-bit x and "
          "residual with float32 bias, or a 16-bit x with float32 residual and bias; got ") +
      name(p.x_type) + ", " + name(p.row_type) + " and " + name(p.bias_type));
}

}  // namespace

void bias_dropout_add_forward(const BiasDropoutAddForward& params, host::Stream stream) {
  if (params.rows == 0 || params.width == 0) return;
  visit_types(params, [&](auto x, auto row, auto bias) {
    launch_bias_dropout_add_forward<typename decltype(x)::type, typename decltype(row)::type,
                                    typename decltype(bias)::type>(params, stream);
  });
}

int64_t bias_dropout_add_backward_workspace(const BiasDropoutAddBackward& params) {
  if (params.rows == 0 || params.width == 0 || params.dbias == nullptr) return 0;
  const int multiprocessors = host::device_limits().multiprocessors;
  return backward_plan(params, row_chunk(params), multiprocessors).groups * params.width;
}

void bias_dropout_add_backward(const BiasDropoutAddBackward& params, host::Stream stream) {
  if (params.rows == 0 || params.width == 0) return;
  visit_types(params, [&](auto x, auto row, auto bias) {
    launch_bias_dropout_add_backward<typename decltype(x)::type, typename decltype(row)::type,
                                     typename decltype(bias)::type>(params, stream);
  });
}

}  // namespace llmjp::activation
