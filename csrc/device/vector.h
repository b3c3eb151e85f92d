// Several elements moved as one: 16 bytes a thread is what the memory system is fastest at.
#pragma once

#include <cstring>
#include <type_traits>

#include "device/dtype.h"
#include "device/platform.h"

#if defined(LLMJP_SIMT)
#include "simt/engine.h"
#endif

namespace llmjp::device {

template <class T, int kElements>
struct alignas(sizeof(T) * kElements) Vector {
  T elements[kElements];
};

// As many elements as fill a 16-byte access.
template <class T>
constexpr int kVectorElements = 16 / sizeof(T);

template <class T, int kElements>
LLMJP_DEVICE void to_floats(const Vector<T, kElements>& vector, float (&values)[kElements]) {
  LLMJP_UNROLL
  for (int i = 0; i < kElements; ++i) values[i] = to_float(vector.elements[i]);
}

template <class T, int kElements>
LLMJP_DEVICE Vector<T, kElements> from_floats(const float (&values)[kElements]) {
  Vector<T, kElements> vector;
  if constexpr (sizeof(T) == 2 && kElements % 2 == 0) {
    LLMJP_UNROLL
    for (int i = 0; i < kElements; i += 2) {
      const uint32_t pair = pack<T>(values[i], values[i + 1]);
      vector.elements[i].bits = static_cast<uint16_t>(pair);
      vector.elements[i + 1].bits = static_cast<uint16_t>(pair >> 16);
    }
  } else {
    LLMJP_UNROLL
    for (int i = 0; i < kElements; ++i) vector.elements[i] = from_float<T>(values[i]);
  }
  return vector;
}

#if defined(__CUDACC__)

// Global memory, through the ordinary caches.
template <class V, class T>
LLMJP_DEVICE V load(const T* address) {
  return *reinterpret_cast<const V*>(address);
}

// 16 bytes are named as one instruction: the compiler else stores elements one by one where they
// were computed in branches.
template <class V, class T>
LLMJP_DEVICE void store(T* address, const V& value) {
  if constexpr (sizeof(V) == 16) {
    uint32_t r[4];
    memcpy(r, &value, 16);
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(r[0]), "r"(r[1]),
                 "r"(r[2]), "r"(r[3])
                 : "memory");
  } else {
    *reinterpret_cast<V*>(address) = value;
  }
}

// Global memory that this kernel reads once: ld.global.nc.L1::no_allocate leaves the first-level
// cache to others.
template <class V, class T>
LLMJP_DEVICE V load_once(const T* address) {
  if constexpr (sizeof(V) == 16) {
    uint32_t r[4];
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
        : "l"(address));
    V value;
    memcpy(&value, r, 16);
    return value;
  } else {
    return *reinterpret_cast<const V*>(address);
  }
}

#else

// The alignment that a GPU insists on is checked; a bounds fault is the address sanitizer's to
// find.
template <class V>
void check_alignment(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % alignof(V) != 0) {
    simt::current_launch().fault("global access of " + std::to_string(sizeof(V)) +
                                 " bytes at an address that is not a multiple of " +
                                 std::to_string(alignof(V)));
  }
}

template <class V, class T>
V load(const T* address) {
  check_alignment<V>(address);
  V value;
  std::memcpy(&value, address, sizeof(V));
  return value;
}

template <class V, class T>
void store(T* address, const V& value) {
  check_alignment<V>(address);
  std::memcpy(address, &value, sizeof(V));
}

template <class V, class T>
V load_once(const T* address) {
  return load<V>(address);
}

#endif

// kElements of global memory as floats, in accesses of at most 16 bytes.
template <int kElements, class T>
LLMJP_DEVICE void load_floats(const T* address, float (&values)[kElements]) {
  constexpr int kPiece = kElements < kVectorElements<T> ? kElements : kVectorElements<T>;
  LLMJP_UNROLL
  for (int first = 0; first < kElements; first += kPiece) {
    float piece[kPiece];
    to_floats(load<Vector<T, kPiece>>(address + first), piece);
    LLMJP_UNROLL
    for (int i = 0; i < kPiece; ++i) values[first + i] = piece[i];
  }
}

}  // namespace llmjp::device
