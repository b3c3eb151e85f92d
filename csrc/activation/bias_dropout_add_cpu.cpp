#include "activation/bias_dropout_add_cpu.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>

#include "host/cpu_features.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace llmjp::activation {
namespace {

constexpr int kBlock = 64;  // elements of a row that masks are drawn for at a time

#define LLMJP_INLINE inline __attribute__((always_inline))
#define LLMJP_AVX2 __attribute__((target("avx2")))

// Draws a mask for kBlock elements of a row, all bits set where one is kept; `position` is the
// first one's.
using DrawMask = void (*)(const CpuDropout& dropout, uint64_t position, uint32_t* mask);

constexpr uint32_t kMultiplier0 = 0xd2511f53u;
constexpr uint32_t kMultiplier1 = 0xcd9e8d57u;
constexpr uint32_t kKeyStep0 = 0x9e3779b9u;
constexpr uint32_t kKeyStep1 = 0xbb67ae85u;
constexpr int kRounds = 10;

// 24 bits of a word, taken as a fraction, lie below the share where as a whole number they lie
// below its 2^24-fold, which float32 holds exactly.
int32_t limit_of(const CpuDropout& dropout) {
  return static_cast<int32_t>(std::ceil(dropout.share * 0x1p24f));
}

void draw_generic(const CpuDropout& dropout, uint64_t position, uint32_t* mask) {
  const int32_t limit = limit_of(dropout);
  for (int i = 0; i < kBlock; i += 4, ++position) {
    auto key0 = static_cast<uint32_t>(dropout.seed);
    auto key1 = static_cast<uint32_t>(dropout.seed >> 32);
    uint32_t c[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32),
                     static_cast<uint32_t>(dropout.offset),
                     static_cast<uint32_t>(dropout.offset >> 32)};
    for (int round = 0; round < kRounds; ++round) {
      const uint64_t product0 = uint64_t{kMultiplier0} * c[0];
      const uint64_t product1 = uint64_t{kMultiplier1} * c[2];
      c[0] = static_cast<uint32_t>(product1 >> 32) ^ c[1] ^ key0;
      c[2] = static_cast<uint32_t>(product0 >> 32) ^ c[3] ^ key1;
      c[1] = static_cast<uint32_t>(product1);
      c[3] = static_cast<uint32_t>(product0);
      key0 += kKeyStep0;
      key1 += kKeyStep1;
    }
    for (int word = 0; word < 4; ++word)
      mask[i + word] = static_cast<int32_t>(c[word] >> 8) < limit ? 0 : ~uint32_t{0};
  }
}

#ifdef __x86_64__
// Each counter's words in the lower halves of four registers; of the upper halves nothing is read.
LLMJP_AVX2 LLMJP_INLINE __m256i wide(uint64_t value) {
  return _mm256_set1_epi64x(static_cast<int64_t>(value));
}

LLMJP_AVX2 LLMJP_INLINE void store_mask(__m256i words, __m256i limit, uint32_t* place) {
  const __m256i dropped = _mm256_cmpgt_epi32(limit, _mm256_srli_epi32(words, 8));
  const __m256i kept = _mm256_xor_si256(dropped, _mm256_set1_epi32(-1));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(place), kept);
}

