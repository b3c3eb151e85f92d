// One id drawn from each row of logits. With x the row after the repetition penalty (NaN counts as
// -inf), T the temperature and a weight exp((x − max x) / T) for each id,
//
//   top-k   keeps x ≥ the k-th largest
//   top-p   keeps x while the weight of all larger ones is below top_p · (the weight of all kept)
//   min-p   keeps weights of at least min_p
//
// and the id is the first whose running sum of kept weights passes u · (their sum), u being
// uniform: Philox at the row's number. T = 0 takes the largest x, the first of equal ones; a row of
// nothing but -inf gives -1; +inf leaves no other id a chance.
//
// (top-p: Holtzman et al., arXiv 1904.09751; penalty: Keskar et al., arXiv 1909.05858; min-p:
// Nguyen et al., arXiv 2407.01082.)
#pragma once

#include <cstdint>

#include "host/dtype.h"
#include "host/stream.h"

namespace llmjp::sampling {

// One number for all rows, or one for each.
struct Setting {
  float number;
  const float* by_row;  // [rows] or null
};

// Weights are summed as integers (sample_weight.cuh), which this many ids cannot overflow.
constexpr int64_t kMostClasses = int64_t{1} << 23;

struct Sample {
  const void* logits;           // [rows, ≥ classes] of type
  const int64_t* previous;      // [rows, previous_length] or null
  const int64_t* random_state;  // {seed, offset}; null only where temperature is the number 0
  int64_t* ids;                 // [rows]
  int64_t row_stride;
  int64_t previous_stride;
  int64_t previous_length;
  int64_t rows;
  int64_t classes;  // from 1 to kMostClasses
  Setting temperature;
  Setting top_k;
  Setting top_p;
  Setting min_p;
  Setting repetition_penalty;
  host::DType type;
};

void sample(const Sample& params, host::Stream stream);

}  // namespace llmjp::sampling
