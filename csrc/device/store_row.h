// Stores of a row's chunk that is 16 bytes of a wider type than its own.
#pragma once

#include "device/vector.h"

namespace llmjp::device {

// Values rounded to T, in one access. Eight bytes are named as one instruction, as store() does for
// sixteen: the compiler else stores elements one by one where they were computed in branches.
template <class T, int kCount>
LLMJP_DEVICE void store_rounded(T* address, const float (&values)[kCount]) {
#if defined(__CUDACC__)
  if constexpr (sizeof(T) == 2 && kCount == 4) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(address),
                 "r"(pack<T>(values[0], values[1])), "r"(pack<T>(values[2], values[3]))
                 : "memory");
    return;
  }
#endif
  store(address, from_floats<T>(values));
}

}  // namespace llmjp::device