LLMJP_AVX2 void draw_avx2(const CpuDropout& dropout, uint64_t position, uint32_t* mask) {
  constexpr int kVectors = 2;  // at a time: products take several cycles, registers are sixteen
  constexpr int kCounters = 4 * kVectors;
  // In this order, the two unpackings at the end leave the words in the elements' order.
  const __m256i order = _mm256_set_epi64x(3, 1, 2, 0);
  const __m256i limit = _mm256_set1_epi32(limit_of(dropout));
  const __m256i multiplier0 = wide(kMultiplier0);
  const __m256i multiplier1 = wide(kMultiplier1);
  for (int i = 0; i < kBlock; i += 4 * kCounters, position += kCounters) {
    __m256i c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      c0[v] = _mm256_add_epi64(wide(position + 4 * static_cast<uint64_t>(v)), order);
      c1[v] = _mm256_srli_epi64(c0[v], 32);
      c2[v] = wide(dropout.offset);
      c3[v] = wide(dropout.offset >> 32);
    }
    auto key0 = static_cast<uint32_t>(dropout.seed);
    auto key1 = static_cast<uint32_t>(dropout.seed >> 32);
    for (int round = 0; round < kRounds; ++round) {
      for (int v = 0; v < kVectors; ++v) {
        const __m256i product0 = _mm256_mul_epu32(multiplier0, c0[v]);
        const __m256i product1 = _mm256_mul_epu32(multiplier1, c2[v]);
        c0[v] =
            _mm256_xor_si256(_mm256_srli_epi64(product1, 32), _mm256_xor_si256(c1[v], wide(key0)));
        c2[v] =
            _mm256_xor_si256(_mm256_srli_epi64(product0, 32), _mm256_xor_si256(c3[v], wide(key1)));
        c1[v] = product1;
        c3[v] = product0;
      }
      key0 += kKeyStep0;
      key1 += kKeyStep1;
    }
    for (int v = 0; v < kVectors; ++v) {
      const __m256i first = _mm256_blend_epi32(c0[v], _mm256_slli_epi64(c1[v], 32), 0xaa);
      const __m256i second = _mm256_blend_epi32(c2[v], _mm256_slli_epi64(c3[v], 32), 0xaa);
      uint32_t* place = mask + i + 16 * v;
      store_mask(_mm256_unpacklo_epi64(first, second), limit, place);
      store_mask(_mm256_unpackhi_epi64(first, second), limit, place + 8);
    }
  }
}
#endif

// Calls visit(column, count, mask) for the blocks of a row; without dropout the mask keeps all. All
// blocks but a last one have a count that the compiler knows.
template <DrawMask draw, class Visit>
LLMJP_INLINE void for_blocks(const CpuDropout& dropout, int64_t row, int64_t width, Visit visit) {
  const int64_t row_position = row * ((width + 3) / 4);
  uint32_t mask[kBlock];
  std::fill_n(mask, kBlock, ~uint32_t{0});
  int64_t column = 0;
  for (; column + kBlock <= width; column += kBlock) {
    if (dropout.drops) draw(dropout, static_cast<uint64_t>(row_position + column / 4), mask);
    visit(column, std::integral_constant<int, kBlock>{}, mask);
  }
  if (column == width) return;
  if (dropout.drops) draw(dropout, static_cast<uint64_t>(row_position + column / 4), mask);
  visit(column, static_cast<int>(width - column), mask);
}

// By its bits, so that a dropped infinity or NaN is 0, which no product with 0 would be.
LLMJP_INLINE float kept(float value, float scale, uint32_t mask) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value * scale) & mask);
}

float scale_of(const CpuDropout& dropout) {
  return dropout.drops ? 1.0f / (1.0f - dropout.share) : 1.0f;
}

struct Bfloat16 {
  uint16_t bits;
};

