// What the rotary ops are given, checked, as the parameters of their launcher, which `run` takes:
// for the CUDA kernel and for the native code of CPU tensors.
#pragma once

#include <tuple>

#include "bindings/tensor_checks.h"
#include "rotary/rotary.h"

namespace llmjp::bindings {

using rotary::Operand;
using rotary::RotaryForward;
using rotary::Strides;

inline Strides strides_of(const Tensor& heads) {
  const auto strides = heads.strides();
  return {strides[0], strides[1], strides[2]};
}

inline bool has_contiguous_heads(const Tensor& x) {
  return x.sizes()[3] <= 1 || x.strides()[3] == 1;
}

// q and k by shape and type, and the angles; what they hold is kept alive by the caller.
inline RotaryForward checked(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                             const char* op) {
  RotaryForward params{};
  params.type = dtype_of(q, op, "q");
  check_dtype(k, params.type, op, "k");
  check(q.sizes().size() == 4, op, ": q must have shape [batch, tokens, heads, head_dim], got ",
        describe(q.sizes()), ".");
  check(k.sizes().size() == 4, op, ": k must have shape [batch, tokens, heads, head_dim], got ",
        describe(k.sizes()), ".");
  params.batch = q.sizes()[0];
  params.tokens = q.sizes()[1];
  params.q.heads = q.sizes()[2];
  params.k.heads = k.sizes()[2];
  params.head_dim = q.sizes()[3];
  const int64_t key_sizes[] = {params.batch, params.tokens, params.k.heads, params.head_dim};
  check_tensor(k, {key_sizes, 4}, q, op, "k");
  params.angle_type = dtype_of(cos, op, "cos");
  check_dtype(sin, params.angle_type, op, "sin");
  const auto sizes = cos.sizes();
  const bool shared = sizes.size() == 2;
  check(shared || sizes.size() == 3, op,
        ": cos must have shape [tokens, pairs] or [batch, tokens, pairs], got ", describe(sizes),
        ".");
  params.pairs = sizes[sizes.size() - 1];
  const int64_t angle_sizes[] = {params.batch, params.tokens, params.pairs};
  check_tensor(cos,
               shared ? torch::headeronly::IntHeaderOnlyArrayRef(angle_sizes + 1, 2)
                      : torch::headeronly::IntHeaderOnlyArrayRef(angle_sizes, 3),
               q, op, "cos");
  check_tensor(sin, sizes, q, op, "sin");
  check(2 * params.pairs <= params.head_dim, op, ": cos holds ", params.pairs,
        " pairs, more than a head_dim of ", params.head_dim, " has.");
  params.angle_batch_stride = shared ? 0 : params.tokens * params.pairs;
  return params;
}

inline Operand operand(const Tensor& x, const Tensor& y) {
  return {x.const_data_ptr(), y.mutable_data_ptr(), x.sizes()[2], strides_of(x), strides_of(y)};
}

template <class Run>
std::tuple<Tensor, Tensor> rotary_copied(const Tensor& q, const Tensor& k, const Tensor& cos,
                                         const Tensor& sin, bool interleaved, bool inverse,
                                         Run run) {
  constexpr const char* op = "rotary";
  RotaryForward params = checked(q, k, cos, sin, op);
  const Tensor kept[] = {has_contiguous_heads(q) ? q : as_array(q),
                         has_contiguous_heads(k) ? k : as_array(k), as_array(cos), as_array(sin)};
  Tensor turned_q = new_tensor(q, q.sizes());
  Tensor turned_k = new_tensor(k, k.sizes());
  params.q = operand(kept[0], turned_q);
  params.k = operand(kept[1], turned_k);
  params.cos = kept[2].const_data_ptr();
  params.sin = kept[3].const_data_ptr();
  params.interleaved = interleaved;
  params.inverse = inverse;
  run(params);
  return {turned_q, turned_k};
}

template <class Run>
void rotary_overwritten(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                        bool interleaved, bool inverse, Run run) {
  constexpr const char* op = "rotary_inplace";
  RotaryForward params = checked(q, k, cos, sin, op);
  check(has_contiguous_heads(q) && has_contiguous_heads(k), op,
        ": q and k must have a contiguous last dimension.");
  const Tensor kept[] = {as_array(cos), as_array(sin)};
  params.q = operand(q, q);
  params.k = operand(k, k);
  params.cos = kept[0].const_data_ptr();
  params.sin = kept[1].const_data_ptr();
  params.interleaved = interleaved;
  params.inverse = inverse;
  params.in_place = true;
  run(params);
}

}  // namespace llmjp::bindings
