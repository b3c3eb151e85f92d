// Scaled dot-product attention: out = softmax(q · kᵀ · scale) · v, with the scores of a row never
// in memory (Dao: FlashAttention-2, arXiv 2307.08691). For query i of a head, at key position
// p = i + keys − tokens, and key j:
//
//   s   = q[i] · k[j] · scale,  then softcap · tanh(s / softcap),  then s − slope · |p − j|
//   s   = −∞ unless  max(starts_k, p − window_left) ≤ j < min(seqlens_k, p + window_right + 1)
//   lse = ln Σ_j exp(s),   out = Σ_j exp(s − lse) · v[j];   0 and −∞ for a row without keys
//
// Dropout multiplies the probabilities after lse; docs/attention.md says which.
//
// Packed sequences lie behind one another in q, and in k and v: sequence i is rows cu_seqlens[i] to
// cu_seqlens[i + 1], tokens and keys are then its own, and `batch` counts the sequences. Rows
// before the first and behind the last belong to none; what stands for them in outputs becomes 0.
#pragma once

#include <cstdint>

#include "host/dtype.h"
#include "host/stream.h"

namespace llmjp::attention {

// Elements from one sequence, token and head to the next. The last dimension is contiguous.
struct Strides {
  int64_t batch;
  int64_t token;
  int64_t head;
};

struct Span;  // packed_schedule.h

// What both directions are told. Rows of q, k and v begin at multiples of 16 bytes, and head_dim is
// a multiple of 8.
struct AttentionProblem {
  const void* q;             // [batch, tokens, heads, head_dim]
  const void* k;             // [batch, keys, kv_heads, head_dim]
  const void* v;             // as k
  const float* alibi;        // [batch or 1, heads], or null
  const int32_t* starts_k;   // [batch], or null
  const int32_t* seqlens_k;  // [batch], or null
  const int64_t* random;     // {seed, offset}; read only where dropout > 0
  // Packed sequences: int32 [batch + 1] each. Null: all sequences have `tokens` and `keys`.
  const int32_t* cu_seqlens_q;
  const int32_t* cu_seqlens_k;
  const Span* spans;  // made of these; the launcher's
  Strides q_strides;
  Strides k_strides;
  Strides v_strides;
  int batch;
  int tokens;  // of a sequence; of all together where packed
  int keys;
  int longest_q;  // of packed sequences, as far as the caller knows: only the order of work follows
  int longest_k;
  int heads;
  int kv_heads;
  int head_dim;
  int alibi_batch_stride;  // heads, or 0 where all sequences share their slopes
  int window_left;         // −1: open
  int window_right;        // −1: open, 0: causal
  float scale;
  float softcap;         // 0: none
  float dropout;         // 0: none
  float exponent_scale;  // from scores to exponents of 2; the launcher's
  host::DType type;
};

struct AttentionForward : AttentionProblem {
  void* out;           // as q, contiguous
  float* lse;          // [batch, heads, tokens]; packed [heads, tokens]
  int32_t* workspace;  // attention_forward_workspace() integers
};

// Gradients, with P = exp(s − lse) computed again and delta[i] = Σ_d out · dout − dlse:
//
//   dv = Pᵀ · dout      ds = P ∘ (dout · vᵀ − delta)      dq = scale · ds · k      dk = scale · dsᵀ
//   · q
//
// ds times 1 − tanh² with softcap; dropout's factors stand beside P in dv and dout · vᵀ in ds.
struct AttentionBackward : AttentionProblem {
  const void* dout;  // as q; rows of dout and out begin at multiples of 16 bytes too
  const void* out;
  const float* lse;   // as attention_forward's
  const float* dlse;  // as lse, or null
  void* dq;           // as q, contiguous
  void* dk;           // as k, contiguous
  void* dv;
  float* workspace;  // attention_backward_workspace() floats, 16-byte aligned
  Strides dout_strides;
  Strides out_strides;
  bool deterministic;  // adds up dq in one order, whatever the timing
};

// Lengths and windows up to here leave room for their sums in 32 bits.
constexpr int64_t kLargestLength = (int64_t{1} << 30) - 1;

// The widest head that a tile is compiled for.
constexpr int kLargestHeadDim = 256;

void attention_forward(const AttentionForward& params, host::Stream stream);

// Integers of scratch memory: the order of packed sequences; none else.
int64_t attention_forward_workspace(const AttentionProblem& params);

// Needs tokens and keys; without either the gradients are zeros.
void attention_backward(const AttentionBackward& params, host::Stream stream);

// Floats of scratch memory: statistics of the queries, dq in float32 while it is summed up, and the
// order of packed sequences.
int64_t attention_backward_workspace(const AttentionBackward& params);

}  // namespace llmjp::attention
