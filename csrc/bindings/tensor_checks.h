// From torch tensors to what launchers take: checked element types, shapes and devices, and rows of
// one stride. The Python functions have checked the user's arguments already; what is checked here
// keeps a direct call of torch.ops.llmjp_ext from reading memory that is not there.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "host/dtype.h"

namespace llmjp::bindings {

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws std::runtime_error with the parts as one sentence. torch's own check macro would put the
// path of the build machine before it.
template <typename... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) [[likely]] {
    return;
  }
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw std::runtime_error(sentence.str());
}

// Sizes as a part of check's sentence. They become text only where it fails: every call passes
// here.
struct Shape {
  Sizes sizes;
};

inline Shape describe(Sizes sizes) { return {sizes}; }

inline std::ostream& operator<<(std::ostream& sentence, const Shape& shape) {
  sentence << '[';
  for (size_t i = 0; i < shape.sizes.size(); ++i) {
    sentence << (i == 0 ? "" : ", ") << shape.sizes[i];
  }
  return sentence << ']';
}

inline host::DType dtype_of(ScalarType type, const char* op, const char* name) {
  switch (type) {
    case ScalarType::Float:
      return host::DType::kFloat32;
    case ScalarType::Half:
      return host::DType::kFloat16;
    case ScalarType::BFloat16:
      return host::DType::kBFloat16;
    default:
      check(false, op, ": ", name, " must be float32, float16 or bfloat16, got ",
            torch::headeronly::toString(type), ".");
      return host::DType::kFloat32;
  }
}

inline host::DType dtype_of(const Tensor& tensor, const char* op, const char* name) {
  return dtype_of(tensor.scalar_type(), op, name);
}

inline void check_dtype(const Tensor& tensor, host::DType expected, const char* op,
                        const char* name) {
  const host::DType type = dtype_of(tensor, op, name);
  check(type == expected, op, ": ", name, " must be ", host::name(expected), " here, got ",
        host::name(type), ".");
}

// `tensor` must have these sizes, and live where `like` does.
inline void check_tensor(const Tensor& tensor, Sizes sizes, const Tensor& like, const char* op,
                         const char* name) {
  const auto got = tensor.sizes();
  bool same = got.size() == sizes.size();
  for (size_t i = 0; same && i < sizes.size(); ++i) {
    same = got[i] == sizes[i];
  }
  check(same, op, ": ", name, " must have shape ", describe(sizes), ", got ", describe(got), ".");
  check(tensor.is_cuda() == like.is_cuda() && tensor.get_device_index() == like.get_device_index(),
        op, ": ", name, " must be on the device of the other tensors.");
}

inline void check_vector(const Tensor& tensor, int64_t length, const Tensor& like, const char* op,
                         const char* name) {
  check_tensor(tensor, {&length, 1}, like, op, name);
}

// A tensor seen as rows of its last dimension. Holds the tensor, which may be a copy.
struct Rows {
  Tensor tensor;
  int64_t rows;
  int64_t width;
  int64_t stride;  // elements from one row to the next

  const void* data() const { return tensor.const_data_ptr(); }
};

// Leading dimensions are merged when one stride describes them all; only otherwise, or when the
// last dimension is not contiguous, is the tensor copied.
inline Rows rows_of(const Tensor& tensor, const char* op, const char* name) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  check(!sizes.empty(), op, ": ", name, " must have at least one dimension, got a scalar.");
  const int last = static_cast<int>(sizes.size()) - 1;
  Rows result{tensor, 1, sizes[last], 0};
  bool mergeable = sizes[last] <= 1 || strides[last] == 1;
  bool first = true;
  for (int i = last - 1; i >= 0; --i) {
    if (sizes[i] != 1) {
      if (first) {
        result.stride = strides[i];
        first = false;
      } else {
        mergeable = mergeable && strides[i] == result.stride * result.rows;
      }
    }
    result.rows *= sizes[i];
  }
  if (first) {
    result.stride = result.width;
  }
  if (!mergeable && result.rows * result.width != 0) {
    result.tensor = torch::stable::contiguous(tensor);
    result.stride = result.width;
  }
  return result;
}

// The launchers read weights, statistics and the like as plain arrays.
inline Tensor as_array(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// An uninitialised tensor on the device of `like`.
inline Tensor new_tensor(const Tensor& like, Sizes sizes, ScalarType type) {
#ifdef LLMJP_SIMT
  // Filled where algorithms must be deterministic: so tests see what a kernel leaves unwritten.
  return torch::stable::new_empty(like, sizes, type);
#else
  // Without the search for an op by name that the call of one costs, a microsecond.
  constexpr size_t kMostDimensions = 64;
  check(sizes.size() <= kMostDimensions, "llmjp_ext: tensors have at most ", kMostDimensions,
        " dimensions, got ", sizes.size(), ".");
  int64_t strides[kMostDimensions];
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(1, sizes[i]);
  }
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  const auto type_number = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                  strides, type_number, device_type,
                                                  like.get_device_index(), &handle));
  return Tensor(handle);
#endif
}

// Of the type of `like`.
inline Tensor new_tensor(const Tensor& like, Sizes sizes) {
  return new_tensor(like, sizes, like.scalar_type());
}

inline Tensor new_vector(const Tensor& like, int64_t length, ScalarType type) {
  return new_tensor(like, {&length, 1}, type);
}

inline Tensor new_zero_vector(const Tensor& like, int64_t length, ScalarType type) {
  return torch::stable::new_zeros(like, {&length, 1}, type);
}

}  // namespace llmjp::bindings
