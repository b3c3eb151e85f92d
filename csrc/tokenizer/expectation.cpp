#include "tokenizer/expectation.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace llmjp::tokenizer {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

// log(exp(a) + exp(b)) for finite b.
double log_add(double a, double b) {
  const double high = std::max(a, b);
  return high + std::log1p(std::exp(std::min(a, b) - high));
}

}  // namespace

double Expectation::add(const Text& text) {
  if (text.size == 0) return 0.0;
  return with_characters(text, [&](const auto* characters) { return add(characters, text.size); });
}

template <class Char>
double Expectation::add(const Char* text, size_t size) {
  const size_t offset = model_.spec.prefix_mark ? 1 : 0;
  const size_t length = size + offset;
  const auto at = [=](size_t i) {
    return i < offset ? kSpaceMark : static_cast<char32_t>(text[i - offset]);
  };
  double sum = 0.0;
  size_t window = 0;  // where the stretch starts
  forward_.assign(1, 0.0);
  arcs_.clear();
  for (size_t start = 0; start < length; ++start) {
    if (start > window && start == window + forward_.size() - 1) {
      sum += settle();
      window = start;
    }
    bool single = false;
    int32_t node = Trie::kRoot;
    for (size_t i = start; i < length; ++i) {
      const uint32_t code = model_.codes[at(i)];
      if (code == CharacterCodes::kNone) break;
      node = model_.trie.step(node, code);
      if (node < 0) break;
      const int32_t id = model_.trie.node(node).id;
      if (id < 0) continue;
      follow(start - window, i + 1 - window, id, scores_[id]);
      single |= i == start;
    }
    if (!single) {
      if (is_surrogate(at(start))) throw LoneSurrogate();
      follow(start - window, start + 1 - window, static_cast<int32_t>(model_.spec.unknown_id),
             model_.spec.unknown_score);
    }
  }
  return sum + settle();
}

void Expectation::follow(size_t begin, size_t end, int32_t id, double score) {
  if (forward_.size() <= end) forward_.resize(end + 1, kNever);
  forward_[end] = log_add(forward_[end], forward_[begin] + score);
  arcs_.push_back({static_cast<uint32_t>(begin), static_cast<uint32_t>(end), id, score});
}

// Counts what stands in the stretch and begins the next one; returns the stretch's sum.
double Expectation::settle() {
  const double sum = forward_.back();
  backward_.assign(forward_.size(), kNever);
  backward_.back() = 0.0;
  for (auto arc = arcs_.rbegin(); arc != arcs_.rend(); ++arc) {
    const double behind = arc->score + backward_[arc->end];
    counts_[arc->id] += std::exp(forward_[arc->begin] + behind - sum);
    backward_[arc->begin] = log_add(backward_[arc->begin], behind);
  }
  arcs_.clear();
  forward_.assign(1, 0.0);
  return sum;
}

}  // namespace llmjp::tokenizer
