#include "simt/instructions.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "simt/half.h"

namespace llmjp::simt {
namespace {

// Calls visit(lane, payload) for the lanes of a mask.
template <class Payload, class Visit>
void for_each_lane(void* const (&payloads)[kWarpSize], uint32_t mask, Visit visit) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (mask >> lane & 1u) visit(lane, *static_cast<Payload*>(payloads[lane]));
  }
}

struct ShufflePayload {
  uint64_t value;
  int source_lane;
  uint64_t result;
};

struct BallotPayload {
  bool predicate;
  uint32_t result;
};

struct MatrixLoadPayload {
  uint32_t* registers;
  int count;
  bool transposed;
  const void* row;
};

struct MatrixProductPayload {
  MatrixType type;
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

void complete_sync_warp(Thread& last, void* const (&)[kWarpSize], uint32_t mask) {
  Warp& warp = last.block->warps[last.warp()];
  if ((mask | warp.ended) == kFullMask) ++warp.epoch;
}

void complete_shuffle(Thread&, void* const (&payloads)[kWarpSize], uint32_t mask) {
  for_each_lane<ShufflePayload>(payloads, mask, [&](int, ShufflePayload& lane) {
    const bool known = mask >> lane.source_lane & 1u;
    lane.result =
        known ? static_cast<ShufflePayload*>(payloads[lane.source_lane])->value : ~uint64_t{0};
  });
}

void complete_ballot(Thread&, void* const (&payloads)[kWarpSize], uint32_t mask) {
  uint32_t votes = 0;
  for_each_lane<BallotPayload>(payloads, mask, [&](int lane, BallotPayload& payload) {
    votes |= payload.predicate ? 1u << lane : 0u;
  });
  for_each_lane<BallotPayload>(payloads, mask,
                               [&](int, BallotPayload& payload) { payload.result = votes; });
}

// The eight 16-byte rows of a matrix are read in one pass when no two lie in the same 16 bytes of
// the 128 that the banks hold; every further row in a place already taken costs a pass more.
uint64_t extra_passes(const void* const (&rows)[8]) {
  int used[8] = {};
  for (const void* row : rows) ++used[reinterpret_cast<uintptr_t>(row) / 16 % 8];
  return static_cast<uint64_t>(*std::max_element(used, used + 8) - 1);
}

void complete_ldmatrix(Thread& last, void* const (&payloads)[kWarpSize], uint32_t) {
  const auto& any = *static_cast<MatrixLoadPayload*>(payloads[0]);
  Block& block = *last.block;
  const int first_thread = last.warp() * kWarpSize;
  for (int matrix = 0; matrix < any.count; ++matrix) {
    const void* rows[8];
    uint16_t values[8][8];
    for (int i = 0; i < 8; ++i) {
      const int lane = matrix * 8 + i;
      rows[i] = static_cast<MatrixLoadPayload*>(payloads[lane])->row;
      block.shared.check_read(block.threads[first_thread + lane], rows[i], 16);
      std::memcpy(values[i], rows[i], 16);
    }
    current_launch().statistics().matrix_row_conflicts += extra_passes(rows);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int row = lane / 4;
      const int column = lane % 4 * 2;
      const uint32_t low = any.transposed ? values[column][row] : values[row][column];
      const uint32_t high = any.transposed ? values[column + 1][row] : values[row][column + 1];
      static_cast<MatrixLoadPayload*>(payloads[lane])->registers[matrix] = low | high << 16;
    }
  }
}

