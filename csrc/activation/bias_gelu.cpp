#include "activation/bias_gelu.h"

#include <string>

#include "activation/bias_gelu_launch.h"
#include "activation/bias_gelu_plan.h"
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

// Calls visit(Type<X>, Type<B>) for the types that the parameters name.
template <class Params, class Visit>
void visit_types(const Params& p, Visit visit) {
  const bool same = p.x_type == p.bias_type;
  const bool wide = p.bias_type == DType::kFloat32;
  if (same && wide) return visit(Type<float>{}, Type<float>{});
  if (p.x_type == DType::kFloat16 && same) return visit(Type<float16>{}, Type<float16>{});
  if (p.x_type == DType::kFloat16 && wide) return visit(Type<float16>{}, Type<float>{});
  if (p.x_type == DType::kBFloat16 && same) return visit(Type<bfloat16>{}, Type<bfloat16>{});
  if (p.x_type == DType::kBFloat16 && wide) return visit(Type<bfloat16>{}, Type<float>{});
  throw host::Unsupported(
      std::string("bias_gelu takes x and bias of one type, or a 16-bit x with float32 bias; got ") +
      name(p.x_type) + " and " + name(p.bias_type));
}

}  // namespace

void bias_gelu_forward(const BiasGeluForward& params, host::Stream stream) {
  if (params.rows == 0 || params.width == 0) return;
  visit_types(params, [&](auto x, auto bias) {
    launch_bias_gelu_forward<typename decltype(x)::type, typename decltype(bias)::type>(params,
                                                                                        stream);
  });
}

int64_t bias_gelu_backward_workspace(const BiasGeluBackward& params) {
  if (params.rows == 0 || params.width == 0 || params.bias == nullptr) return 0;
  const int multiprocessors = host::device_limits().multiprocessors;
  return backward_plan(params, row_chunk(params), multiprocessors).groups * params.width;
}

void bias_gelu_backward(const BiasGeluBackward& params, host::Stream stream) {
  if (params.rows == 0 || params.width == 0) return;
  visit_types(params, [&](auto x, auto bias) {
    launch_bias_gelu_backward<typename decltype(x)::type, typename decltype(bias)::type>(params,
                                                                                         stream);
  });
}

}  // namespace llmjp::activation
