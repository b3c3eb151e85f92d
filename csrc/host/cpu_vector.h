// Several floats at a time, for native code of CPU tensors: the vector types of GCC and Clang. A
// template over CpuVector serves every instruction set: all of this is inlined into a function
// whose target attribute says which instructions it may use. A vector should be as wide as a
// register there; of wider ones compilers make bad code.
#pragma once

#include <cstdint>
#include <cstring>

#define LLMJP_CPU_INLINE inline __attribute__((always_inline))
#ifdef __x86_64__
#define LLMJP_CPU_AVX2 __attribute__((target("avx2,fma")))
#define LLMJP_CPU_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#endif
// Conversions that GCC has no portable words for, or bad code. Its built-in functions and the
// compiler's intrinsics do not pass through functions without a target, and Clang refuses the
// registers there.
#if defined(__x86_64__) && !defined(__clang__)
#define LLMJP_CPU_X86_ASM
#endif

namespace llmjp::host {

// 16-bit numbers by their bits.
struct CpuFloat16 {
  uint16_t bits;
};
struct CpuBFloat16 {
  uint16_t bits;
};

// Written out, since GCC drops a size that depends on a template's parameter.
template <int kWidth>
struct CpuVectorTypes;
template <>
struct CpuVectorTypes<4> {
  using Floats = float __attribute__((vector_size(16)));
  using Ints = int32_t __attribute__((vector_size(16)));
  using Words = uint32_t __attribute__((vector_size(16)));
  using HalfWords = uint16_t __attribute__((vector_size(8)));
};

template <>
struct CpuVectorTypes<8> {
  using Floats = float __attribute__((vector_size(32)));
  using Ints = int32_t __attribute__((vector_size(32)));
  using Words = uint32_t __attribute__((vector_size(32)));
  using HalfWords = uint16_t __attribute__((vector_size(16)));
};

template <>
struct CpuVectorTypes<16> {
  using Floats = float __attribute__((vector_size(64)));
  using Ints = int32_t __attribute__((vector_size(64)));
  using Words = uint32_t __attribute__((vector_size(64)));
  using HalfWords = uint16_t __attribute__((vector_size(32)));
};

// kWidth floats: 4 fill a register of every architecture, 8 one of AVX2, 16 one of AVX-512.
template <int kWidth>
struct CpuVector {
  static constexpr int kLanes = kWidth;
  using Floats = typename CpuVectorTypes<kWidth>::Floats;
  using Ints = typename CpuVectorTypes<kWidth>::Ints;
  using Words = typename CpuVectorTypes<kWidth>::Words;
  using HalfWords = typename CpuVectorTypes<kWidth>::HalfWords;

  LLMJP_CPU_INLINE static Floats splat(float value) { return value - Floats{}; }

  // b where a is NaN.
  LLMJP_CPU_INLINE static Floats larger(Floats a, Floats b) { return a > b ? a : b; }

  LLMJP_CPU_INLINE static Floats load(const float* place) { return read<Floats>(place); }

  LLMJP_CPU_INLINE static Floats load(const CpuBFloat16* place) {
    return reinterpret_cast<Floats>(widened(read<HalfWords>(place)) << 16);
  }

  // In four lanes, by arithmetic: the exponent moves to its place and is lifted by a product, which
  // makes subnormal numbers normal.
  LLMJP_CPU_INLINE static Floats load(const CpuFloat16* place) {
#ifdef LLMJP_CPU_X86_ASM
    if constexpr (kWidth > 4) {
      Floats floats;
      asm("vcvtph2ps %1, %0" : "=v"(floats) : "v"(read<HalfWords>(place)));
      return floats;
    }
#endif
    const auto bits = __builtin_convertvector(read<HalfWords>(place), Ints);
    const Ints magnitude = (bits & 0x7fff) << 13;
    const auto lifted = reinterpret_cast<Ints>(reinterpret_cast<Floats>(magnitude) * 0x1p112f);
    const Ints number = (bits & 0x7c00) == 0x7c00 ? magnitude | 0x7f800000 : lifted;
    return reinterpret_cast<Floats>(number | (bits & 0x8000) << 16);
  }

  LLMJP_CPU_INLINE static void store(float* place, Floats values) { write(place, values); }

  // To the nearest, of two to the even one: half a step is added, less the smallest bit unless the
  // upper half is odd. A NaN stays one, which carrying could make of it an infinity.
  LLMJP_CPU_INLINE static void store(CpuBFloat16* place, Floats values) {
    const auto bits = reinterpret_cast<Words>(values);
    const Words nearest = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    const Words rounded = values == values ? nearest : bits >> 16 | 0x40u;
    write(place, __builtin_convertvector(rounded, HalfWords));
  }

