// Schemas of all ops. Implementations: one file a family beside this one for CUDA, llmjp_ext/ops/
// for the CPU.
#include "bindings/library.h"

LLMJP_LIBRARY(LLMJP_NAMESPACE, library) {
  // JSON text with the facts of this build.
  library.def("build_info() -> str");

  // y = LayerNorm(x); mean and rstd are fp32 [rows].
  library.def(
      "layer_norm_fwd(Tensor x, Tensor weight, Tensor? bias, float eps) -> (Tensor y, Tensor mean, "
      "Tensor rstd)");

  // r = dropout(x) + residual, y = LayerNorm(r); random_state, int64 [2], is seed and offset of
  // dropout, missing where dropout_p is 0.
  library.def(
      "add_layer_norm_fwd(Tensor x, Tensor residual, Tensor weight, Tensor? bias, Tensor? "
      "random_state, float eps, float dropout_p)"
      " -> (Tensor y, Tensor r, Tensor mean, Tensor rstd)");

  // Gradients of both; dr is the gradient that reaches r itself, dr_sum all of r's and so the
  // residual's. dx is empty without dropout: it is dr_sum then. dbias is empty without has_bias.
  library.def(
      "layer_norm_bwd(Tensor dy, Tensor? dr, Tensor r, Tensor weight, Tensor mean, Tensor rstd, "
      "Tensor? random_state, float dropout_p, bool has_bias)"
      " -> (Tensor dr_sum, Tensor dx, Tensor dweight, Tensor dbias)");

  // y = RMSNorm(x); rstd is fp32 [rows].
  library.def("rms_norm_fwd(Tensor x, Tensor weight, float eps) -> (Tensor y, Tensor rstd)");

  // r = dropout(x) + residual, y = RMSNorm(r).
  library.def(
      "add_rms_norm_fwd(Tensor x, Tensor residual, Tensor weight, Tensor? random_state, float eps, "
      "float dropout_p)"
      " -> (Tensor y, Tensor r, Tensor rstd)");

  // Gradients of both, as layer_norm_bwd's.
  library.def(
      "rms_norm_bwd(Tensor dy, Tensor? dr, Tensor r, Tensor weight, Tensor rstd, Tensor? "
      "random_state, float dropout_p)"
      " -> (Tensor dr_sum, Tensor dx, Tensor dweight)");

  // Attention of q [batch, tokens, heads, head_dim] over k, v [batch, keys, kv_heads, head_dim];
  // lse is fp32 [batch, heads, tokens]. A window of -1 is open; causal is window_right = 0.
  // random_state, int64 [2], is seed and offset of dropout; scale is head_dim^-1/2 unless given.
  library.def(
      "attention_fwd(Tensor q, Tensor k, Tensor v, Tensor? alibi_slopes, Tensor? starts_k, "
      "Tensor? seqlens_k, Tensor? random_state, float? scale, int window_left, int window_right, "
      "float softcap, float dropout_p)"
      " -> (Tensor out, Tensor lse)");

  // Gradients of out and, where dlse is given, of lse too; deterministic ones do not depend on
  // timing.
  library.def(
      "attention_bwd(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor "
      "lse, Tensor? alibi_slopes, Tensor? starts_k, Tensor? seqlens_k, Tensor? random_state, "
      "float? scale, int window_left, int window_right, float softcap, float dropout_p, "
      "bool deterministic)"
      " -> (Tensor dq, Tensor dk, Tensor dv)");

  // The same of packed sequences: q [total, heads, head_dim], of which sequence i is rows
  // cu_seqlens_q[i] to cu_seqlens_q[i + 1], int32; k and v likewise. lse is fp32 [heads, total].
  // Rows of no sequence have out 0, lse -inf, and gradients of 0.
  library.def(
      "attention_varlen_fwd(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor "
      "cu_seqlens_k, Tensor? alibi_slopes, Tensor? random_state, SymInt max_seqlen_q, SymInt "
      "max_seqlen_k, float? scale, int window_left, int window_right, float softcap, float "
      "dropout_p)"
      " -> (Tensor out, Tensor lse)");

  library.def(
      "attention_varlen_bwd(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, "
      "Tensor lse, Tensor cu_seqlens_q, Tensor cu_seqlens_k, Tensor? alibi_slopes, Tensor? "
      "random_state, SymInt max_seqlen_q, SymInt max_seqlen_k, float? scale, int window_left, "
      "int window_right, float softcap, float dropout_p, bool deterministic)"
      " -> (Tensor dq, Tensor dk, Tensor dv)");

  // Appends k_new and v_new to the caches, then attention of q over their cache_seqlens + new keys.
  library.def(
      "attention_decode(Tensor q, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor cache_seqlens, "
      "Tensor? k_new, Tensor? v_new, Tensor? block_table, Tensor? alibi_slopes, Tensor? starts_k, "
      "float? scale, int window_left, float softcap)"
      " -> (Tensor out, Tensor lse)");

  // y = GELU(x + bias); approximate is "none" (erf) or "tanh".
  library.def("bias_gelu_fwd(Tensor x, Tensor? bias, str approximate) -> Tensor");

  // dbias is empty without a bias.
  library.def(
      "bias_gelu_bwd(Tensor dy, Tensor x, Tensor? bias, str approximate)"
      " -> (Tensor dx, Tensor dbias)");

  // r = dropout(x + bias) + residual, of residual's dtype; random_state as in add_layer_norm_fwd.
  library.def(
      "bias_dropout_add_fwd(Tensor x, Tensor? bias, Tensor residual, Tensor? random_state, float "
      "dropout_p) -> Tensor");

  // Gradients of x, of x_dtype, and of bias; the residual's is dr. dx is empty where it is dr too,
  // dbias without a bias.
  library.def(
      "bias_dropout_add_bwd(Tensor dr, Tensor? bias, Tensor? random_state, float dropout_p, "
      "ScalarType x_dtype)"
      " -> (Tensor dx, Tensor dbias)");

  // y = gate · σ(gate) · up
  library.def("swiglu_fwd(Tensor gate, Tensor up) -> Tensor");

  library.def("swiglu_bwd(Tensor dy, Tensor gate, Tensor up) -> (Tensor dgate, Tensor dup)");

  // q [batch, tokens, heads, head_dim] and k turned by the angles of cos and sin, [tokens, pairs]
  // or [batch, tokens, pairs]; inverse turns back, which is the gradient.
  library.def(
      "rotary(Tensor q, Tensor k, Tensor cos, Tensor sin, bool interleaved, bool inverse)"
      " -> (Tensor, Tensor)");

  library.def(
      "rotary_inplace(Tensor(a!) q, Tensor(b!) k, Tensor cos, Tensor sin, bool interleaved, "
      "bool inverse) -> ()");

  // loss, largest and log_sum are fp32 of targets' shape; the log-sum-exp of a row is kept as its
  // largest logit and the rest, which loses less than the sum. Classes from valid_vocab on have no
  // probability.
  library.def(
      "cross_entropy_fwd(Tensor logits, Tensor targets, int ignore_index, float label_smoothing, "
      "float z_loss, SymInt? valid_vocab)"
      " -> (Tensor loss, Tensor largest, Tensor log_sum)");

  library.def(
      "cross_entropy_bwd(Tensor dloss, Tensor logits, Tensor targets, Tensor largest, Tensor "
      "log_sum, int ignore_index, float label_smoothing, float z_loss, SymInt? valid_vocab)"
      " -> Tensor");

  // The same, the gradient written over the logits.
  library.def(
      "cross_entropy_bwd_inplace(Tensor dloss, Tensor(a!) logits, Tensor targets, Tensor largest, "
      "Tensor log_sum, int ignore_index, float label_smoothing, float z_loss, SymInt? valid_vocab)"
      " -> ()");

  // int64 [rows] ids drawn from logits [rows, vocab]. A row_ tensor, fp32 [rows], takes the place
  // of the number of its name. random_state is missing only where the temperature is the number 0.
  library.def(
      "sample(Tensor logits, Tensor? previous, Tensor? random_state, float temperature, int top_k, "
      "float top_p, float min_p, float repetition_penalty, Tensor? row_temperature, Tensor? "
      "row_top_k, Tensor? row_top_p, Tensor? row_min_p, Tensor? row_repetition_penalty, SymInt? "
      "valid_vocab)"
      " -> Tensor");
}
