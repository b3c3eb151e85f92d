#include "activation/swiglu.h"

#include "activation/swiglu_launch.h"
#include "host/visit_types.h"

namespace llmjp::activation {

void swiglu_forward(const SwigluForward& params, host::Stream stream) {
  if (params.rows == 0 || params.width == 0) return;
  host::visit_types(host::OneType{}, std::array{params.type},
                    [&]<class T>() { launch_swiglu_forward<T>(params, stream); });
}

void swiglu_backward(const SwigluBackward& params, host::Stream stream) {
  if (params.rows == 0 || params.width == 0) return;
  host::visit_types(host::OneType{}, std::array{params.type},
                    [&]<class T>() { launch_swiglu_backward<T>(params, stream); });
}

}  // namespace llmjp::activation
