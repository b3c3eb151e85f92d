// Checks and launch of sample.
#include "sampling/sample.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "bindings/device_scope.h"
#include "bindings/library.h"
#include "bindings/tensor_checks.h"

namespace llmjp::bindings {
namespace {

using sampling::Sample;
using sampling::SampleOptions;

Tensor sample(const Tensor& logits, const std::optional<Tensor>& previous,
              const std::optional<Tensor>& random_state, const std::optional<Tensor>& row_options,
              double temperature, int64_t top_k, double top_p, double min_p,
              double repetition_penalty, std::optional<int64_t> valid_vocab) {
  constexpr const char* op = "sample";
  const DeviceScope scope(logits);
  Sample params{};
  params.type = dtype_of(logits, op, "logits");
  check(logits.sizes().size() == 2, op, ": logits must be [rows, vocab], got ",
        describe(logits.sizes()), ".");
  params.rows = logits.sizes()[0];
  const int64_t vocab = logits.sizes()[1];
  Tensor ids = new_vector(logits, params.rows, ScalarType::Long);
  if (params.rows == 0) return ids;
  params.classes = valid_vocab.value_or(vocab);
  check(params.classes >= 1 && params.classes <= vocab, op, ": valid_vocab must be from 1 to ",
        vocab, ", the ids of logits, got ", params.classes, ".");

  const Rows rows = rows_of(logits, op, "logits");
  params.logits = rows.data();
  params.row_stride = rows.stride;
  Rows previous_rows{logits, 0, 0, 0};
  if (previous.has_value() && previous->numel() > 0) {
    const auto sizes = previous->sizes();
    const int64_t expected[] = {params.rows, sizes[sizes.size() - 1]};
    check_tensor(*previous, {expected, 2}, logits, op, "previous");
    check(previous->scalar_type() == ScalarType::Long, op, ": previous must be int64, got ",
          torch::headeronly::toString(previous->scalar_type()), ".");
    previous_rows = rows_of(*previous, op, "previous");
    params.previous = static_cast<const int64_t*>(previous_rows.data());
    params.previous_stride = previous_rows.stride;
    params.previous_length = previous_rows.width;
  }
  params.options = {static_cast<float>(temperature), static_cast<float>(top_k),
                    static_cast<float>(top_p), static_cast<float>(min_p),
                    static_cast<float>(repetition_penalty)};
  Tensor by_row = logits;
  if (row_options.has_value()) {
    static_assert(sizeof(SampleOptions) == 5 * sizeof(float));
    const int64_t expected[] = {params.rows, 5};
    check_tensor(*row_options, {expected, 2}, logits, op, "row_options");
    check_dtype(*row_options, host::DType::kFloat32, op, "row_options");
    by_row = as_array(*row_options);
    params.by_row = static_cast<const SampleOptions*>(by_row.const_data_ptr());
  }
  Tensor state = logits;
  if (random_state.has_value()) {
    check_vector(*random_state, 2, logits, op, "random_state");
    check(random_state->scalar_type() == ScalarType::Long, op, ": random_state must be int64, got ",
          torch::headeronly::toString(random_state->scalar_type()), ".");
    state = as_array(*random_state);
    params.random_state = static_cast<const int64_t*>(state.const_data_ptr());
  } else {
    check(!row_options.has_value() && temperature == 0.0, op,
          ": random_state may be missing only where temperature is the number 0.");
  }
  params.ids = static_cast<int64_t*>(ids.mutable_data_ptr());
  sampling::sample(params, scope.stream());
  return ids;
}

}  // namespace
}  // namespace llmjp::bindings

LLMJP_LIBRARY_IMPL(LLMJP_NAMESPACE, LLMJP_DISPATCH_KEY, library) {
  library.impl("sample", TORCH_BOX(&llmjp::bindings::sample));
}
