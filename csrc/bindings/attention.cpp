// Attention ops: checks, operands as the kernels want them, outputs, and the launch.
#include "attention/attention.h"

#include <cmath>
#include <limits>
#include <tuple>

#include "bindings/attention_operands.h"
#include "bindings/device_scope.h"
#include "bindings/library.h"
#include "bindings/tensor_checks.h"

namespace llmjp::bindings {
namespace {

using attention::AttentionBackward;
using attention::AttentionForward;
using attention::AttentionProblem;

// int64 {seed, offset}; nothing where there is no dropout.
std::optional<Tensor> checked_random_state(const std::optional<Tensor>& state, double dropout_p,
                                           const Tensor& q, const char* op) {
  if (dropout_p <= 0) {
    return std::nullopt;
  }
  check(state.has_value(), op, ": dropout_p needs random_state.");
  check_vector(*state, 2, q, op, "random_state");
  check(state->scalar_type() == ScalarType::Long, op, ": random_state must be int64, got ",
        torch::headeronly::toString(state->scalar_type()), ".");
  return as_array(*state);
}

void check_shapes(const Tensor& q, const Tensor& k, const Tensor& v, const char* op) {
  check(q.sizes().size() == 4 && k.sizes().size() == 4, op,
        ": q and k must be [batch, tokens, heads, head_dim], got ", describe(q.sizes()), " and ",
        describe(k.sizes()), ".");
  const int64_t k_sizes[] = {q.sizes()[0], k.sizes()[1], k.sizes()[2], q.sizes()[3]};
  check_tensor(k, {k_sizes, 4}, q, op, "k");
  check_tensor(v, {k_sizes, 4}, q, op, "v");
  check(k_sizes[2] > 0 && q.sizes()[2] % k_sizes[2] == 0, op,
        ": q's heads must be a multiple of k's, got ", q.sizes()[2], " and ", k_sizes[2], ".");
  check(q.sizes()[0] * q.sizes()[2] <= std::numeric_limits<int32_t>::max(), op,
        ": batch times heads must be below 2147483648, got ", q.sizes()[0], " and ", q.sizes()[2],
        ".");
}

// The options of an op, and of its tensors what both directions need. Holds the tensors.
struct Problem {
  AttentionProblem params{};
  std::optional<Tensor> random, starts, ends, slopes;

  Problem(const Tensor& q, const Tensor& k, const Tensor& v,
          const std::optional<Tensor>& alibi_slopes, const std::optional<Tensor>& starts_k,
          const std::optional<Tensor>& seqlens_k, const std::optional<Tensor>& random_state,
          std::optional<double> scale, int64_t window_left, int64_t window_right, double softcap,
          double dropout_p, const char* op) {
    check_shapes(q, k, v, op);
    params.type = dtype_of(q, op, "q");
    check(params.type != host::DType::kFloat32, op,
          ": q must be float16 or bfloat16 on CUDA, got float32.");
    check_dtype(k, params.type, op, "k");
    check_dtype(v, params.type, op, "v");
    const auto sizes = q.sizes();
    const int64_t width = sizes[3];
    check(width >= 1 && width <= attention::kLargestHeadDim, op, ": head_dim must be 1 to ",
          attention::kLargestHeadDim, " on CUDA, got ", width, ".");
    check(softcap >= 0, op, ": softcap must not be negative, got ", softcap, ".");
    check(dropout_p >= 0 && dropout_p < 1, op, ": dropout_p must be at least 0 and below 1, got ",
          dropout_p, ".");
    random = checked_random_state(random_state, dropout_p, q, op);
    starts = checked_lengths(starts_k, q, op, "starts_k");
    ends = checked_lengths(seqlens_k, q, op, "seqlens_k");
    slopes = checked_slopes(alibi_slopes, sizes[0], sizes[2], q, op);
    params.batch = checked_length(sizes[0], op, "batch");
    params.tokens = checked_length(sizes[1], op, "tokens");
    params.keys = checked_length(k.sizes()[1], op, "keys");
    params.heads = checked_length(sizes[2], op, "heads");
    params.kv_heads = static_cast<int>(k.sizes()[2]);
    params.head_dim = static_cast<int>((width + kChunk - 1) / kChunk * kChunk);
    params.window_left = checked_window(window_left, op, "window_left");
    params.window_right = checked_window(window_right, op, "window_right");
    const double default_scale = 1.0 / std::sqrt(static_cast<double>(width));
    params.scale = static_cast<float>(scale.value_or(default_scale));
    params.softcap = static_cast<float>(softcap);
    params.dropout = static_cast<float>(dropout_p);
    params.alibi = data_or_null<float>(slopes);
    params.alibi_batch_stride = slopes && slopes->sizes().size() == 2 ? params.heads : 0;
    params.starts_k = data_or_null<int32_t>(starts);
    params.seqlens_k = data_or_null<int32_t>(ends);
    params.random = data_or_null<int64_t>(random);
  }

