// The Unigram search unit by unit: the same ids as SequentialSearch, several times faster.
//
// A unit is a stretch of text between two positions that no piece spans; for most text it is a word
// or a few characters. Its best path does not depend on its surroundings but for rounding, and
// rounding decides only between paths whose exact sums are equal. So a unit is searched with
// integer scores, and its ids are remembered. Where two paths to a position on the best one are
// equal, the unit is left to SequentialSearch, which starts from the sum of doubles that it would
// have had there itself: the scores of all ids before, added up in the order of the text. What can
// be known of such a unit beforehand is remembered, too (tied_units.h).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "tokenizer/id_buffer.h"
#include "tokenizer/model.h"
#include "tokenizer/sequential_search.h"
#include "tokenizer/tied_units.h"
#include "tokenizer/unit_cuts.h"
#include "tokenizer/unit_memo.h"
#include "tokenizer/unit_rules.h"

namespace llmjp::tokenizer {

// The sum of a segment's path up to out[summed] of the ids. Ids behind it are those of pieces that
// stand for themselves.
struct PathSum {
  double sum = 0.0;
  size_t summed = 0;
};

// Stretches of a segment whose ids depend on the sum before them, left open by a search that begins
// in a segment's midst and does not know it.
struct OpenStretches {
  struct Stretch {
    size_t at;      // so many ids come before it
    size_t length;  // in characters
  };

  template <class Char>
  void add(const Char* text, size_t size, size_t at) {
    stretches.push_back({at, size});
    for (size_t i = 0; i < size; ++i) characters.push_back(static_cast<char32_t>(text[i]));
  }
  void clear() {
    stretches.clear();
    characters.clear();
  }

  std::vector<Stretch> stretches;
  std::u32string characters;  // of all of them
};

class UnitSearch {
 public:
  UnitSearch(const Model& model, const UnitRules& rules, SequentialSearch& sequential,
             int memo_bits, host::InstructionSet instructions)
      : model_(model),
        rules_(rules),
        sequential_(sequential),
        run_ids_(rules.run_ids()),
        cuts_(rules, instructions),
        short_memo_(memo_bits),
        medium_memo_(std::min(memo_bits, kMediumMemoBits)),
        long_memo_(std::min(memo_bits, kLongMemoBits)),
        tied_(model, rules) {}

  // Appends the ids of a segment, with "▁" before it if `prefix`. Its text holds no added token
  // that is looked for in raw text. rules.usable(). Throws LoneSurrogate.
  //
  // With `open` the text is what follows a cut in a segment's midst, and stretches that need the
  // sum up to there are left out and noted instead; the caller sees to it that the sums of the
  // whole segment stay below rules.sum_limit(). Byte ids are then those of unknown characters alone
  // if rules.literals_apart(), else those of spelled-out byte pieces alone. Else returns the sum.
  template <class Char, class Id>
  PathSum run(const Char* text, size_t size, bool prefix, IdBuffer<Id>& out,
              OpenStretches* open = nullptr);

 private:
  static constexpr size_t kLongestUnit = UnitRules::kLongestUnit;
  static constexpr size_t kBlock = 64;  // characters
  static constexpr size_t kShortText = 255;
  static constexpr int kMediumMemoBits = 14;  // 1 MB
  static constexpr int kLongMemoBits = 12;    // 256 KB
  // Ids of a block, of the unit that reaches into it, and what a memo entry writes beyond its own.
  static constexpr size_t kBlockIds = kBlock + kLongestUnit + 16;

  // Of a short text, "▁" in front and a key's width behind.
  struct Copies {
    std::array<uint8_t, 1 + kShortText + 16> narrow{};
    std::array<char16_t, 1 + kShortText + 16> wide{};

    template <class Char>
    auto& get() {
      if constexpr (sizeof(Char) == 1) {
        return narrow;
      } else {
        return wide;
      }
    }
  };

  // A segment on its way.
  template <class Id>
  struct Segment {
    IdBuffer<Id>& out;
    double sum;  // of doubles, up to the id at `summed`
    size_t summed;
    OpenStretches* open;  // not null: the sum is not known
  };

  // The sum of doubles so far. All ids since the last call are pieces that stand for themselves.
  template <class Id>
  double fold(Segment<Id>& segment) const {
    const double* const scores = model_.spec.scores.data();
    double sum = segment.sum;
    for (size_t i = segment.summed; i < segment.out.size(); ++i) sum += scores[segment.out[i]];
    segment.summed = segment.out.size();
    return segment.sum = sum;
  }

  template <class Char, class Id>
  void search_plainly(const Char* text, size_t size, bool prefix, Segment<Id>& segment) {
    if (segment.open != nullptr) return segment.open->add(text, size, segment.out.size());
    segment.sum = sequential_.run(text, size, prefix, fold(segment), segment.out);
    segment.summed = segment.out.size();
  }

  template <class Id>
  void run_wide(const char32_t* text, size_t size, bool prefix, Segment<Id>& segment);
  template <class Char, class Id>
  void run_between_literals(const Char* text, size_t size, bool prefix, Segment<Id>& segment);
  template <class Char, class Id>
  void run_units(const Char* text, size_t size, bool prefix, Segment<Id>& segment);
  template <class Char, class Id>
  void run_readable(const Char* text, size_t size, size_t begin, size_t last_readable,
                    Segment<Id>& segment);
  template <class Char, class Id>
  size_t run_first(const Char* text, size_t size, Segment<Id>& segment);

  template <class Char, class Id>
  void append_unit(const Char* unit, size_t length, Segment<Id>& segment);
  template <class Char, class Id>
  bool append_exact(const Char* unit, size_t length, IdBuffer<Id>& out);
  template <class Char, class Id>
  void append_unsettled(const Char* unit, size_t length, Segment<Id>& segment);
  template <class Memo, class Char, class Id>
  uint16_t append_through(Memo& memo, const typename Memo::Key& key, const Char* unit,
                          size_t length, IdBuffer<Id>& out);
  // The first id of a unit that begins with two spaces, if there are `more` of them.
  template <class Id>
  Id with_spaces(Id first, size_t more) const {
    return static_cast<Id>(run_ids_[(first == run_ids_[2] ? 2 : 1) + more]);
  }
  // A piece of its own. (A character may have a code because a piece holds it that is never met.)
  bool is_known(char32_t c) const {
    const int32_t node = model_.trie.step(Trie::kRoot, model_.codes[c]);
    return node >= 0 && model_.trie.node(node).id >= 0;
  }
  template <class Id>
  void append_unknown(char32_t c, Segment<Id>& segment);
  template <class Char, class Id>
  uint16_t solve(const Char* unit, size_t length, Id* ids) const;

  const Model& model_;
  const UnitRules& rules_;
  SequentialSearch& sequential_;
  const std::vector<uint32_t>& run_ids_;
  UnitCuts cuts_;
  SingleUnitMemo single_memo_;
  ShortUnitMemo short_memo_;
  MediumUnitMemo medium_memo_;
  LongUnitMemo long_memo_;
  TiedUnits tied_;
  Copies copies_;
  std::u16string narrowed_;
};

}  // namespace llmjp::tokenizer
