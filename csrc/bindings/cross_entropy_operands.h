// What the cross-entropy ops are given, checked, as the parameters of their launchers: for the CUDA
// kernels and for the native code of CPU tensors.
#pragma once

#include <tuple>

#include "bindings/tensor_checks.h"
#include "cross_entropy/cross_entropy.h"

namespace llmjp::bindings {

using cross_entropy::CrossEntropyBackward;
using cross_entropy::CrossEntropyForward;
using cross_entropy::RowPlaces;

// Logits [..., vocab] as rows with two strides; the tensor is a copy where that does not describe
// them or the last dimension is not contiguous.
struct LogitRows {
  Tensor tensor;
  RowPlaces places;
  bool copied;
};

inline LogitRows logit_rows(const Tensor& logits) {
  const auto sizes = logits.sizes();
  const auto strides = logits.strides();
  const int last = static_cast<int>(sizes.size()) - 1;
  const int64_t vocab = sizes[last];
  // Neighbouring dimensions become one as long as one stride describes them; `counts` and `steps`
  // hold what remains, the innermost first.
  int64_t counts[2] = {1, 1};
  int64_t steps[2] = {vocab, 0};
  int used = 0;
  bool foldable = vocab == 1 || strides[last] == 1;
  for (int i = last - 1; i >= 0; --i) {
    if (sizes[i] == 1) continue;
    if (used > 0 && strides[i] == steps[used - 1] * counts[used - 1]) {
      counts[used - 1] *= sizes[i];
    } else if (used < 2) {
      counts[used] = sizes[i];
      steps[used] = strides[i];
      ++used;
    } else {
      foldable = false;
    }
  }
  if (foldable) return {logits, {counts[0], steps[0], steps[1]}, false};
  const Tensor copy = torch::stable::contiguous(logits);
  return {copy, {copy.numel() / vocab, vocab, 0}, true};
}

inline const int64_t* checked_targets(const Tensor& targets, const Tensor& logits, Tensor& kept,
                                      const char* op) {
  const auto sizes = logits.sizes();
  check(!sizes.empty(), op, ": logits must have at least one dimension, got a scalar.");
  check_tensor(targets, {sizes.data(), sizes.size() - 1}, logits, op, "targets");
  check(targets.scalar_type() == ScalarType::Long, op, ": targets must be int64, got ",
        torch::headeronly::toString(targets.scalar_type()), ".");
  kept = as_array(targets);
  return static_cast<const int64_t*>(kept.const_data_ptr());
}

inline int64_t checked_classes(const Tensor& logits, const std::optional<int64_t>& valid_vocab,
                               const char* op) {
  const int64_t vocab = logits.sizes()[logits.sizes().size() - 1];
  const int64_t classes = valid_vocab.value_or(vocab);
  check(logits.numel() == 0 || (classes >= 1 && classes <= vocab), op,
        ": valid_vocab must be from 1 to ", vocab, ", the classes of logits, got ", classes, ".");
  return classes;
}

// loss, largest and log_sum, which run(const CrossEntropyForward&) has filled.
template <class Run>
std::tuple<Tensor, Tensor, Tensor> cross_entropy_forward(
    const Tensor& logits, const Tensor& targets, int64_t ignore_index, double label_smoothing,
    double z_loss, const std::optional<int64_t>& valid_vocab, Run run) {
  constexpr const char* op = "cross_entropy_fwd";
  CrossEntropyForward params{};
  Tensor kept;
  params.type = dtype_of(logits, op, "logits");
  params.targets = checked_targets(targets, logits, kept, op);
  params.classes = checked_classes(logits, valid_vocab, op);
  const auto new_numbers = [&] { return new_tensor(targets, targets.sizes(), ScalarType::Float); };
  Tensor loss = new_numbers();
  Tensor largest = new_numbers();
  Tensor log_sum = new_numbers();
  params.rows = targets.numel();
  if (params.rows == 0) return {loss, largest, log_sum};
  check(params.classes > 0, op, ": logits must have at least one class, got ",
        describe(logits.sizes()), ".");

  const LogitRows rows = logit_rows(logits);
  params.logits = rows.tensor.const_data_ptr();
  params.places = rows.places;
  params.loss = static_cast<float*>(loss.mutable_data_ptr());
  params.largest = static_cast<float*>(largest.mutable_data_ptr());
  params.log_sum = static_cast<float*>(log_sum.mutable_data_ptr());
  params.ignore_index = ignore_index;
  params.label_smoothing = static_cast<float>(label_smoothing);
  params.z_loss = static_cast<float>(z_loss);
  run(params);
  return {loss, largest, log_sum};
}

// The gradient into dlogits, which is contiguous, or into logits itself where there is none, by
// run(const CrossEntropyBackward&).
template <class Run>
void cross_entropy_backward(const Tensor& dloss, const Tensor& logits, const Tensor& targets,
                            const Tensor& largest, const Tensor& log_sum, int64_t ignore_index,
                            double label_smoothing, double z_loss,
                            const std::optional<int64_t>& valid_vocab, Tensor* dlogits,
                            const char* op, Run run) {
  CrossEntropyBackward params{};
  Tensor kept;
  params.type = dtype_of(logits, op, "logits");
  params.targets = checked_targets(targets, logits, kept, op);
  params.classes = checked_classes(logits, valid_vocab, op);
  const auto checked_numbers = [&](const Tensor& numbers, const char* name) {
    check_tensor(numbers, targets.sizes(), logits, op, name);
    check_dtype(numbers, host::DType::kFloat32, op, name);
  };
  checked_numbers(dloss, "dloss");
  checked_numbers(largest, "largest");
  checked_numbers(log_sum, "log_sum");
  params.rows = targets.numel();
  params.vocab = logits.sizes()[logits.sizes().size() - 1];
  if (params.rows == 0 || params.vocab == 0) return;

  // A reduced loss hands every row the same number, as an expanded tensor.
  bool same = true;
  for (size_t i = 0; i < dloss.sizes().size(); ++i)
    same = same && (dloss.sizes()[i] == 1 || dloss.strides()[i] == 0);
  const Tensor dloss_array = same ? dloss : as_array(dloss);
  const Tensor largest_array = as_array(largest);
  const Tensor log_sum_array = as_array(log_sum);
  const LogitRows rows = logit_rows(logits);

  params.dloss = static_cast<const float*>(dloss_array.const_data_ptr());
  params.dloss_stride = same ? 0 : 1;
  params.logits = rows.tensor.const_data_ptr();
  params.places = rows.places;
  params.largest = static_cast<const float*>(largest_array.const_data_ptr());
  params.log_sum = static_cast<const float*>(log_sum_array.const_data_ptr());
  if (dlogits != nullptr) {
    params.dlogits = dlogits->mutable_data_ptr();
    params.gradient_places = {params.rows, params.vocab, 0};
  } else {
    params.dlogits = rows.tensor.mutable_data_ptr();
    params.gradient_places = rows.places;
  }
  params.ignore_index = ignore_index;
  params.label_smoothing = static_cast<float>(label_smoothing);
  params.z_loss = static_cast<float>(z_loss);
  run(params);
  if (dlogits == nullptr && rows.copied) {
    Tensor destination = logits;
    torch::stable::copy_(destination, rows.tensor);
  }
}

}  // namespace llmjp::bindings
