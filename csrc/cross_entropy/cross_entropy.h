// Cross-entropy of rows of logits and class ids. With V = classes and s = label_smoothing:
//
//   lse  = ln Σ_{j<V} exp(x[j]),  kept as largest + log_sum, largest = max x[j]
//   loss = lse − (1 − s) · x[target] − s / V · Σ_{j<V} x[j] + z_loss · lse²
//
// and backward, with g = dloss and p = exp(x − lse):
//
//   dx[j] = g · ((1 + 2 · z_loss · lse) · p[j] − (1 − s) · [j = target] − s / V)      j < V
//   dx[j] = 0                                                                    V ≤ j < vocab
//
// Rows whose target is ignore_index have loss, statistics and gradient 0; their logits are not
// read. A target that is neither ignore_index nor a class gives loss NaN and a gradient of NaN for
// j < V: a kernel cannot raise, and a trap would end the process's use of the GPU.
//
// (Label smoothing: Szegedy et al., arXiv 1512.00567; z-loss: Chowdhery et al., arXiv 2204.02311.)
// All arithmetic is fp32.
#pragma once

#include <cstdint>

#include "host/dtype.h"
#include "host/stream.h"

namespace llmjp::cross_entropy {

// Row i begins i / inner_count · outer_stride + i % inner_count · inner_stride elements after the
// first: a slice such as logits[:, :-1] has two strides.
struct RowPlaces {
  int64_t inner_count;
  int64_t inner_stride;
  int64_t outer_stride;
};

struct CrossEntropyForward {
  const void* logits;      // [rows, ≥ classes] of type
  const int64_t* targets;  // [rows]
  float* loss;             // [rows]
  float* largest;          // [rows]
  float* log_sum;          // [rows]
  RowPlaces places;
  int64_t rows;
  int64_t classes;  // at least 1
  int64_t ignore_index;
  float label_smoothing;
  float z_loss;
  host::DType type;
};

struct CrossEntropyBackward {
  const float* dloss;      // [rows], dloss_stride elements from one to the next
  const void* logits;      // [rows, vocab] of type
  const int64_t* targets;  // [rows]
  const float* largest;    // [rows]
  const float* log_sum;    // [rows]
  void* dlogits;           // [rows, vocab] of type; may be logits itself, with the same places
  RowPlaces places;
  RowPlaces gradient_places;
  int64_t dloss_stride;
  int64_t rows;
  int64_t vocab;
  int64_t classes;  // from 1 to vocab
  int64_t ignore_index;
  float label_smoothing;
  float z_loss;
  host::DType type;
};

void cross_entropy_forward(const CrossEntropyForward& params, host::Stream stream);

void cross_entropy_backward(const CrossEntropyBackward& params, host::Stream stream);

}  // namespace llmjp::cross_entropy
