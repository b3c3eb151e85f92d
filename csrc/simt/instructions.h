// What the instructions named in csrc/device do on a GPU, for fibers. Semantics and lane maps: PTX
// ISA, sections "Parallel Synchronization and Communication", "Warp Level Matrix
// Multiply-Accumulate" and "Asynchronous copy".
#pragma once

#include <cstdint>
#include <source_location>

#include "simt/engine.h"

namespace llmjp::simt {

// bar.warp.sync: the only warp instruction that orders memory.
void sync_warp(uint32_t mask, const std::source_location& where);

// shfl.sync with the source lane already worked out; reading a lane outside the mask gives poison.
uint64_t shuffle(uint64_t value, int source_lane, uint32_t mask, const std::source_location& where);

// vote.sync.ballot
uint32_t ballot(bool predicate, uint32_t mask, const std::source_location& where);

// ldmatrix.sync.aligned.m8n8.x<count>[.trans].shared.b16: lane i gives the address of row i % 8 of
// matrix i / 8.
void ldmatrix(uint32_t* registers, int count, bool transposed, const void* row,
              const std::source_location& where);

enum class MatrixType { kFloat16, kBFloat16 };

// mma.sync.aligned.m16n8k16.row.col.f32.<type>.<type>.f32, accumulating into d.
void mma_m16n8k16(MatrixType type, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  const std::source_location& where);

// cp.async.cg.shared.global: `bytes_read` of `bytes` come from global memory, the rest is zero.
// Nothing arrives before cp_async_wait_group has waited for the group that the copy was committed
// to.
void cp_async(void* shared, const void* global, int bytes, int bytes_read);
void cp_async_commit_group();
void cp_async_wait_group(int groups_left_in_flight);

}  // namespace llmjp::simt
