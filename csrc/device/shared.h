// Dynamic shared memory. Reads and writes go through shared_load and shared_store: on a GPU they
// are plain accesses, in csrc/simt they are checked for races, alignment and bounds.
#pragma once

#include <cstring>

#include "device/platform.h"

#if defined(LLMJP_SIMT)
#include "simt/engine.h"
#endif

namespace llmjp::device {

#if defined(__CUDACC__)

// The block's dynamic shared memory, 16-byte aligned; kernels lay it out themselves.
template <class T>
LLMJP_DEVICE T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char llmjp_dynamic_shared[];
  return reinterpret_cast<T*>(llmjp_dynamic_shared);
}

template <class V, class T>
LLMJP_DEVICE V shared_load(const T* address) {
  return *reinterpret_cast<const V*>(address);
}

template <class V, class T>
LLMJP_DEVICE void shared_store(T* address, const V& value) {
  *reinterpret_cast<V*>(address) = value;
}

#else

template <class T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(simt::current_thread().block->shared.data());
}

template <class V, class T>
V shared_load(const T* address) {
  simt::Thread& thread = simt::current_thread();
  thread.block->shared.check_read(thread, address, sizeof(V));
  V value;
  std::memcpy(&value, address, sizeof(V));
  return value;
}

template <class V, class T>
void shared_store(T* address, const V& value) {
  simt::Thread& thread = simt::current_thread();
  thread.block->shared.check_write(thread, address, sizeof(V));
  std::memcpy(address, &value, sizeof(V));
}

#endif

}  // namespace llmjp::device
