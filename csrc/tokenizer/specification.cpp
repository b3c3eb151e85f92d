#include "tokenizer/specification.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "tokenizer/json.h"

namespace llmjp::tokenizer {

size_t Specification::total_size() const {
  size_t size = pieces.size();
  for (const AddedToken& token : added) size = std::max<size_t>(size, size_t{token.id} + 1);
  return size;
}

void Specification::check() const {
  if (pieces.empty()) throw FormatError("the vocabulary is empty");
  if (pieces.size() > kMaxPieces) {
    throw FormatError("the vocabulary has more than " + std::to_string(kMaxPieces) + " pieces");
  }
  if (unknown_id >= pieces.size()) {
    throw FormatError("unk_id is " + std::to_string(unknown_id) + ", but the vocabulary ends at " +
                      std::to_string(pieces.size() - 1));
  }
  std::unordered_set<std::string_view> seen;
  seen.reserve(pieces.size());
  for (size_t id = 0; id < pieces.size(); ++id) {
    if (!std::isfinite(scores[id])) {
      throw FormatError("the score of piece " + std::to_string(id) + " is not a finite number");
    }
    if (!seen.insert(pieces[id]).second) {
      throw FormatError("piece " + std::to_string(id) + " (\"" + pieces[id] +
                        "\") appears twice in the vocabulary");
    }
  }
  size_t next = pieces.size();
  std::unordered_set<std::string_view> contents;
  for (const AddedToken& token : added) {
    if (token.content.empty()) throw FormatError("an added token with empty content");
    if (!contents.insert(token.content).second) {
      throw FormatError("added token \"" + token.content + "\" appears twice");
    }
    const bool in_vocabulary = seen.contains(token.content);
    const bool right = in_vocabulary ? token.id < pieces.size() && pieces[token.id] == token.content
                                     : token.id == next++;
    if (!right) {
      throw FormatError("added token \"" + token.content + "\" has id " + std::to_string(token.id) +
                        ", which is neither its id in the vocabulary nor the next free one");
    }
  }
  const size_t size = total_size();
  for (const auto* items : {&single, &pair}) {
    for (const TemplateItem& item : *items) {
      if (item.kind == TemplateItem::Kind::kToken && item.id >= size) {
        throw FormatError("the post-processor adds id " + std::to_string(item.id) +
                          ", but ids end at " + std::to_string(size - 1));
      }
    }
  }
}

}  // namespace llmjp::tokenizer