LLMJP_INLINE float to_float(float value) { return value; }
LLMJP_INLINE float to_float(Bfloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

LLMJP_INLINE void put(float* place, float value) { *place = value; }

// To the nearest, of two to the even one: half a step is added, less the smallest bit unless the
// upper half is odd. A NaN stays one, which carrying could make of it an infinity.
LLMJP_INLINE void put(Bfloat16* place, float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t nearest = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const uint32_t quiet = bits >> 16 | 0x40u;
  const uint32_t is_nan = (bits & 0x7fffffffu) > 0x7f800000u ? ~0u : 0u;
  place->bits = static_cast<uint16_t>((nearest & ~is_nan) | (quiet & is_nan));
}

template <class Count, class X, class R>
LLMJP_INLINE void add_block(Count count, const X* __restrict x, const float* __restrict bias,
                            const R* __restrict residual, float scale,
                            const uint32_t* __restrict mask, R* __restrict r) {
  if (bias == nullptr) {
    for (int i = 0; i < count; ++i)
      put(r + i, kept(to_float(x[i]), scale, mask[i]) + to_float(residual[i]));
  } else {
    for (int i = 0; i < count; ++i)
      put(r + i, kept(to_float(x[i]) + bias[i], scale, mask[i]) + to_float(residual[i]));
  }
}

template <class Count, class X, class R>
LLMJP_INLINE void gradient_block(Count count, const R* __restrict dr, float scale,
                                 const uint32_t* __restrict mask, X* __restrict dx) {
  for (int i = 0; i < count; ++i) put(dx + i, kept(to_float(dr[i]), scale, mask[i]));
}

template <class Count, class R>
LLMJP_INLINE void sum_block(Count count, const R* __restrict dr, float scale,
                            const uint32_t* __restrict mask, float* __restrict sums) {
  for (int i = 0; i < count; ++i) sums[i] += kept(to_float(dr[i]), scale, mask[i]);
}

template <DrawMask draw, class X, class R>
LLMJP_INLINE void forward_rows(const CpuForward& p, int64_t first, int64_t last) {
  const float scale = scale_of(p.dropout);
  for (int64_t row = first; row < last; ++row) {
    const X* x = static_cast<const X*>(p.x) + row * p.x_stride;
    const R* residual = static_cast<const R*>(p.residual) + row * p.residual_stride;
    R* r = static_cast<R*>(p.r) + row * p.width;
    for_blocks<draw>(p.dropout, row, p.width,
                     [&](int64_t column, auto count, const uint32_t* mask) {
                       add_block(count, x + column, p.bias == nullptr ? nullptr : p.bias + column,
                                 residual + column, scale, mask, r + column);
                     });
  }
}

template <DrawMask draw, class X, class R>
LLMJP_INLINE void backward_rows(const CpuBackward& p, int64_t first, int64_t last, float* sums) {
  const float scale = scale_of(p.dropout);
  for (int64_t row = first; row < last; ++row) {
    const R* dr = static_cast<const R*>(p.dr) + row * p.dr_stride;
    X* dx = p.dx == nullptr ? nullptr : static_cast<X*>(p.dx) + row * p.width;
    for_blocks<draw>(p.dropout, row, p.width,
                     [&](int64_t column, auto count, const uint32_t* mask) {
                       if (dx != nullptr)
                         gradient_block(count, dr + column, scale, mask, dx + column);
                       if (sums != nullptr)
                         sum_block(count, dr + column, scale, mask, sums + column);
                     });
  }
}

template <DrawMask draw>
LLMJP_INLINE void run_forward(const CpuForward& p, int64_t first, int64_t last) {
  if (p.x_type == host::DType::kFloat32) {
    forward_rows<draw, float, float>(p, first, last);
  } else if (p.row_type == host::DType::kFloat32) {
    forward_rows<draw, Bfloat16, float>(p, first, last);
  } else {
    forward_rows<draw, Bfloat16, Bfloat16>(p, first, last);
  }
}

template <DrawMask draw>
LLMJP_INLINE void run_backward(const CpuBackward& p, int64_t first, int64_t last, float* sums) {
  if (p.x_type == host::DType::kFloat32) {
    backward_rows<draw, float, float>(p, first, last, sums);
  } else if (p.row_type == host::DType::kFloat32) {
    backward_rows<draw, Bfloat16, float>(p, first, last, sums);
  } else {
    backward_rows<draw, Bfloat16, Bfloat16>(p, first, last, sums);
  }
}

#ifdef __x86_64__
LLMJP_AVX2 void forward_avx2(const CpuForward& p, int64_t first, int64_t last) {
  run_forward<draw_avx2>(p, first, last);
}
LLMJP_AVX2 void backward_avx2(const CpuBackward& p, int64_t first, int64_t last, float* sums) {
  run_backward<draw_avx2>(p, first, last, sums);
}
#endif

bool has_avx2() {
  static const bool has = host::supported_instruction_sets().size() > 1;
  return has;
}

}  // namespace

bool cpu_takes(host::DType x_type, host::DType row_type) {
  using host::DType;
  return (x_type == row_type || row_type == DType::kFloat32) && x_type != DType::kFloat16 &&
         row_type != DType::kFloat16;
}

void CpuForward::run(int64_t first, int64_t last) const {
#ifdef __x86_64__
  if (has_avx2()) return forward_avx2(*this, first, last);
#endif
  run_forward<draw_generic>(*this, first, last);
}

void CpuBackward::run(int64_t first, int64_t last, float* sums) const {
#ifdef __x86_64__
  if (has_avx2()) return backward_avx2(*this, first, last, sums);
#endif
  run_backward<draw_generic>(*this, first, last, sums);
}

}  // namespace llmjp::activation