  void set_operands(const Operand& q, const Operand& k, const Operand& v) {
    params.q = q.tensor.const_data_ptr();
    params.k = k.tensor.const_data_ptr();
    params.v = v.tensor.const_data_ptr();
    params.q_strides = q.strides;
    params.k_strides = k.strides;
    params.v_strides = v.strides;
  }
};

std::tuple<Tensor, Tensor> attention_fwd(const Tensor& q, const Tensor& k, const Tensor& v,
                                         const std::optional<Tensor>& alibi_slopes,
                                         const std::optional<Tensor>& starts_k,
                                         const std::optional<Tensor>& seqlens_k,
                                         const std::optional<Tensor>& random_state,
                                         std::optional<double> scale, int64_t window_left,
                                         int64_t window_right, double softcap, double dropout_p) {
  const DeviceScope scope(q);
  Problem problem(q, k, v, alibi_slopes, starts_k, seqlens_k, random_state, scale, window_left,
                  window_right, softcap, dropout_p, "attention_fwd");
  const auto sizes = q.sizes();
  const int64_t lse_sizes[] = {sizes[0], sizes[2], sizes[1]};
  Tensor lse = torch::stable::new_empty(q, {lse_sizes, 3}, ScalarType::Float);
  if (q.numel() == 0) {
    return {torch::stable::new_empty(q, sizes), lse};
  }
  const int64_t padded_width = problem.params.head_dim;
  const Operand queries(q, padded_width);
  const Operand keys(k, padded_width);
  const Operand values(v, padded_width);
  problem.set_operands(queries, keys, values);
  Tensor out = new_output(q, padded_width);
  attention::attention_forward({problem.params, out.mutable_data_ptr(),
                                static_cast<float*>(lse.mutable_data_ptr()), nullptr},
                               scope.stream());
  return {without_padding(out, sizes[3]), lse};
}

// What attention_bwd and attention_varlen_bwd are given beside the problem, of four dimensions.
struct Gradients {
  const Tensor& dout;
  const std::optional<Tensor>& dlse;
  const Tensor& out;
  const Tensor& lse;
  torch::headeronly::IntHeaderOnlyArrayRef lse_sizes;
  bool deterministic;
};

std::tuple<Tensor, Tensor, Tensor> backward(Problem& problem, const Tensor& q, const Tensor& k,
                                            const Tensor& v, const Gradients& given,
                                            const DeviceScope& scope, const char* op) {
  const auto sizes = q.sizes();
  const auto check_output = [&](const Tensor& tensor, const char* name) {
    check_tensor(tensor, sizes, q, op, name);
    check_dtype(tensor, problem.params.type, op, name);
  };
  check_output(given.dout, "dout");
  check_output(given.out, "out");
  const auto checked_lse = [&](const Tensor& tensor, const char* name) {
    check_tensor(tensor, given.lse_sizes, q, op, name);
    check_dtype(tensor, host::DType::kFloat32, op, name);
    return as_array(tensor);
  };
  const Tensor lse_array = checked_lse(given.lse, "lse");
  std::optional<Tensor> dlse_array;
  if (given.dlse) dlse_array = checked_lse(*given.dlse, "dlse");
  if (q.numel() == 0 || k.numel() == 0) {
    return {torch::stable::new_zeros(q, sizes), torch::stable::new_zeros(k, k.sizes()),
            torch::stable::new_zeros(v, v.sizes())};
  }
  const int64_t padded_width = problem.params.head_dim;
  const Operand queries(q, padded_width);
  const Operand keys(k, padded_width);
  const Operand values(v, padded_width);
  const Operand dout_rows(given.dout, padded_width);
  const Operand out_rows(given.out, padded_width);
  problem.set_operands(queries, keys, values);
  Tensor dq = new_output(q, padded_width);
  Tensor dk = new_output(k, padded_width);
  Tensor dv = new_output(v, padded_width);

  AttentionBackward params{};
  static_cast<AttentionProblem&>(params) = problem.params;
  params.dout = dout_rows.tensor.const_data_ptr();
  params.out = out_rows.tensor.const_data_ptr();
  params.lse = static_cast<const float*>(lse_array.const_data_ptr());
  params.dlse = data_or_null<float>(dlse_array);
  params.dq = dq.mutable_data_ptr();
  params.dk = dk.mutable_data_ptr();
  params.dv = dv.mutable_data_ptr();
  params.dout_strides = dout_rows.strides;
  params.out_strides = out_rows.strides;
  params.deterministic = given.deterministic;
  const Tensor workspace =
      new_vector(q, attention::attention_backward_workspace(params), ScalarType::Float);
  params.workspace = static_cast<float*>(workspace.mutable_data_ptr());
  attention::attention_backward(params, scope.stream());
  const int64_t width = sizes[3];
  return {without_padding(dq, width), without_padding(dk, width), without_padding(dv, width)};
}

std::tuple<Tensor, Tensor, Tensor> attention_bwd(
    const Tensor& dout, const std::optional<Tensor>& dlse, const Tensor& q, const Tensor& k,
    const Tensor& v, const Tensor& out, const Tensor& lse,
    const std::optional<Tensor>& alibi_slopes, const std::optional<Tensor>& starts_k,
    const std::optional<Tensor>& seqlens_k, const std::optional<Tensor>& random_state,
    std::optional<double> scale, int64_t window_left, int64_t window_right, double softcap,
    double dropout_p, bool deterministic) {
  constexpr const char* op = "attention_bwd";
  const DeviceScope scope(q);
  Problem problem(q, k, v, alibi_slopes, starts_k, seqlens_k, random_state, scale, window_left,
                  window_right, softcap, dropout_p, op);
  const int64_t lse_sizes[] = {q.sizes()[0], q.sizes()[2], q.sizes()[1]};
  return backward(problem, q, k, v, {dout, dlse, out, lse, {lse_sizes, 3}, deterministic}, scope,
                  op);
}

// Packed rows, [total, heads, head_dim], as a batch of one.
Tensor one_batch(const Tensor& rows) {
  using torch::stable::detail::from;
  std::array<StableIValue, 2> stack{from(rows), from(int64_t{0})};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::unsqueeze", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// The way back.
Tensor packed_rows(const Tensor& batch) {
  using torch::stable::detail::from;
  std::array<StableIValue, 2> stack{from(batch), from(int64_t{0})};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::squeeze", "dim", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// int32 [batch + 1] on q's device, as an array.
Tensor checked_boundaries(const Tensor& cu_seqlens, int64_t batch, const Tensor& q, const char* op,
                          const char* name) {
  check_vector(cu_seqlens, batch + 1, q, op, name);
  check(cu_seqlens.scalar_type() == ScalarType::Int, op, ": ", name, " must be int32, got ",
        torch::headeronly::toString(cu_seqlens.scalar_type()), ".");
  return as_array(cu_seqlens);
}

// The same as Problem for packed sequences.
struct PackedProblem {
  Tensor q, k, v;  // batches of one
  Problem problem;
  std::optional<Tensor> boundaries_q, boundaries_k, slopes;

  PackedProblem(const Tensor& packed_q, const Tensor& packed_k, const Tensor& packed_v,
                const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                const std::optional<Tensor>& alibi_slopes,
                const std::optional<Tensor>& random_state, int64_t max_seqlen_q,
                int64_t max_seqlen_k, std::optional<double> scale, int64_t window_left,
                int64_t window_right, double softcap, double dropout_p, const char* op)
      : q(checked_rows(packed_q, op, "q")),
        k(checked_rows(packed_k, op, "k")),
        v(checked_rows(packed_v, op, "v")),
        problem(q, k, v, std::nullopt, std::nullopt, std::nullopt, random_state, scale, window_left,
                window_right, softcap, dropout_p, op) {
    AttentionProblem& params = problem.params;
    const auto bounds = cu_seqlens_q.sizes();
    check(bounds.size() == 1 && bounds[0] >= 1, op,
          ": cu_seqlens_q must be [sequences + 1], got shape ", describe(bounds), ".");
    const int64_t batch = bounds[0] - 1;
    boundaries_q = checked_boundaries(cu_seqlens_q, batch, q, op, "cu_seqlens_q");
    boundaries_k = checked_boundaries(cu_seqlens_k, batch, q, op, "cu_seqlens_k");
    check((batch + 2) * params.heads <= std::numeric_limits<int32_t>::max(), op,
          ": sequences times heads must be below 2147483648, got ", batch, " and ", params.heads,
          ".");
    params.batch = static_cast<int>(batch);
    params.cu_seqlens_q = data_or_null<int32_t>(boundaries_q);
    params.cu_seqlens_k = data_or_null<int32_t>(boundaries_k);
    params.longest_q = checked_longest(max_seqlen_q, op, "max_seqlen_q");
    params.longest_k = checked_longest(max_seqlen_k, op, "max_seqlen_k");
    slopes = checked_slopes(alibi_slopes, batch, params.heads, q, op);
    params.alibi = data_or_null<float>(slopes);
    params.alibi_batch_stride = slopes && slopes->sizes().size() == 2 ? params.heads : 0;
  }

  // Rows of no sequence have places in lse too.
  std::array<int64_t, 2> lse_sizes() const { return {q.sizes()[2], q.sizes()[1]}; }

  static Tensor checked_rows(const Tensor& rows, const char* op, const char* name) {
    check(rows.sizes().size() == 3, op, ": ", name, " must be [total, heads, head_dim], got ",
          describe(rows.sizes()), ".");
    return one_batch(rows);
  }

 private:
  static int checked_longest(int64_t length, const char* op, const char* name) {
    check(length >= 0, op, ": ", name, " must not be negative, got ", length, ".");
    return static_cast<int>(std::min(length, attention::kLargestLength));
  }
};

std::tuple<Tensor, Tensor> attention_varlen_fwd(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens_q,
    const Tensor& cu_seqlens_k, const std::optional<Tensor>& alibi_slopes,
    const std::optional<Tensor>& random_state, int64_t max_seqlen_q, int64_t max_seqlen_k,
    std::optional<double> scale, int64_t window_left, int64_t window_right, double softcap,
    double dropout_p) {
  const DeviceScope scope(q);
  PackedProblem packed(q, k, v, cu_seqlens_q, cu_seqlens_k, alibi_slopes, random_state,
                       max_seqlen_q, max_seqlen_k, scale, window_left, window_right, softcap,
                       dropout_p, "attention_varlen_fwd");
  AttentionProblem& params = packed.problem.params;
  const auto lse_sizes = packed.lse_sizes();
  Tensor lse = torch::stable::new_empty(q, {lse_sizes.data(), 2}, ScalarType::Float);
  if (q.numel() == 0) {
    return {torch::stable::new_empty(q, q.sizes()), lse};
  }
  const Operand queries(packed.q, params.head_dim);
  const Operand keys(packed.k, params.head_dim);
  const Operand values(packed.v, params.head_dim);
  packed.problem.set_operands(queries, keys, values);
  Tensor out = new_output(packed.q, params.head_dim);
  const Tensor workspace =
      new_vector(q, attention::attention_forward_workspace(params), ScalarType::Int);
  attention::attention_forward(
      {params, out.mutable_data_ptr(), static_cast<float*>(lse.mutable_data_ptr()),
       static_cast<int32_t*>(workspace.mutable_data_ptr())},
      scope.stream());
  return {packed_rows(without_padding(out, q.sizes()[2])), lse};
}

std::tuple<Tensor, Tensor, Tensor> attention_varlen_bwd(
    const Tensor& dout, const std::optional<Tensor>& dlse, const Tensor& q, const Tensor& k,
    const Tensor& v, const Tensor& out, const Tensor& lse, const Tensor& cu_seqlens_q,
    const Tensor& cu_seqlens_k, const std::optional<Tensor>& alibi_slopes,
    const std::optional<Tensor>& random_state, int64_t max_seqlen_q, int64_t max_seqlen_k,
    std::optional<double> scale, int64_t window_left, int64_t window_right, double softcap,
    double dropout_p, bool deterministic) {
  constexpr const char* op = "attention_varlen_bwd";
  const DeviceScope scope(q);
  PackedProblem packed(q, k, v, cu_seqlens_q, cu_seqlens_k, alibi_slopes, random_state,
                       max_seqlen_q, max_seqlen_k, scale, window_left, window_right, softcap,
                       dropout_p, op);
  const auto lse_sizes = packed.lse_sizes();
  const auto [dq, dk, dv] = backward(packed.problem, packed.q, packed.k, packed.v,
                                     {PackedProblem::checked_rows(dout, op, "dout"),
                                      dlse,
                                      PackedProblem::checked_rows(out, op, "out"),
                                      lse,
                                      {lse_sizes.data(), 2},
                                      deterministic},
                                     scope, op);
  return {packed_rows(dq), packed_rows(dk), packed_rows(dv)};
}

}  // namespace
}  // namespace llmjp::bindings

LLMJP_LIBRARY_IMPL(LLMJP_NAMESPACE, LLMJP_DISPATCH_KEY, library) {
  library.impl("attention_fwd", TORCH_BOX(&llmjp::bindings::attention_fwd));
  library.impl("attention_bwd", TORCH_BOX(&llmjp::bindings::attention_bwd));
  library.impl("attention_varlen_fwd", TORCH_BOX(&llmjp::bindings::attention_varlen_fwd));
  library.impl("attention_varlen_bwd", TORCH_BOX(&llmjp::bindings::attention_varlen_bwd));
}
