// What the attention ops' bindings share: operands as the kernels want them, and checked options.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>

#include "attention/attention.h"
#include "bindings/tensor_checks.h"

namespace llmjp::bindings {

using attention::Strides;

constexpr int64_t kChunk = 8;  // elements of a 16-byte piece

// The first elements of the last dimension. By the dispatcher: torch::stable::narrow calls a
// function outside the stable C interface.
inline Tensor narrowed(const Tensor& tensor, int64_t width) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(tensor), from(int64_t{3}), from(int64_t{0}), from(width)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::narrow", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// q, k or v. Holds the tensor, which is a copy only where rows do not begin at multiples of 16
// bytes, the last dimension is not contiguous, or its width is no multiple of 8.
struct Operand {
  Tensor tensor;
  Strides strides;

  Operand(const Tensor& given, int64_t padded_width) : tensor(given), strides(strides_of(given)) {
    const auto sizes = given.sizes();
    const bool contiguous = sizes[3] <= 1 || given.strides()[3] == 1;
    const auto address = reinterpret_cast<uintptr_t>(given.const_data_ptr());
    const bool aligned = address % 16 == 0 && strides.batch % kChunk == 0 &&
                         strides.token % kChunk == 0 && strides.head % kChunk == 0;
    if ((contiguous && aligned && sizes[3] == padded_width) || given.numel() == 0) {
      return;
    }
    const int64_t padded[] = {sizes[0], sizes[1], sizes[2], padded_width};
    tensor = torch::stable::new_zeros(given, {padded, 4});
    Tensor target = narrowed(tensor, sizes[3]);
    torch::stable::copy_(target, given);
    strides = strides_of(tensor);
  }

  // A dimension of one element may have any stride, and none is needed.
  static Strides strides_of(const Tensor& tensor) {
    const auto sizes = tensor.sizes();
    const auto strides = tensor.strides();
    const auto of = [&](int dimension) { return sizes[dimension] <= 1 ? 0 : strides[dimension]; };
    return {of(0), of(1), of(2)};
  }
};

inline int checked_length(int64_t length, const char* op, const char* name) {
  check(length <= attention::kLargestLength, op, ": ", name, " must be at most ",
        attention::kLargestLength, ", got ", length, ".");
  return static_cast<int>(length);
}

inline int checked_window(int64_t bound, const char* op, const char* name) {
  check(bound >= -1, op, ": ", name, " must be at least -1, got ", bound, ".");
  return static_cast<int>(std::min(bound, attention::kLargestLength));
}

// int32 [batch] on q's device, as an array.
inline std::optional<Tensor> checked_lengths(const std::optional<Tensor>& lengths, const Tensor& q,
                                             const char* op, const char* name) {
  if (!lengths) {
    return std::nullopt;
  }
  check_vector(*lengths, q.sizes()[0], q, op, name);
  check(lengths->scalar_type() == ScalarType::Int, op, ": ", name, " must be int32, got ",
        torch::headeronly::toString(lengths->scalar_type()), ".");
  return as_array(*lengths);
}

// float32 [heads] or [batch, heads] on q's device, as an array.
inline std::optional<Tensor> checked_slopes(const std::optional<Tensor>& slopes, int64_t batch,
                                            int64_t heads, const Tensor& q, const char* op) {
  if (!slopes) {
    return std::nullopt;
  }
  const int64_t sizes[] = {batch, heads};
  const bool shared = slopes->sizes().size() == 1;
  check_tensor(*slopes, {shared ? sizes + 1 : sizes, shared ? size_t{1} : size_t{2}}, q, op,
               "alibi_slopes");
  check_dtype(*slopes, host::DType::kFloat32, op, "alibi_slopes");
  return as_array(*slopes);
}

template <class T>
const T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

// Room for an output as the kernels write it: contiguous, head_dim a multiple of 8.
inline Tensor new_output(const Tensor& like, int64_t padded_width) {
  const auto sizes = like.sizes();
  const int64_t padded[] = {sizes[0], sizes[1], sizes[2], padded_width};
  return torch::stable::new_empty(like, {padded, 4});
}

// The output as its op returns it.
inline Tensor without_padding(const Tensor& output, int64_t width) {
  return output.sizes()[3] == width ? output : torch::stable::contiguous(narrowed(output, width));
}

}  // namespace llmjp::bindings
