// The Unigram search in its plain form, which defines the result: double precision, left to right
// over a whole segment, as Hugging Face `tokenizers` does it.
//
//   best[end] = max over pieces text[start, end) of score(piece) + best[start]
//
// A candidate replaces what is there only when strictly greater, so of equals the earliest start
// stays. Sums are accumulated from the segment's first character in the order of the text: with
// equal scores along two paths rounding decides, and rounding depends on everything before.
//
// SentencePiece (0.2.3) compares the same way, but keeps each sum in single precision. Whenever the
// best one at a character passes 100,000, it takes that sum off all that start there or reach
// beyond, so that enough of the fraction is left; the differences are rounded once more by that.
//
// Where no piece reaches beyond a position, the best path to it is settled: its pieces are emitted,
// its sum is carried on, and the memory is used again. That changes no sum and no comparison.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "tokenizer/id_buffer.h"
#include "tokenizer/model.h"

namespace llmjp::tokenizer {

// Most stretches between settled positions are one or two characters long, so what happens once a
// stretch costs as much as the search itself: characters are turned into codes in blocks ahead of
// it, and a stretch of one piece is emitted without walking back.
class SequentialSearch {
 public:
  explicit SequentialSearch(const Model& model) : model_(model) {}

  // Appends the ids of text[0, size), with "▁" before it if `prefix`. `sum` is the score of the
  // path up to here, 0 at the start of a segment; returns the score at the end. Throws
  // LoneSurrogate.
  template <class Char, class Id>
  double run(const Char* text, size_t size, bool prefix, double sum, IdBuffer<Id>& out) {
    return model_.spec.single_precision_sums ? search<true>(text, size, prefix, sum, out)
                                             : search<false>(text, size, prefix, sum, out);
  }

 private:
  static constexpr int32_t kUnset = -2;
  static constexpr double kSingleLimit = 100'000.0;
  static constexpr size_t kBlock = 1024;  // characters whose codes are computed at a time, at least

  struct Best {
    double sum;
    uint32_t length;  // of the last piece
    int32_t id;
  };

  template <bool kSingle, class Char, class Id>
  double search(const Char* text, size_t size, bool prefix, double sum, IdBuffer<Id>& out) {
    const size_t offset = prefix ? 1 : 0;
    const size_t length = size + offset;
    const auto at = [=](size_t i) {
      return i < offset ? kSpaceMark : static_cast<char32_t>(text[i - offset]);
    };
    const double* const scores = model_.spec.scores.data();
    const Trie::Node* const nodes = model_.trie.nodes();
    const auto unknown_id = static_cast<int32_t>(model_.spec.unknown_id);
    const size_t ahead = model_.longest_piece + 1;  // codes that one start may look at
    fit(ahead);
    unknown_run_.clear();
    size_t coded_from = 0;  // codes_[i - coded_from] is the code of character i < coded_to
    size_t coded_to = 0;
    size_t window = 0;  // positions before it are settled
    size_t reach = 0;   // the furthest end of any piece so far
    for (size_t start = 0; start < length; ++start) {
      if (start == reach) {
        if (start > window) sum = emit(window, start, at, out);
        window = start;
        best_[0] = {sum, 0, kUnset};
      }
      if (coded_to < length && coded_to - start < ahead) {
        coded_to = std::min(length, start + 2 * ahead + kBlock);
        coded_from = start;
        codes_.resize(coded_to - start + 1);
        for (size_t i = start; i < coded_to; ++i) codes_[i - start] = model_.codes[at(i)];
        codes_[coded_to - start] = CharacterCodes::kNone;  // ends every piece
      }
      const size_t here = start - window;
      if (best_.size() < here + ahead + 1) fit(here + ahead + 1);
      Best* const best = best_.data() + here;
      size_t known = reach - start;  // ends up to here have some path already
      if (kSingle && std::abs(best->sum) > kSingleLimit) start_sums_anew(best, known);
      const double so_far = best->sum;
      const auto relax = [&](size_t count, double score, int32_t id) {
        double candidate = score + so_far;
        if constexpr (kSingle) candidate = static_cast<float>(candidate);
        if (count > known) {
          while (++known < count) best[known].id = kUnset;
        } else if (!(candidate > best[count].sum) && best[count].id != kUnset) {
          return;
        }
        best[count] = {candidate, static_cast<uint32_t>(count), id};
      };
      bool single = false;
      const uint32_t* const codes = codes_.data() + (start - coded_from);
      int32_t node = Trie::kRoot;
      for (size_t i = 0; codes[i] != CharacterCodes::kNone; ++i) {
        const int32_t child = nodes[node].base + static_cast<int32_t>(codes[i]);
        if (nodes[child].parent != node) break;
        node = child;
        const int32_t id = nodes[node].id;
        if (id < 0) continue;
        relax(i + 1, scores[id], id);
        single |= i == 0;
      }
      if (!single) relax(1, model_.spec.unknown_score, unknown_id);
      reach = start + known;
    }
    if (length > window) sum = emit(window, length, at, out);
    flush_unknown(out);
    return sum;
  }

  static void start_sums_anew(Best* best, size_t known) {
    const double offset = best->sum;
    best->sum = 0.0;
    for (size_t i = 1; i <= known; ++i) best[i].sum = static_cast<float>(best[i].sum - offset);
  }

  void fit(size_t size) {
    if (best_.size() < size) best_.resize(std::max(size, 2 * best_.size()));
  }

  // Appends the best path from `begin` to `end`; returns its sum.
  template <class At, class Id>
  double emit(size_t begin, size_t end, const At& at, IdBuffer<Id>& out) {
    const size_t length = end - begin;
    const Best& last = best_[length];
    const auto unknown_id = static_cast<int32_t>(model_.spec.unknown_id);
    if (last.length == length && last.id != unknown_id) {
      flush_unknown(out);
      out.push(static_cast<uint32_t>(last.id));
      return last.sum;
    }
    path_.clear();
    for (size_t i = length; i > 0; i -= best_[i].length) path_.push_back(i);
    size_t start = 0;
    for (auto i = path_.rbegin(); i != path_.rend(); start = *i++) {
      const int32_t id = best_[*i].id;
      if (id == unknown_id) {
        for (size_t k = start; k < *i; ++k) unknown_run_.push_back(model_.normalize(at(begin + k)));
      } else {
        flush_unknown(out);
        out.push(static_cast<uint32_t>(id));
      }
    }
    return last.sum;
  }

  template <class Id>
  void flush_unknown(IdBuffer<Id>& out) {
    if (!unknown_run_.empty()) append_unknown(out);
  }
  template <class Id>
  void append_unknown(IdBuffer<Id>& out);

  const Model& model_;
  std::vector<Best> best_;  // by end, from the window's start
  std::vector<uint32_t> codes_;
  std::vector<size_t> path_;    // ends, last first
  std::u32string unknown_run_;  // unknown characters in a row are looked up as one
};

}  // namespace llmjp::tokenizer
