// Small tokenizer files, composed: vocabularies with ties, literals and rare characters, of a few
// kilobytes, so that a fuzzer can change any part of them.
#pragma once

#include <string>
#include <vector>

namespace llmjp::tests {

struct Piece {
  enum Type { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };
  std::string text;
  float score = 0.0F;
  Type type = kNormal;
};

struct Vocabulary {
  std::vector<Piece> pieces;  // the unknown one first, then the 256 bytes
  bool added_tokens = false;  // of all kinds; only a tokenizer.json has them
};

// As LLM-jp's: runs of "▁" of equal scores, runs of one character that tie, all characters alone.
Vocabulary ordinary_vocabulary();
// Characters that only occur inside pieces, "<" inside pieces, pieces beyond U+FFFF, unused ones.
Vocabulary odd_vocabulary();
// With pieces that the user defined, and scores so low that a few of them pass 100,000.
Vocabulary extreme_vocabulary();

std::string compose_json(const Vocabulary& vocabulary);
std::string compose_sentencepiece(const Vocabulary& vocabulary);

}  // namespace llmjp::tests
