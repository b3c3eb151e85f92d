// Cross-entropy ops: outputs and the launch.
#include "cross_entropy/cross_entropy.h"

#include <tuple>

#include "bindings/cross_entropy_operands.h"
#include "bindings/device_scope.h"
#include "bindings/library.h"
#include "bindings/tensor_checks.h"

namespace llmjp::bindings {
namespace {

std::tuple<Tensor, Tensor, Tensor> cross_entropy_fwd(const Tensor& logits, const Tensor& targets,
                                                     int64_t ignore_index, double label_smoothing,
                                                     double z_loss,
                                                     std::optional<int64_t> valid_vocab) {
  const DeviceScope scope(logits);
  return cross_entropy_forward(logits, targets, ignore_index, label_smoothing, z_loss, valid_vocab,
                               [&](const CrossEntropyForward& params) {
                                 cross_entropy::cross_entropy_forward(params, scope.stream());
                               });
}

void backward(const Tensor& dloss, const Tensor& logits, const Tensor& targets,
              const Tensor& largest, const Tensor& log_sum, int64_t ignore_index,
              double label_smoothing, double z_loss, std::optional<int64_t> valid_vocab,
              Tensor* dlogits, const char* op) {
  const DeviceScope scope(logits);
  cross_entropy_backward(dloss, logits, targets, largest, log_sum, ignore_index, label_smoothing,
                         z_loss, valid_vocab, dlogits, op, [&](const CrossEntropyBackward& params) {
                           cross_entropy::cross_entropy_backward(params, scope.stream());
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

LLMJP_LIBRARY_IMPL(LLMJP_NAMESPACE, LLMJP_DISPATCH_KEY, library) {
  library.impl("cross_entropy_fwd", TORCH_BOX(&llmjp::bindings::cross_entropy_fwd));
  library.impl("cross_entropy_bwd", TORCH_BOX(&llmjp::bindings::cross_entropy_bwd));
  library.impl("cross_entropy_bwd_inplace", TORCH_BOX(&llmjp::bindings::cross_entropy_bwd_inplace));
}
