// How often each piece is expected in a text, over all ways to cut it: the E-step of training a
// Unigram model (Kudo, "Subword Regularization", ACL 2018, section 3.2).
//
//   P(cut) ∝ exp(sum of the scores of its pieces)
//   forward[end]    = log of the sum of the above over all cuts of text[0, end)
//   backward[begin] = the same of text[begin, size)
//   count(piece)   += exp(forward[begin] + score + backward[end] - forward[size])
//
// for each place text[begin, end) where the piece stands. All in logarithms and double precision:
// the probability of a line of a thousand characters is below what a double can hold.
#pragma once

#include <cstdint>
#include <vector>

#include "tokenizer/model.h"
#include "tokenizer/text.h"

namespace llmjp::tokenizer {

// A text is cut where no piece reaches across, at newlines for one, which changes no sum: memory is
// proportional to the longest stretch between such places.
class Expectation {
 public:
  // `scores`, and `counts`, which add() adds to, are by id and outlive this.
  Expectation(const Model& model, const double* scores, double* counts)
      : model_(model), scores_(scores), counts_(counts) {}

  // Adds a text, with "▁" before it where the model says so; returns the logarithm of the sum over
  // all cuts. Characters without a piece of their own may be cut off as unknown ones, at the
  // model's price. Throws LoneSurrogate.
  double add(const Text& text);

 private:
  struct Arc {  // a piece in its place, from the stretch's start
    uint32_t begin;
    uint32_t end;
    int32_t id;
    double score;
  };

  template <class Char>
  double add(const Char* text, size_t size);
  void follow(size_t begin, size_t end, int32_t id, double score);
  double settle();

  const Model& model_;
  const double* scores_;
  double* counts_;
  std::vector<Arc> arcs_;  // by rising begin
  std::vector<double> forward_;
  std::vector<double> backward_;
};

}  // namespace llmjp::tokenizer
