// Checks and launch of sample.
#include "sampling/sample.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "bindings/device_scope.h"
#include "bindings/library.h"
#include "bindings/tensor_checks.h"

namespace llmjp::bindings {
namespace {

using sampling::Sample;
using sampling::Setting;

Tensor sample(const Tensor& logits, const std::optional<Tensor>& previous,
              const std::optional<Tensor>& random_state, double temperature, int64_t top_k,
              double top_p, double min_p, double repetition_penalty,
              const std::optional<Tensor>& row_temperature, const std::optional<Tensor>& row_top_k,
              const std::optional<Tensor>& row_top_p, const std::optional<Tensor>& row_min_p,
              const std::optional<Tensor>& row_repetition_penalty,
              std::optional<int64_t> valid_vocab) {
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
  std::vector<Tensor> kept;  // settings that are copies
  const auto setting = [&](double number, const std::optional<Tensor>& by_row, const char* name) {
    Setting result{static_cast<float>(number), nullptr};
    if (by_row.has_value()) {
      check_vector(*by_row, params.rows, logits, op, name);
      check_dtype(*by_row, host::DType::kFloat32, op, name);
      kept.push_back(as_array(*by_row));
      result.by_row = static_cast<const float*>(kept.back().const_data_ptr());
    }
    return result;
  };
  params.temperature = setting(temperature, row_temperature, "row_temperature");
  params.top_k = setting(static_cast<double>(top_k), row_top_k, "row_top_k");
  params.top_p = setting(top_p, row_top_p, "row_top_p");
  params.min_p = setting(min_p, row_min_p, "row_min_p");
  params.repetition_penalty =
      setting(repetition_penalty, row_repetition_penalty, "row_repetition_penalty");
  Tensor state = logits;
  if (random_state.has_value()) {
    check_vector(*random_state, 2, logits, op, "random_state");
    check(random_state->scalar_type() == ScalarType::Long, op, ": random_state must be int64, got ",
          torch::headeronly::toString(random_state->scalar_type()), ".");
    state = as_array(*random_state);
    params.random_state = static_cast<const int64_t*>(state.const_data_ptr());
  } else {
    check(!row_temperature.has_value() && temperature == 0.0, op,
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
