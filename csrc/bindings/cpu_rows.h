// Rows of CPU tensors shared over torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace llmjp::bindings {

// Elements that a thread is worth waking for.
constexpr int64_t kElementsOfThread = 1 << 15;

inline int64_t rows_of_thread(int64_t width) {
  return std::max<int64_t>(1, kElementsOfThread / width);
}

// Calls run(row, first, last) for ranges of columns that make up all rows.
template <class Run>
void for_columns(int64_t rows, int64_t width, Run run) {
  if (rows == 0 || width == 0) return;
  constexpr int64_t kMostColumns = 1 << 14;
  const int64_t pieces = (width + kMostColumns - 1) / kMostColumns;
  torch::stable::parallel_for(0, rows * pieces, rows_of_thread(std::min(width, kMostColumns)),
                              [&](int64_t first_piece, int64_t last_piece) {
                                for (int64_t piece = first_piece; piece < last_piece; ++piece) {
                                  const int64_t first = piece % pieces * kMostColumns;
                                  run(piece / pieces, first, std::min(width, first + kMostColumns));
                                }
                              });
}

// Calls run(first_row, last_row, partial) for groups of rows and leaves in sums [width] what these
// add to their partial sums [width], 0 before; where sums is null, so are they. The groups depend
// on the shape alone, so that the sums do not depend on the number of threads.
template <class Run>
void for_row_groups(int64_t rows, int64_t width, float* sums, Run run) {
  constexpr int64_t kGroups = 64;
  const int64_t group_rows = (rows + kGroups - 1) / kGroups;
  const int64_t groups = (rows + group_rows - 1) / group_rows;
  std::vector<float> partial(sums == nullptr ? 0 : groups * width);
  const int64_t grain = std::max<int64_t>(1, rows_of_thread(width) / group_rows);
  torch::stable::parallel_for(0, groups, grain, [&](int64_t first, int64_t last) {
    for (int64_t group = first; group < last; ++group) {
      run(group * group_rows, std::min(rows, (group + 1) * group_rows),
          sums == nullptr ? nullptr : partial.data() + group * width);
    }
  });
  if (sums == nullptr) return;
  // By pairs, which loses less than one sum that grows.
  for (int64_t apart = 1; apart < groups; apart *= 2) {
    for (int64_t group = 0; group + apart < groups; group += 2 * apart) {
      const float* from = partial.data() + (group + apart) * width;
      float* to = partial.data() + group * width;
      for (int64_t i = 0; i < width; ++i) to[i] += from[i];
    }
  }
  std::copy_n(partial.data(), width, sums);
}

}  // namespace llmjp::bindings