// Lane maps of m16n8k16, with group = lane / 4 and pair = lane % 4 · 2:
//   a[r] holds A[group + 8·(r % 2)][pair + 8·(r / 2) + {0, 1}],
//   b[r] holds B[pair + 8·r + {0, 1}][group],
//   d[r] is    D[group + 8·(r / 2)][pair + r % 2].
template <float (*to_float)(uint16_t)>
void multiply(void* const (&payloads)[kWarpSize]) {
  float a[16][16];
  float b[16][8];
  float d[16][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& payload = *static_cast<MatrixProductPayload*>(payloads[lane]);
    const int group = lane / 4;
    const int pair = lane % 4 * 2;
    for (int r = 0; r < 4; ++r) {
      float* row = &a[group + 8 * (r % 2)][pair + 8 * (r / 2)];
      row[0] = to_float(static_cast<uint16_t>(payload.a[r]));
      row[1] = to_float(static_cast<uint16_t>(payload.a[r] >> 16));
      d[group + 8 * (r / 2)][pair + r % 2] = payload.d[r];
    }
    for (int r = 0; r < 2; ++r) {
      b[pair + 8 * r][group] = to_float(static_cast<uint16_t>(payload.b[r]));
      b[pair + 8 * r + 1][group] = to_float(static_cast<uint16_t>(payload.b[r] >> 16));
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& payload = *static_cast<MatrixProductPayload*>(payloads[lane]);
    for (int r = 0; r < 4; ++r) payload.d[r] = d[lane / 4 + 8 * (r / 2)][lane % 4 * 2 + r % 2];
  }
}

void complete_mma(Thread&, void* const (&payloads)[kWarpSize], uint32_t) {
  if (static_cast<MatrixProductPayload*>(payloads[0])->type == MatrixType::kFloat16) {
    multiply<float16_to_float>(payloads);
  } else {
    multiply<bfloat16_to_float>(payloads);
  }
}

}  // namespace

void sync_warp(uint32_t mask, const std::source_location& where) {
  current_launch().warp_instruction("sync_warp", mask, nullptr, complete_sync_warp, where);
}

uint64_t shuffle(uint64_t value, int source_lane, uint32_t mask,
                 const std::source_location& where) {
  ShufflePayload payload{value, source_lane, 0};
  current_launch().warp_instruction("shuffle", mask, &payload, complete_shuffle, where);
  return payload.result;
}

uint32_t ballot(bool predicate, uint32_t mask, const std::source_location& where) {
  BallotPayload payload{predicate, 0};
  current_launch().warp_instruction("ballot", mask, &payload, complete_ballot, where);
  return payload.result;
}

void ldmatrix(uint32_t* registers, int count, bool transposed, const void* row,
              const std::source_location& where) {
  MatrixLoadPayload payload{registers, count, transposed, row};
  current_launch().warp_instruction("ldmatrix", kFullMask, &payload, complete_ldmatrix, where);
}

void mma_m16n8k16(MatrixType type, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  const std::source_location& where) {
  MatrixProductPayload payload{type, d, a, b};
  current_launch().warp_instruction("mma", kFullMask, &payload, complete_mma, where);
}

void cp_async(void* shared, const void* global, int bytes, int bytes_read) {
  Thread& thread = current_thread();
  if (bytes_read < 0 || bytes_read > bytes) {
    current_launch().fault("cp.async of " + std::to_string(bytes) + " bytes asked to read " +
                           std::to_string(bytes_read));
  }
  if (reinterpret_cast<uintptr_t>(global) % static_cast<uintptr_t>(bytes) != 0) {
    current_launch().fault("cp.async of " + std::to_string(bytes) +
                           " bytes from a global address that is not a multiple of them");
  }
  thread.block->shared.begin_copy(thread, shared, static_cast<size_t>(bytes));
  thread.copies.push_back({shared, global, bytes, bytes_read, thread.copy_group});
}

void cp_async_commit_group() { ++current_thread().copy_group; }

void cp_async_wait_group(int groups_left_in_flight) {
  Thread& thread = current_thread();
  const int first_left = thread.copy_group - groups_left_in_flight;
  std::erase_if(thread.copies, [&](const CopyInFlight& copy) {
    if (copy.group >= first_left) return false;
    thread.block->shared.end_copy(thread, copy.shared, static_cast<size_t>(copy.bytes));
    std::memset(copy.shared, 0, static_cast<size_t>(copy.bytes));
    if (copy.bytes_read > 0) {
      std::memcpy(copy.shared, copy.global, static_cast<size_t>(copy.bytes_read));
    }
    return true;
  });
}

}  // namespace llmjp::simt
