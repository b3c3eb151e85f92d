// What is true of a vocabulary as a whole and lets a text be searched in pieces of a few characters
// ("units"): between which characters no piece reaches, and scores as integers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "tokenizer/model.h"

namespace llmjp::tokenizer {

class UnitRules {
 public:
  static constexpr size_t kLongestUnit = 32;   // in characters
  static constexpr size_t kLongestTied = 256;  // longer ones go to the plain search

  explicit UnitRules(const Model& model);
  // Of a compiled file. Throws FormatError where a search would leave the tables.
  UnitRules(const Model& model, CompiledReader& reader);
  void write(CompiledWriter& writer) const;

  // False where the unit search would not be exact, or cannot be had: sums in single precision,
  // scores that are no multiples of a power of two.
  bool usable() const { return usable_; }

  // Every character that occurs in a piece is one by itself. Else units may hold unknown ones.
  bool all_alone() const { return all_alone_; }

  // Integer scores by id: score = cost / 2^k for one k, up to an error that cannot change which of
  // two different integer sums of a unit is the greater.
  const int32_t* costs() const { return costs_.data(); }
  // That holds while the sum of doubles stays below this in magnitude.
  double sum_limit() const { return sum_limit_; }
  // The same for units of up to kLongestTied characters.
  double long_sum_limit() const {
    constexpr double kTimes = static_cast<double>(kLongestTied) / kLongestUnit;
    return sum_limit_ / kTimes - kLongestTied * largest_score_;
  }
  // All scores are such multiples themselves: then no sum below the limit is rounded, and of equal
  // ones the earliest start stays wherever the unit lies.
  bool exact_scores() const { return exact_scores_; }
  double largest_score() const { return largest_score_; }  // in magnitude, unknown ones included

  // Whether some piece may hold these characters side by side. They are looked up by a hash of both
  // in a table of bits, so that a few pairs are taken for joined that are not: that makes a unit
  // longer, which is harmless.
  bool joined(char32_t first, char32_t second) const {
    const uint32_t bit = hash_of_pair(first, second) >> pair_shift_;
    return (pairs_[bit >> 5] >> (bit & 31) & 1) != 0;
  }
  static uint32_t hash_of_pair(char32_t first, char32_t second) {
    return (static_cast<uint32_t>(first) ^ static_cast<uint32_t>(second) << 16) * kPairMixer;
  }
  static constexpr uint32_t kPairMixer = 0x9E3779B1;  // odd, bits without a pattern

  // What UnitCuts reads.
  struct CutTables {
    const uint32_t* pairs;        // a bit for each hash of a pair, shifted right
    uint32_t pair_shift;          // by so much
    const uint8_t* narrow_joins;  // 0 or 1 for pairs of bytes, in memory's order
  };
  CutTables cut_tables() const { return {pairs_.data(), pair_shift_, narrow_joins_.data()}; }

  // No piece joins a character beyond U+FFFF to another one.
  bool wide_alone() const { return wide_alone_; }

  // Byte pieces such as <0x41>, spelled out in a text, are looked for apart from all others: else
  // they would join digits and letters everywhere.
  bool literals_apart() const { return literals_apart_; }

  // Ids of pieces that are runs of n marks, n = 1, 2, …; [0] is unused. Longer than 2 only if all
  // have the same negative score and no other piece holds two marks in a row: then n spaces and a
  // word are cut as 2 spaces and the word, but for the first piece.
  const std::vector<uint32_t>& run_ids() const { return run_ids_; }

 private:
  template <class Self, class Archive>
  static void transfer(Self& self, Archive& archive);
  void check(const Model& model) const;
  bool scale_scores(const Model& model);
  void find_pairs(const std::vector<std::u32string>& pieces, bool spaces_to_marks);
  void find_runs(const Model& model);

  // One in sixty or more of other pairs is taken for joined; LLM-jp v2.1 has a table of 128 KB.
  static constexpr size_t kBitsPerPair = 32;
  static constexpr int kLeastPairBits = 12;
  static constexpr int kMostPairBits = 26;

  bool usable_ = false;
  bool all_alone_ = true;
  bool wide_alone_ = true;
  bool literals_apart_ = false;
  bool exact_scores_ = false;
  double sum_limit_ = 0.0;
  double largest_score_ = 0.0;
  Table<int32_t> costs_;
  Table<uint32_t> pairs_;        // see joined()
  Table<uint8_t> narrow_joins_;  // 0 or 1 for pairs of bytes, in memory's order
  uint32_t pair_shift_ = 31;
  std::vector<uint32_t> run_ids_;
};

}  // namespace llmjp::tokenizer
