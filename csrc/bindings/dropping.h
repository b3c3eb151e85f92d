// What ops with dropout before a residual addition are given of it.
#pragma once

#include <optional>

#include "bindings/tensor_checks.h"

namespace llmjp::bindings {

// Dropout before the residual addition: seed and offset on the tensors' device, and the share.
struct Dropping {
  std::optional<Tensor> random_state;
  float share;

  Dropping(const std::optional<Tensor>& state, double dropout_p, const Tensor& like, const char* op)
      : share(static_cast<float>(dropout_p)) {
    check(dropout_p >= 0 && dropout_p < 1, op, ": dropout_p must be at least 0 and below 1, got ",
          dropout_p, ".");
    check((dropout_p > 0) == state.has_value(), op, ": dropout_p is ", dropout_p,
          ", and random_state is ", state ? "given" : "missing", "; dropout needs both.");
    if (!state) return;
    check_vector(*state, 2, like, op, "random_state");
    check(state->scalar_type() == ScalarType::Long, op, ": random_state must be int64.");
    random_state = as_array(*state);
  }
  Dropping() : share(0.0f) {}

  const int64_t* data() const {
    return random_state ? static_cast<const int64_t*>(random_state->const_data_ptr()) : nullptr;
  }
};

}  // namespace llmjp::bindings
