#include "tokenizer/unit_cuts.h"

#include <cstring>

#ifdef __x86_64__
// GCC 12's own header passes a register on purpose that it has not set.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace llmjp::tokenizer {
namespace {

using Tables = UnitRules::CutTables;

uint64_t lowest(size_t count) { return count < 64 ? (uint64_t{1} << count) - 1 : ~uint64_t{0}; }

// The rest of a block is done eight at a time as long as that goes: lines are mostly rests.

uint64_t narrow_generic(const Tables& tables, const uint8_t* text, size_t count) {
  const uint8_t* const joins = tables.narrow_joins;
  const auto joined_at = [&](size_t i) {
    uint16_t pair;
    std::memcpy(&pair, text + i, sizeof pair);
    return uint64_t{joins[pair]};
  };
  uint64_t joined = 0;
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    uint64_t bits = 0;
    for (size_t k = 0; k < 8; ++k) bits |= joined_at(i + k) << k;
    joined |= bits << i;
  }
  for (; i < count; ++i) joined |= joined_at(i) << i;
  return ~joined & lowest(count);
}

uint64_t wide_generic(const Tables& tables, const char16_t* text, size_t count) {
  const uint32_t* const pairs = tables.pairs;
  const uint32_t shift = tables.pair_shift;
  // Bits come in from above, so that no step needs to know its number.
  uint64_t joined = 0;
  const auto step = [&](size_t i) {
    const uint32_t bit = UnitRules::hash_of_pair(text[i], text[i + 1]) >> shift;
    joined = joined >> 1 | uint64_t{pairs[bit >> 5] >> (bit & 31)} << 63;
  };
  size_t i = 0;
  for (; i + 4 <= count; i += 4) {
    step(i);
    step(i + 1);
    step(i + 2);
    step(i + 3);
  }
  for (; i < count; ++i) step(i);
  return count == 0 ? 0 : ~joined >> (64 - count);
}

#ifdef __x86_64__
// Vector registers gather the tables' entries of 8 or 16 positions at once. Gathered words are 32
// bits wide and aligned, so that none reaches beyond a table's end: entries of one byte are shifted
// out of theirs.

#define LLMJP_AVX2 __attribute__((target("avx2")))
#define LLMJP_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))

LLMJP_AVX2 __m256i narrow_entries(const Tables& tables, __m256i pairs) {
  const __m256i words = _mm256_i32gather_epi32(reinterpret_cast<const int*>(tables.narrow_joins),
                                               _mm256_srli_epi32(pairs, 2), 4);
  const __m256i shift = _mm256_slli_epi32(_mm256_and_si256(pairs, _mm256_set1_epi32(3)), 3);
  return _mm256_srlv_epi32(words, shift);
}

// One bit for each lane whose lowest bit is set.
LLMJP_AVX2 uint64_t lowest_bits(__m256i lanes) {
  return static_cast<uint32_t>(
      _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_slli_epi32(lanes, 31))));
}

LLMJP_AVX2 uint64_t narrow_avx2(const Tables& tables, const uint8_t* text, size_t count) {
  uint64_t joined = 0;
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i first =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(text + i)));
    const __m256i second =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(text + i + 1)));
    const __m256i pairs = _mm256_or_si256(first, _mm256_slli_epi32(second, 8));
    joined |= lowest_bits(narrow_entries(tables, pairs)) << i;
  }
  const uint64_t rest = i < count ? narrow_generic(tables, text + i, count - i) << i : 0;
  return (~joined & lowest(i)) | rest;
}

LLMJP_AVX2 uint64_t wide_avx2(const Tables& tables, const char16_t* text, size_t count) {
  const __m128i shift = _mm_cvtsi32_si128(static_cast<int>(tables.pair_shift));
  const __m256i mixer = _mm256_set1_epi32(static_cast<int>(UnitRules::kPairMixer));
  const auto* const table = reinterpret_cast<const int*>(tables.pairs);
  uint64_t joined = 0;
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i first =
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(text + i)));
    const __m256i second =
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(text + i + 1)));
    const __m256i pairs = _mm256_or_si256(first, _mm256_slli_epi32(second, 16));
    const __m256i bit = _mm256_srl_epi32(_mm256_mullo_epi32(pairs, mixer), shift);
    const __m256i words = _mm256_i32gather_epi32(table, _mm256_srli_epi32(bit, 5), 4);
    joined |= lowest_bits(_mm256_srlv_epi32(words, _mm256_and_si256(bit, _mm256_set1_epi32(31))))
              << i;
  }
  const uint64_t rest = i < count ? wide_generic(tables, text + i, count - i) << i : 0;
  return (~joined & lowest(i)) | rest;
}

LLMJP_AVX512 uint64_t narrow_avx512(const Tables& tables, const uint8_t* text, size_t count) {
  const __m512i one = _mm512_set1_epi32(1);
  uint64_t joined = 0;
  for (size_t i = 0; i < count; i += 16) {
    const auto wanted = static_cast<__mmask16>(lowest(count - i));
    const __m512i first = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(wanted, text + i));
    const __m512i second = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(wanted, text + i + 1));
    const __m512i pairs = _mm512_or_si512(first, _mm512_slli_epi32(second, 8));
    const __m512i words = _mm512_mask_i32gather_epi32(
        _mm512_setzero_si512(), wanted, _mm512_srli_epi32(pairs, 2), tables.narrow_joins, 4);
    const __m512i shift = _mm512_slli_epi32(_mm512_and_si512(pairs, _mm512_set1_epi32(3)), 3);
    joined |= uint64_t{_mm512_test_epi32_mask(words, _mm512_sllv_epi32(one, shift))} << i;
  }
  return ~joined & lowest(count);
}

LLMJP_AVX512 uint64_t wide_avx512(const Tables& tables, const char16_t* text, size_t count) {
  const __m512i one = _mm512_set1_epi32(1);
  const __m128i shift = _mm_cvtsi32_si128(static_cast<int>(tables.pair_shift));
  const __m512i mixer = _mm512_set1_epi32(static_cast<int>(UnitRules::kPairMixer));
  uint64_t joined = 0;
  for (size_t i = 0; i < count; i += 16) {
    const auto wanted = static_cast<__mmask16>(lowest(count - i));
    const __m512i first = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(wanted, text + i));
    const __m512i second = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(wanted, text + i + 1));
    const __m512i pairs = _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
    const __m512i bit = _mm512_srl_epi32(_mm512_mullo_epi32(pairs, mixer), shift);
    const __m512i words = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), wanted,
                                                      _mm512_srli_epi32(bit, 5), tables.pairs, 4);
    const __m512i mask = _mm512_sllv_epi32(one, _mm512_and_si512(bit, _mm512_set1_epi32(31)));
    joined |= uint64_t{_mm512_test_epi32_mask(words, mask)} << i;
  }
  return ~joined & lowest(count);
}
#endif

}  // namespace

UnitCuts::UnitCuts(const UnitRules& rules, host::InstructionSet set)
    : tables_(rules.cut_tables()), narrow_(narrow_generic), wide_(wide_generic) {
#ifdef __x86_64__
  if (set == host::InstructionSet::kAvx2) {
    narrow_ = narrow_avx2;
    wide_ = wide_avx2;
  } else if (set == host::InstructionSet::kAvx512) {
    narrow_ = narrow_avx512;
    wide_ = wide_avx512;
  }
#else
  static_cast<void>(set);
#endif
}

}  // namespace llmjp::tokenizer
