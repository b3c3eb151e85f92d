// Tensor-core words of sm_80: ldmatrix and mma.sync.m16n8k16. Lane maps: PTX ISA, "Warp Level
// Matrix Instructions". With group = lane / 4 and pair = lane % 4 · 2, a warp holds
//
//   A [16 × 16]  a[r] = A[group + 8·(r % 2)][pair + 8·(r / 2) + {0, 1}]     16-bit pairs, the lower
//   index in the low half B [16 × 8]   b[r] = B[pair + 8·r + {0, 1}][group] D [16 × 8]   d[r] =
//   D[group + 8·(r / 2)][pair + r % 2]                  float
//
// so that two neighbouring D tiles, rounded to 16 bits, are an A operand without moving between
// lanes.
#pragma once

#include <type_traits>

#include "device/dtype.h"
#include "device/platform.h"

#if defined(LLMJP_SIMT)
#include "simt/instructions.h"
#endif

namespace llmjp::device {

#if defined(__CUDACC__)

// Loads kCount 8 × 8 matrices of 16-bit elements. Lane i names the 16-byte row i % 8 of matrix i /
// 8; lane i receives of each matrix the pair at row i / 4, columns i % 4 · 2.
template <int kCount>
LLMJP_DEVICE void ldmatrix(uint32_t (&registers)[kCount], const void* shared_row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
  if constexpr (kCount == 4) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kCount == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(registers[0]), "=r"(registers[1])
                 : "r"(address)
                 : "memory");
  } else {
    static_assert(kCount == 1, "ldmatrix loads 1, 2 or 4 matrices");
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(registers[0])
                 : "r"(address)
                 : "memory");
  }
}

// The same with each matrix transposed: lane i receives the pair at rows i % 4 · 2, column i / 4.
template <int kCount>
LLMJP_DEVICE void ldmatrix_trans(uint32_t (&registers)[kCount], const void* shared_row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
  if constexpr (kCount == 4) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kCount == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(registers[0]), "=r"(registers[1])
                 : "r"(address)
                 : "memory");
  } else {
    static_assert(kCount == 1, "ldmatrix loads 1, 2 or 4 matrices");
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(registers[0])
                 : "r"(address)
                 : "memory");
  }
}

// d += a · b
template <class T>
LLMJP_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, float16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    static_assert(std::is_same_v<T, bfloat16>, "mma takes float16 or bfloat16");
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

#else

template <int kCount>
void ldmatrix(uint32_t (&registers)[kCount], const void* shared_row,
              std::source_location where = std::source_location::current()) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4, "ldmatrix loads 1, 2 or 4 matrices");
  simt::ldmatrix(registers, kCount, false, shared_row, where);
}

template <int kCount>
void ldmatrix_trans(uint32_t (&registers)[kCount], const void* shared_row,
                    std::source_location where = std::source_location::current()) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4, "ldmatrix loads 1, 2 or 4 matrices");
  simt::ldmatrix(registers, kCount, true, shared_row, where);
}

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  std::source_location where = std::source_location::current()) {
  static_assert(std::is_same_v<T, float16> || std::is_same_v<T, bfloat16>,
                "mma takes float16 or bfloat16");
  constexpr auto kType =
      std::is_same_v<T, float16> ? simt::MatrixType::kFloat16 : simt::MatrixType::kBFloat16;
  simt::mma_m16n8k16(kType, d, a, b, where);
}

#endif

}  // namespace llmjp::device
