// LayerNorm and RMSNorm ops of CPU tensors, over torch's threads.
#include <vector>

#include "bindings/cpu_rows.h"
#include "bindings/norm_ops.h"
#include "host/convert_cpu.h"
#include "norm/layer_norm_cpu.h"

namespace llmjp::bindings {
namespace {

using host::FloatArray;

struct OnCpu {
  static void forward(LayerNormForward& params, const Tensor&) {
    const FloatArray weight(params.weight, params.weight_type, params.width);
    const FloatArray bias(params.bias, params.weight_type, params.width);
    params.weight = weight.data();
    params.bias = bias.data();
    torch::stable::parallel_for(
        0, params.rows, rows_of_thread(params.width),
        [&](int64_t first, int64_t last) { norm::layer_norm_forward_rows(params, first, last); });
  }

  static void backward(LayerNormBackward& params, const Tensor&) {
    const int64_t width = params.width;
    const FloatArray weight(params.weight, params.weight_type, width);
    params.weight = weight.data();
    std::vector<float> sums(2 * width);
    for_row_groups(params.rows, 2 * width, sums.data(),
                   [&](int64_t first, int64_t last, float* partial) {
                     norm::layer_norm_backward_rows(params, first, last, partial);
                   });
    host::store_floats(sums.data(), width, params.weight_type, params.dweight);
    if (params.dbias != nullptr)
      host::store_floats(sums.data() + width, width, params.weight_type, params.dbias);
  }
};

}  // namespace
}  // namespace llmjp::bindings

LLMJP_LIBRARY_IMPL(LLMJP_NAMESPACE, CPU, library) {
  llmjp::bindings::NormOps<llmjp::bindings::OnCpu>::register_in(library);
}
