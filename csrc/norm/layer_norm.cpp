#include "norm/layer_norm.h"

#include <string>

#include "host/device_limits.h"
#include "host/error.h"
#include "host/visit_types.h"
#include "norm/layer_norm_launch.h"
#include "norm/layer_norm_plan.h"

namespace llmjp::norm {
namespace {

template <class Params, class Visit>
void visit_types(const Params& p, Visit visit) {
  if (host::visit_types(host::TensorRowAndParameter{},
                        std::array{p.x_type, p.row_type, p.weight_type}, visit)) {
    return;
  }
  throw host::Unsupported(
      std::string("a norm takes x, residual and weight of one type, a 16-bit x and residual "
                  "with float32 weight, or a 16-bit x with float32 residual and weight; got ") +
      name(p.x_type) + ", " + name(p.row_type) + " and " + name(p.weight_type));
}

}  // namespace

void layer_norm_forward(const LayerNormForward& params, host::Stream stream) {
  if (params.rows == 0 || params.width == 0) return;
  visit_types(params, [&]<class X, class R, class W>() {
    launch_layer_norm_forward<X, R, W>(params, stream);
  });
}

int64_t layer_norm_backward_workspace(const LayerNormBackward& params) {
  if (params.rows == 0 || params.width == 0) return 0;
  return plan_backward(params, host::device_limits()).workspace_floats(params);
}

void layer_norm_backward(const LayerNormBackward& params, host::Stream stream) {
  if (params.rows == 0 || params.width == 0) return;
  visit_types(params, [&]<class X, class R, class W>() {
    launch_layer_norm_backward<X, R, W>(params, stream);
  });
}

}  // namespace llmjp::norm
