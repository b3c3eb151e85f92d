#include "tokenizer/unit_rules.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <string_view>
#include <unordered_set>

#include "tokenizer/compiled_model.h"
#include "tokenizer/json.h"

namespace llmjp::tokenizer {
namespace {

// Pieces that the search can never meet, because the text is cut at their spelling before: added
// tokens that are looked for in raw text. (A mark in them could come from a space.)
std::unordered_set<std::string_view> never_met(const Model& model) {
  std::unordered_set<std::string_view> contents;
  for (const AddedToken& token : model.spec.added) {
    if (!token.normalized && token.content.find(kSpaceMarkUtf8) == std::string::npos)
      contents.insert(token.content);
  }
  return contents;
}

uint16_t load_pair(const uint8_t* characters) {
  uint16_t pair;
  std::memcpy(&pair, characters, sizeof pair);
  return pair;
}

}  // namespace

UnitRules::UnitRules(const Model& model) {
  const Specification& spec = model.spec;
  if (spec.single_precision_sums || (spec.prefix_mark && !spec.spaces_to_marks)) return;
  // Else a row of unknown characters might be better than the piece that they spell, and how far
  // the row goes would matter.
  if (spec.unknown_score >= 0.0) return;
  if (!spec.byte_fallback) return;
  if (std::any_of(model.byte_ids.begin(), model.byte_ids.end(), [](int32_t id) { return id < 0; }))
    return;
  const std::unordered_set<std::string_view> unmet = never_met(model);
  if (spec.searchable[spec.unknown_id] != 0 && !unmet.contains(spec.pieces[spec.unknown_id]))
    return;
  if (!scale_scores(model)) return;

  const std::unordered_set<int32_t> bytes(model.byte_ids.begin(), model.byte_ids.end());
  std::vector<std::u32string> pieces;
  std::vector<std::u32string> literals;
  std::unordered_set<char32_t> inside;
  std::unordered_set<char32_t> alone;
  for (size_t id = 0; id < spec.pieces.size(); ++id) {
    if (spec.searchable[id] == 0 || spec.pieces[id].empty() || unmet.contains(spec.pieces[id]))
      continue;
    std::u32string piece = to_utf32(spec.pieces[id]);
    if (spec.spaces_to_marks && piece.find(U' ') != std::u32string::npos) continue;
    const bool literal = bytes.contains(static_cast<int32_t>(id));
    if (piece.size() == 1) {
      alone.insert(piece[0]);
    } else {
      inside.insert(piece.begin(), piece.end());
    }
    if (piece.size() > 1) (literal ? literals : pieces).push_back(std::move(piece));
  }
  all_alone_ =
      std::all_of(inside.begin(), inside.end(), [&](char32_t c) { return alone.contains(c); });
  // Text may be cut before "<" if that only begins pieces; then literals can be taken out.
  literals_apart_ = std::none_of(pieces.begin(), pieces.end(), [](const std::u32string& piece) {
    return piece.find(U'<', 1) != std::u32string::npos;
  });
  if (!literals_apart_) pieces.insert(pieces.end(), literals.begin(), literals.end());

  find_pairs(pieces, spec.spaces_to_marks);
  find_runs(model);
  usable_ = true;
}

// The tables of neighbours. A mark in a piece may be a space in the text.
void UnitRules::find_pairs(const std::vector<std::u32string>& pieces, bool spaces_to_marks) {
  std::unordered_set<uint64_t> pairs;  // the first character above the second
  const auto spelled = [&](char32_t c) {
    return c == kSpaceMark && spaces_to_marks ? std::u32string{kSpaceMark, U' '}
                                              : std::u32string{c};
  };
  for (const std::u32string& piece : pieces) {
    for (size_t i = 1; i < piece.size(); ++i) {
      if (piece[i - 1] > 0xFFFF || piece[i] > 0xFFFF) wide_alone_ = false;
      for (const char32_t first : spelled(piece[i - 1])) {
        for (const char32_t second : spelled(piece[i]))
          pairs.insert(uint64_t{first} << 32 | second);
      }
    }
  }
  const int bits = std::clamp(static_cast<int>(std::bit_width(pairs.size() * kBitsPerPair)),
                              kLeastPairBits, kMostPairBits);
  pair_shift_ = static_cast<uint32_t>(32 - bits);
  std::vector<uint32_t> table(size_t{1} << (bits - 5), 0);
  std::vector<uint8_t> narrow_joins(0x10000, 0);
  for (const uint64_t pair : pairs) {
    const auto first = static_cast<char32_t>(pair >> 32);
    const auto second = static_cast<char32_t>(pair & 0xFFFFFFFF);
    const uint32_t bit = hash_of_pair(first, second) >> pair_shift_;
    table[bit >> 5] |= uint32_t{1} << (bit & 31);
    if (first > 0xFF || second > 0xFF) continue;
    const uint8_t characters[2] = {static_cast<uint8_t>(first), static_cast<uint8_t>(second)};
    narrow_joins[load_pair(characters)] = 1;
  }
  pairs_ = std::move(table);
  narrow_joins_ = std::move(narrow_joins);
}

template <class Self, class Archive>
void UnitRules::transfer(Self& self, Archive& archive) {
  archive(self.usable_);
  archive(self.all_alone_);
  archive(self.wide_alone_);
  archive(self.literals_apart_);
  archive(self.exact_scores_);
  archive(self.sum_limit_);
  archive(self.largest_score_);
  archive(self.costs_);
  archive(self.pairs_);
  archive(self.pair_shift_);
  archive(self.narrow_joins_);
  archive(self.run_ids_);
}

void UnitRules::write(CompiledWriter& writer) const { transfer(*this, writer); }

UnitRules::UnitRules(const Model& model, CompiledReader& reader) {
  transfer(*this, reader);
  if (usable_) check(model);
}

// What a table of bits says is not checked: a pair that is wrongly joined or cut makes a unit that
// the search finds no path or another path through, but no step out of a table.
void UnitRules::check(const Model& model) const {
  const size_t ids = model.spec.pieces.size();
  const bool sound =
      costs_.size() == ids && narrow_joins_.size() == 0x10000 && pair_shift_ < 32 &&
      pairs_.size() >= (~uint32_t{0} >> pair_shift_ >> 5) + size_t{1} &&
      std::all_of(
          narrow_joins_.begin(), narrow_joins_.end(), [](uint8_t bit) { return bit <= 1; }) &&
      !run_ids_.empty() &&
      std::all_of(
          run_ids_.begin(), run_ids_.end(), [&](uint32_t id) { return id < ids; }) &&
      std::all_of(model.byte_ids.begin(), model.byte_ids.end(), [](int32_t id) { return id >= 0; });
  if (!sound) throw FormatError("the rules of units lead outside of their tables");
}

// Let every score be c/2^k + d, c an integer, |d| <= D. All candidates of a unit start from the
// same sum of doubles. After at most n = kLongestUnit (or kLongestTied) additions a sum is off by
// at most n (M/2^53 + D), M the greatest magnitude on the way. So two candidates whose integer sums
// differ, by 1/2^k at least, compare as those do if 2n (M/2^53 + D) < 1/2^k. With half of that for
// each term: D < 1/2^(k + 2) / n, and M < 2^(51 - k) / n.
bool UnitRules::scale_scores(const Model& model) {
  const Specification& spec = model.spec;
  largest_score_ = std::abs(spec.unknown_score);
  for (const double score : spec.scores) largest_score_ = std::max(largest_score_, std::abs(score));
  for (int k = 16; k <= 26; ++k) {
    const double unit = std::ldexp(1.0, -k);
    if (largest_score_ / unit >= 2147483647.0) return false;
    const bool multiples = std::all_of(spec.scores.begin(), spec.scores.end(), [&](double score) {
      return std::abs(score - std::nearbyint(score / unit) * unit) < unit / (4.0 * kLongestTied);
    });
    if (!multiples) continue;
    std::vector<int32_t> costs;
    costs.reserve(spec.scores.size());
    for (const double score : spec.scores)
      costs.push_back(static_cast<int32_t>(std::nearbyint(score / unit)));
    costs_ = std::move(costs);
    const auto exact = [&](double score) { return std::nearbyint(score / unit) * unit == score; };
    exact_scores_ =
        exact(spec.unknown_score) && std::all_of(spec.scores.begin(), spec.scores.end(), exact);
    // The sum is looked at before a unit, and M is reached in it.
    sum_limit_ = std::ldexp(1.0, 51 - k) / kLongestUnit - kLongestUnit * largest_score_;
    return sum_limit_ > 0.0;
  }
  return false;
}

void UnitRules::find_runs(const Model& model) {
  run_ids_ = {0};
  if (!model.spec.spaces_to_marks) return;
  std::u32string run(1, kSpaceMark);
  int32_t id;
  while ((id = model.find_piece(run)) >= 0 &&
         (run.size() == 1 ||
          model.spec.scores[static_cast<size_t>(id)] == model.spec.scores[run_ids_.back()])) {
    run_ids_.push_back(static_cast<uint32_t>(id));
    run += kSpaceMark;
  }
  const std::string two = std::string(kSpaceMarkUtf8) + std::string(kSpaceMarkUtf8);
  ptrdiff_t holding = 0;
  for (size_t piece = 0; piece < model.spec.pieces.size(); ++piece)
    holding += model.spec.pieces[piece].find(two) != std::string_view::npos ? 1 : 0;
  const auto runs = static_cast<ptrdiff_t>(run_ids_.size()) - 2;  // those of two marks or more
  if (runs < 1 || holding != runs || model.spec.scores[run_ids_[1]] >= 0.0) run_ids_.resize(1);
}

}  // namespace llmjp::tokenizer
