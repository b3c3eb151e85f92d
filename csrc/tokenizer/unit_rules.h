// What is true of a vocabulary as a whole and lets a text be searched in pieces of a few characters
// ("units"): between which characters no piece reaches, and scores as integers.
#pragma once

#include <algorithm>
#include <cstdint>
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

  // Rows of the table of neighbours: 0 for characters that no piece has. Rare characters may share
  // one: neighbours are then taken for joined that are not, which is harmless.
  uint32_t row(char32_t c) const {
    return c < 0x10000 ? rows_[c] : std::min(codes_[c], kMostRows - 1);
  }
  // Whether some piece may hold the two characters of these rows side by side.
  bool joined_rows(uint32_t first, uint32_t second) const {
    return (joins_[first * row_words_ + (second >> 6)] >> (second & 63) & 1) != 0;
  }
  template <class Char>
  bool joined(Char first, Char second) const {
    return joined_rows(row(static_cast<char32_t>(first)), row(static_cast<char32_t>(second)));
  }

  // What UnitCuts reads.
  struct CutTables {
    const uint16_t* rows;         // by character up to U+FFFF
    const uint64_t* joins;        // a bit for each pair of rows
    size_t row_words;             // of `joins` a row
    const uint8_t* narrow_joins;  // 0 or 1 for pairs of bytes, in memory's order
  };
  CutTables cut_tables() const {
    return {rows_.data(), joins_.data(), row_words_, narrow_joins_.data()};
  }

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
  static constexpr uint32_t kMostRows = 8192;  // of 1 KB each at most

  template <class Self, class Archive>
  static void transfer(Self& self, Archive& archive);
  void check(const Model& model) const;
  bool scale_scores(const Model& model);
  void find_runs(const Model& model);

  bool usable_ = false;
  bool all_alone_ = true;
  bool wide_alone_ = true;
  bool literals_apart_ = false;
  bool exact_scores_ = false;
  double sum_limit_ = 0.0;
  double largest_score_ = 0.0;
  Table<int32_t> costs_;
  Table<uint16_t> rows_;         // by character up to U+FFFF
  Table<uint64_t> joins_;        // a bit for each pair of rows
  Table<uint8_t> narrow_joins_;  // 0 or 1 for pairs of bytes, in memory's order
  size_t row_words_ = 1;
  std::vector<uint32_t> run_ids_;
  const CharacterCodes& codes_;
};

}  // namespace llmjp::tokenizer
