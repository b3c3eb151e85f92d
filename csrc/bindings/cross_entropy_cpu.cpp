// Cross-entropy ops of CPU tensors, over torch's threads.
#include "cross_entropy/cross_entropy_cpu.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <stdexcept>
#include <tuple>

#include "bindings/cross_entropy_operands.h"
#include "bindings/library.h"
#include "bindings/tensor_checks.h"

namespace llmjp::bindings {
namespace {

// Logits that a thread is worth waking for.
constexpr int64_t kLogitsOfThread = 1 << 15;

// A ValueError in Python; the CUDA kernels, which cannot raise, answer with NaN.
template <class Params>
void check_targets(const Params& params) {
  for (int64_t row = 0; row < params.rows; ++row) {
    const int64_t target = params.targets[row];
    if (target == params.ignore_index || (target >= 0 && target < params.classes)) continue;
    throw std::invalid_argument("cross_entropy: targets must be from 0 to " +
                                std::to_string(params.classes - 1) + " or ignore_index " +
                                std::to_string(params.ignore_index) + ", got " +
                                std::to_string(target) + ".");
  }
}

template <class Params>
void share_rows(const Params& params, void (*run)(const Params&, int64_t, int64_t)) {
  const int64_t grain = std::max<int64_t>(1, kLogitsOfThread / params.classes);
  torch::stable::parallel_for(0, params.rows, grain,
                              [&](int64_t first, int64_t last) { run(params, first, last); });
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy_fwd(const Tensor& logits, const Tensor& targets,
                                                     int64_t ignore_index, double label_smoothing,
                                                     double z_loss,
                                                     std::optional<int64_t> valid_vocab) {
  return cross_entropy_forward(logits, targets, ignore_index, label_smoothing, z_loss, valid_vocab,
                               [](const CrossEntropyForward& params) {
                                 check_targets(params);
                                 share_rows(params, cross_entropy::cross_entropy_forward_rows);
                               });
}

void backward(const Tensor& dloss, const Tensor& logits, const Tensor& targets,
              const Tensor& largest, const Tensor& log_sum, int64_t ignore_index,
              double label_smoothing, double z_loss, std::optional<int64_t> valid_vocab,
              Tensor* dlogits, const char* op) {
  cross_entropy_backward(dloss, logits, targets, largest, log_sum, ignore_index, label_smoothing,
                         z_loss, valid_vocab, dlogits, op, [](const CrossEntropyBackward& params) {
                           check_targets(params);
                           share_rows(params, cross_entropy::cross_entropy_backward_rows);
                         });
}

Tensor cross_entropy_bwd(const Tensor& dloss, const Tensor& logits, const Tensor& targets,
                         const Tensor& largest, const Tensor& log_sum, int64_t ignore_index,
                         double label_smoothing, double z_loss,
                         std::optional<int64_t> valid_vocab) {
  Tensor dlogits = new_tensor(logits, logits.sizes());
  backward(dloss, logits, targets, largest, log_sum, ignore_index, label_smoothing, z_loss,
           valid_vocab, &dlogits, "cross_entropy_bwd");
  return dlogits;
}

void cross_entropy_bwd_inplace(const Tensor& dloss, const Tensor& logits, const Tensor& targets,
                               const Tensor& largest, const Tensor& log_sum, int64_t ignore_index,
                               double label_smoothing, double z_loss,
                               std::optional<int64_t> valid_vocab) {
  backward(dloss, logits, targets, largest, log_sum, ignore_index, label_smoothing, z_loss,
           valid_vocab, nullptr, "cross_entropy_bwd_inplace");
}

}  // namespace
}  // namespace llmjp::bindings

LLMJP_LIBRARY_IMPL(LLMJP_NAMESPACE, CPU, library) {
  library.impl("cross_entropy_fwd", TORCH_BOX(&llmjp::bindings::cross_entropy_fwd));
  library.impl("cross_entropy_bwd", TORCH_BOX(&llmjp::bindings::cross_entropy_bwd));
  library.impl("cross_entropy_bwd_inplace", TORCH_BOX(&llmjp::bindings::cross_entropy_bwd_inplace));
}
