// Attention of the newest tokens of each sequence over its cache of keys and values, to which new
// keys are appended in the same call. With n = cache_seqlens keys before it and total = n + fresh:
//
//   cache[n + i] = new[i]
//   out[i] = softmax over the keys j < total that query i sees, as in attention.h, where query i
//   stands at key p = total − tokens + i and sees  max(starts_k, p − window_left) ≤ j ≤ p
//
// A sequence of which n + fresh keys do not fit its cache, or whose block table names a block that
// is not there, gets NaN; in the first case nothing of it is appended.
#pragma once

#include <cstdint>

#include "attention/attention.h"
#include "host/dtype.h"
#include "host/stream.h"

namespace llmjp::attention {

// Rows of all tensors begin at multiples of 16 bytes, and head_dim is a multiple of 8.
struct AttentionDecode {
  const void* q;                 // [batch, tokens, heads, head_dim]
  void* k_cache;                 // [batch or blocks, page, kv_heads, head_dim]
  void* v_cache;                 // as k_cache
  const void* k_new;             // [batch, fresh, kv_heads, head_dim]; read only where fresh > 0
  const void* v_new;             // as k_new
  const int32_t* cache_seqlens;  // [batch]
  const int32_t* block_table;    // [batch, pages], or null: sequence b is block b
  const int32_t* starts_k;       // [batch], or null
  const float* alibi;            // [batch or 1, heads], or null
  void* out;                     // as q, contiguous
  float* lse;                    // [batch, heads, tokens]
  float* workspace;              // attention_decode_workspace() floats, 16-byte aligned
  Strides q_strides;
  Strides k_strides;  // of a cache; its "batch" is the block
  Strides v_strides;
  Strides k_new_strides;
  Strides v_new_strides;
  int batch;
  int tokens;
  int fresh;  // new keys of each sequence
  int heads;
  int kv_heads;
  int head_dim;
  int blocks;              // in the caches
  int page;                // keys of a block
  int pages;               // blocks of a sequence: the block table's columns, 1 without
  int alibi_batch_stride;  // heads, or 0 where all sequences share their slopes
  int window_left;         // −1: open
  float scale;
  float softcap;  // 0: none
  int splits;     // parts into which the keys of a sequence are cut
  host::DType type;

  // The launcher's.
  int group;             // heads that share a key head
  bool has_formulas;     // softcap, ALiBi or a scale that the exponent cannot take
  float exponent_scale;  // from scores to exponents of 2
  int row_blocks;        // blocks of threads that share the rows of a key head

  constexpr int64_t capacity() const { return int64_t{page} * pages; }
};

// Into how many parts to cut the keys, for the current GPU and the longest sequences that the cache
// can hold: the host does not know the lengths, and a captured graph must not depend on them.
int attention_decode_splits(const AttentionDecode& params);

// Floats of scratch memory, where the parts are kept until they are combined; 0 for one part.
int64_t attention_decode_workspace(const AttentionDecode& params);

void attention_decode(const AttentionDecode& params, host::Stream stream);

}  // namespace llmjp::attention
