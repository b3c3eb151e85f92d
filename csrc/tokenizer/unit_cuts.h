// Where a text falls into units: between two neighbouring characters that no piece holds side by
// side. One bit a position, found for up to 64 positions at a time, by whichever instructions the
// processor has; the bits are the same.
#pragma once

#include <cstddef>
#include <cstdint>

#include "host/cpu_features.h"
#include "tokenizer/unit_rules.h"

namespace llmjp::tokenizer {

class UnitCuts {
 public:
  UnitCuts(const UnitRules& rules, host::InstructionSet set);

  // The set to take where nobody asks for one: plain loads, which AMD's Zen 4 does faster than it
  // gathers, with either width of vectors.
  static host::InstructionSet preferred() { return host::InstructionSet::kGeneric; }

  // Bit i is set if nothing joins text[from + i - 1] and text[from + i]; from > 0, count <= 64.
  // Bits from `count` on are 0.
  uint64_t find(const uint8_t* text, size_t from, size_t count) const {
    return narrow_(tables_, text + from - 1, count);
  }
  uint64_t find(const char16_t* text, size_t from, size_t count) const {
    return wide_(tables_, text + from - 1, count);
  }

 private:
  // For the `count` pairs of neighbours that begin at `text`.
  template <class Char>
  using Function = uint64_t (*)(const UnitRules::CutTables& tables, const Char* text, size_t count);

  UnitRules::CutTables tables_;
  Function<uint8_t> narrow_;
  Function<char16_t> wide_;
};

}  // namespace llmjp::tokenizer
