#include "host/dropout_cpu.h"

#include <cmath>

#include "host/cpu_features.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace llmjp::host {
namespace {

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
  for (int i = 0; i < kMaskBlock; i += 4, ++position) {
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
LLMJP_CPU_AVX2 LLMJP_CPU_INLINE __m256i wide(uint64_t value) {
  return _mm256_set1_epi64x(static_cast<int64_t>(value));
}

LLMJP_CPU_AVX2 LLMJP_CPU_INLINE void store_mask(__m256i words, __m256i limit, uint32_t* place) {
  const __m256i dropped = _mm256_cmpgt_epi32(limit, _mm256_srli_epi32(words, 8));
  const __m256i kept = _mm256_xor_si256(dropped, _mm256_set1_epi32(-1));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(place), kept);
}

LLMJP_CPU_AVX2 void draw_avx2(const CpuDropout& dropout, uint64_t position, uint32_t* mask) {
  constexpr int kVectors = 2;  // at a time: products take several cycles, registers are sixteen
  constexpr int kCounters = 4 * kVectors;
  // In this order, the two unpackings at the end leave the words in the elements' order.
  const __m256i order = _mm256_set_epi64x(3, 1, 2, 0);
  const __m256i limit = _mm256_set1_epi32(limit_of(dropout));
  const __m256i multiplier0 = wide(kMultiplier0);
  const __m256i multiplier1 = wide(kMultiplier1);
  for (int i = 0; i < kMaskBlock; i += 4 * kCounters, position += kCounters) {
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

}  // namespace

void draw_mask(const CpuDropout& dropout, uint64_t position, uint32_t* mask) {
#ifdef __x86_64__
  if (cpu_instruction_set() != InstructionSet::kGeneric) return draw_avx2(dropout, position, mask);
#endif
  draw_generic(dropout, position, mask);
}

}  // namespace llmjp::host
