// Who am I, and waiting for the others. Blocks are one-dimensional: kernels derive what else they
// need.
#pragma once

#include "device/platform.h"

#if defined(LLMJP_SIMT)
#include "simt/engine.h"
#include "simt/instructions.h"
#endif

namespace llmjp::device {

#if defined(__CUDACC__)

LLMJP_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
LLMJP_DEVICE int threads_per_block() { return static_cast<int>(blockDim.x); }
LLMJP_DEVICE int block_index_x() { return static_cast<int>(blockIdx.x); }
LLMJP_DEVICE int block_index_y() { return static_cast<int>(blockIdx.y); }
LLMJP_DEVICE int block_index_z() { return static_cast<int>(blockIdx.z); }
LLMJP_DEVICE int block_count_x() { return static_cast<int>(gridDim.x); }
LLMJP_DEVICE int block_count_y() { return static_cast<int>(gridDim.y); }
LLMJP_DEVICE int block_count_z() { return static_cast<int>(gridDim.z); }

// Every thread of the block must come here. Orders shared and global memory within the block.
LLMJP_DEVICE void sync_threads() { __syncthreads(); }

// Every lane of the mask must come here. Orders memory among them.
LLMJP_DEVICE void sync_warp(uint32_t mask = kFullMask) { __syncwarp(mask); }

// Waits until ready() is true, for what another resident block will do. ready() must read with
// load_acquire.
template <class Ready>
LLMJP_DEVICE void spin_wait(Ready ready) {
  while (!ready()) __nanosleep(32);
}

#else

inline int thread_index() { return simt::current_thread().index; }
inline int threads_per_block() { return simt::current_launch().grid().threads_per_block; }
inline int block_index_x() { return simt::current_thread().block->index.x; }
inline int block_index_y() { return simt::current_thread().block->index.y; }
inline int block_index_z() { return simt::current_thread().block->index.z; }
inline int block_count_x() { return simt::current_launch().grid().blocks.x; }
inline int block_count_y() { return simt::current_launch().grid().blocks.y; }
inline int block_count_z() { return simt::current_launch().grid().blocks.z; }

inline void sync_threads(std::source_location where = std::source_location::current()) {
  simt::current_launch().sync_threads(where);
}

inline void sync_warp(uint32_t mask = kFullMask,
                      std::source_location where = std::source_location::current()) {
  simt::sync_warp(mask, where);
}

template <class Ready>
void spin_wait(Ready ready, std::source_location where = std::source_location::current()) {
  while (!ready()) simt::current_launch().yield_in_spin(where);
}

#endif

LLMJP_DEVICE int lane_index() { return thread_index() % kWarpSize; }
LLMJP_DEVICE int warp_index() { return thread_index() / kWarpSize; }

}  // namespace llmjp::device
