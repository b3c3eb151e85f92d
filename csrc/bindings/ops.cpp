// Schemas of all ops. Implementations: one file a family beside this one for CUDA, llmjp_ext/ops/
// for the CPU.
#include "bindings/library.h"

LLMJP_LIBRARY(LLMJP_NAMESPACE, library) {
  // JSON text with the facts of this build.
  library.def("build_info() -> str");

  // y = LayerNorm(x); mean and rstd are fp32 [rows].
  library.def(
      "layer_norm_fwd(Tensor x, Tensor weight, Tensor? bias, float eps) -> (Tensor y, Tensor mean, "
      "Tensor rstd)");

  // r = x + residual, y = LayerNorm(r).
  library.def(
      "add_layer_norm_fwd(Tensor x, Tensor residual, Tensor weight, Tensor? bias, float eps)"
      " -> (Tensor y, Tensor r, Tensor mean, Tensor rstd)");

  // Gradients of both; dr is the gradient that reaches r itself; dbias is empty without has_bias.
  library.def(
      "layer_norm_bwd(Tensor dy, Tensor? dr, Tensor r, Tensor weight, Tensor mean, Tensor rstd, "
      "bool has_bias)"
      " -> (Tensor dx, Tensor dweight, Tensor dbias)");
}
