// Atomics on global memory, and the acquire and release accesses that blocks signal each other
// with. In csrc/simt a thread is interrupted only where it waits, so a plain access is atomic.
#pragma once

#include "device/platform.h"

namespace llmjp::device {

#if defined(__CUDACC__)

// Each returns the old value.
template <class T>
LLMJP_DEVICE T atomic_add(T* address, T value) {
  return atomicAdd(address, value);
}
template <class T>
LLMJP_DEVICE T atomic_max(T* address, T value) {
  return atomicMax(address, value);
}
template <class T>
LLMJP_DEVICE T atomic_exchange(T* address, T value) {
  return atomicExch(address, value);
}
template <class T>
LLMJP_DEVICE T atomic_compare_and_swap(T* address, T expected, T value) {
  return atomicCAS(address, expected, value);
}

// What the releasing thread wrote before is seen by a thread that acquires the value (device
// scope).
LLMJP_DEVICE int load_acquire(const int* address) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}
LLMJP_DEVICE void store_release(int* address, int value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}
// Also what other threads wrote before a barrier that they and this one have passed.
LLMJP_DEVICE void add_release(int* address, int value) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

// Orders this thread's earlier writes before its later ones for the whole device.
LLMJP_DEVICE void thread_fence() { __threadfence(); }

#else

template <class T>
T atomic_add(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}
template <class T>
T atomic_max(T* address, T value) {
  const T old = *address;
  *address = old < value ? value : old;
  return old;
}
template <class T>
T atomic_exchange(T* address, T value) {
  const T old = *address;
  *address = value;
  return old;
}
template <class T>
T atomic_compare_and_swap(T* address, T expected, T value) {
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}

inline int load_acquire(const int* address) { return *static_cast<const volatile int*>(address); }
inline void store_release(int* address, int value) { *static_cast<volatile int*>(address) = value; }
inline void add_release(int* address, int value) { atomic_add(address, value); }
inline void thread_fence() {}

#endif

}  // namespace llmjp::device