  // Likewise; below 2^-14 the addition of 0.5 rounds to the step of subnormal numbers.
  LLMJP_CPU_INLINE static void store(CpuFloat16* place, Floats values) {
#ifdef LLMJP_CPU_X86_ASM
    if constexpr (kWidth > 4) {
      HalfWords nearest;
      asm("vcvtps2ph $0, %1, %0" : "=v"(nearest) : "v"(values));
      return write(place, nearest);
    }
#endif
    const auto bits = reinterpret_cast<Ints>(values);
    const Ints magnitude = bits & 0x7fffffff;
    const Ints normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13;
    const Floats raised = reinterpret_cast<Floats>(magnitude) + 0.5f;
    const Ints subnormal = reinterpret_cast<Ints>(raised) - 0x3f000000;
    Ints rounded = magnitude < 0x38800000 ? subnormal : normal;
    rounded = magnitude >= 0x47800000 ? Ints{} + 0x7c00 : rounded;
    rounded = magnitude > 0x7f800000 ? Ints{} + 0x7e00 : rounded;
    rounded |= bits >> 16 & 0x8000;
    write(place, __builtin_convertvector(rounded, HalfWords));
  }

  // exp(x), within about an ulp, for x of at most 88; below -87 it is 0, and of a NaN a NaN. With n
  // the whole number nearest to x / ln 2 and |r| ≤ ln(2) / 2, exp(x) = 2^n · exp(r). The polynomial
  // has the least largest error relative to exp(r), 4e-9.
  LLMJP_CPU_INLINE static Floats exp(Floats x) {
    // Adding it rounds to whole numbers and leaves them in the lowest bits.
    constexpr float kRound = 0x1.8p23f;
    // ln 2 in two parts, the first so short that its products with n are exact.
    constexpr float kLn2 = 0x1.63p-1f;
    constexpr float kLn2Rest = -0x1.bd0106p-13f;
    const Floats shifted = x * 1.44269504f + kRound;
    const Floats n = shifted - kRound;
    const Floats r = x - n * kLn2 - n * kLn2Rest;
    Floats p = r * 0x1.6a23d0p-10f + 0x1.123a20p-7f;
    p = p * r + 0x1.5558f2p-5f;
    p = p * r + 0x1.555492p-3f;
    p = p * r + 0x1.fffffcp-2f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const Ints power = (reinterpret_cast<Ints>(shifted) << 23) + 0x3f800000;
    const Floats result = p * reinterpret_cast<Floats>(power);
    return x < -87.0f ? Floats{} : result;
  }

  LLMJP_CPU_INLINE static float largest_of(Floats values) {
    if constexpr (kWidth == 4) {
      const auto larger = [](float a, float b) { return a > b ? a : b; };
      return larger(larger(values[0], values[2]), larger(values[1], values[3]));
    } else {
      const auto [low, high] = halves(values);
      return CpuVector<kWidth / 2>::largest_of(CpuVector<kWidth / 2>::larger(low, high));
    }
  }

  // By halves, which loses less than one sum that grows.
  LLMJP_CPU_INLINE static float sum_of(Floats values) {
    if constexpr (kWidth == 4) {
      return (values[0] + values[2]) + (values[1] + values[3]);
    } else {
      const auto [low, high] = halves(values);
      return CpuVector<kWidth / 2>::sum_of(low + high);
    }
  }

  // Those whose mask has all bits set, and 0 for those whose has none: by their bits, so that an
  // infinity or NaN that is masked out is 0, which no product with 0 would be.
  LLMJP_CPU_INLINE static Floats masked(Floats values, const uint32_t* mask) {
    return reinterpret_cast<Floats>(reinterpret_cast<Words>(values) & read<Words>(mask));
  }

  // Fewer numbers than lanes, with `rest` in the lanes behind them.
  template <class X>
  LLMJP_CPU_INLINE static Floats load_some(const X* place, int64_t count, float rest) {
    X padded[kWidth] = {};
    std::memcpy(padded, place, static_cast<size_t>(count) * sizeof(X));
    Floats values = load(padded);
    for (int i = 0; i < kWidth; ++i) values[i] = i < count ? values[i] : rest;
    return values;
  }

  template <class X>
  LLMJP_CPU_INLINE static void store_some(X* place, int64_t count, Floats values) {
    X padded[kWidth];
    store(padded, values);
    std::memcpy(place, padded, static_cast<size_t>(count) * sizeof(X));
  }

 private:
  struct Halves {
    typename CpuVectorTypes<kWidth == 4 ? 4 : kWidth / 2>::Floats low, high;
  };

  LLMJP_CPU_INLINE static Halves halves(Floats values) {
    Halves result;
    static_assert(sizeof(result) == sizeof(values));
    std::memcpy(&result, &values, sizeof(values));
    return result;
  }

  LLMJP_CPU_INLINE static Words widened(HalfWords numbers) {
#ifdef LLMJP_CPU_X86_ASM
    if constexpr (kWidth > 4) {
      Words words;
      asm("vpmovzxwd %1, %0" : "=v"(words) : "v"(numbers));
      return words;
    }
#endif
    return __builtin_convertvector(numbers, Words);
  }

  template <class Vector, class T>
  LLMJP_CPU_INLINE static Vector read(const T* place) {
    Vector vector;
    std::memcpy(&vector, place, sizeof(vector));
    return vector;
  }

  template <class Vector, class T>
  LLMJP_CPU_INLINE static void write(T* place, Vector vector) {
    std::memcpy(place, &vector, sizeof(vector));
  }
};

}  // namespace llmjp::host
