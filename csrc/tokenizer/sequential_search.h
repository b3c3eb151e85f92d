// The Unigram search in its plain form, which defines the result: double precision, left to right
// over a whole segment, as Hugging Face `tokenizers` does it.
//
//   best[end] = max over pieces text[start, end) of score(piece) + best[start]
//
// A candidate replaces what is there only when strictly greater, so of equals the earliest start
// stays. Sums are accumulated from the segment's first character in the order of the text: with
// equal scores along two paths rounding decides, and rounding depends on everything before.
//
// SentencePiece compares the same way, but keeps each sum in single precision.
//
// Where no piece reaches beyond a position, the best path to it is settled: its pieces are emitted,
// its sum is carried on, and the memory is used again. That changes no sum and no comparison.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "tokenizer/id_buffer.h"
#include "tokenizer/model.h"

namespace llmjp::tokenizer {

class SequentialSearch {
 public:
  explicit SequentialSearch(const Model& model) : model_(model) {}

  // Appends the ids of text[0, size), with "▁" before it if `prefix`. `sum` is the score of the
  // path up to here, 0 at the start of a segment; returns the score at the end. Throws
  // LoneSurrogate.
  template <class Char>
  double run(const Char* text, size_t size, bool prefix, double sum, IdBuffer& out) {
    const size_t offset = prefix ? 1 : 0;
    const size_t length = size + offset;
    const auto at = [=](size_t i) {
      return i < offset ? kSpaceMark : static_cast<char32_t>(text[i - offset]);
    };
    const auto& scores = model_.spec.scores;
    unknown_run_.clear();
    size_t window = 0;  // positions before it are settled
    size_t reach = 0;   // the furthest end of any piece so far
    for (size_t start = 0; start < length; ++start) {
      if (start == reach) {
        if (start > window) {
          sum = best_[start - window].sum;
          emit(window, start, at, out);
        }
        window = start;
        fit(1);
        best_[0] = {sum, 0, -1};
      }
      const double so_far = best_[start - window].sum;
      const auto relax = [&](size_t end, double score, int32_t id) {
        const double candidate = rounded(score + so_far);
        if (end > reach) {
          fit(end - window + 1);
          for (size_t i = reach + 1; i <= end; ++i) best_[i - window].id = kUnset;
          reach = end;
        }
        Best& best = best_[end - window];
        if (best.id == kUnset || candidate > best.sum) best = {candidate, start, id};
      };
      bool single = false;
      int32_t node = Trie::kRoot;
      for (size_t i = start; i < length; ++i) {
        const uint32_t code = model_.codes[at(i)];
        if (code == CharacterCodes::kNone) break;
        node = model_.trie.step(node, code);
        if (node < 0) break;
        const int32_t id = model_.trie.node(node).id;
        if (id < 0) continue;
        relax(i + 1, scores[static_cast<size_t>(id)], id);
        single |= i == start;
      }
      if (!single)
        relax(start + 1, model_.spec.unknown_score, static_cast<int32_t>(model_.spec.unknown_id));
    }
    if (length > window) {
      sum = best_[length - window].sum;
      emit(window, length, at, out);
    }
    flush_unknown(out);
    return sum;
  }

 private:
  static constexpr int32_t kUnset = -2;

  double rounded(double sum) const {
    return model_.spec.single_precision_sums ? static_cast<double>(static_cast<float>(sum)) : sum;
  }

  struct Best {
    double sum;
    size_t start;
    int32_t id;
  };

  void fit(size_t size) {
    if (best_.size() < size) best_.resize(std::max(size, 2 * best_.size()));
  }

  template <class At>
  void emit(size_t begin, size_t end, const At& at, IdBuffer& out) {
    path_.clear();
    for (size_t i = end; i > begin; i = best_[i - begin].start) path_.push_back(i);
    size_t start = begin;
    for (auto i = path_.rbegin(); i != path_.rend(); ++i) {
      const auto id = static_cast<uint32_t>(best_[*i - begin].id);
      if (id == model_.spec.unknown_id) {
        for (size_t k = start; k < *i; ++k) unknown_run_.push_back(model_.normalize(at(k)));
      } else {
        flush_unknown(out);
        out.push(id);
      }
      start = *i;
    }
  }

  void flush_unknown(IdBuffer& out);

  const Model& model_;
  std::vector<Best> best_;      // by end, from the window's start
  std::vector<size_t> path_;    // ends, last first
  std::u32string unknown_run_;  // unknown characters in a row are looked up as one
};

}  // namespace llmjp::tokenizer
