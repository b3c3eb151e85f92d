#include "tokenizer/specification.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "tokenizer/json.h"
#include "tokenizer/utf8.h"

namespace llmjp::tokenizer {

size_t Specification::total_size() const {
  size_t size = pieces.size();
  for (const AddedToken& token : added) size = std::max<size_t>(size, size_t{token.id} + 1);
  return size;
}

void Specification::finish() {
  if (pieces.size() > kMaxPieces) {
    throw FormatError("the vocabulary has more than " + std::to_string(kMaxPieces) + " pieces");
  }
  piece_ids.build(pieces);
  check();
}

void Specification::check() const {
  if (pieces.empty()) throw FormatError("the vocabulary is empty");
  pieces.check();
  piece_ids.check(pieces);
  if (scores.size() != pieces.size() || searchable.size() != pieces.size())
    throw FormatError("there are not as many scores as pieces");
  if (unknown_id >= pieces.size()) {
    throw FormatError("unk_id is " + std::to_string(unknown_id) + ", but the vocabulary ends at " +
                      std::to_string(pieces.size() - 1));
  }
  for (size_t id = 0; id < pieces.size(); ++id) {
    if (!std::isfinite(scores[id])) {
      throw FormatError("the score of piece " + std::to_string(id) + " is not a finite number");
    }
  }
  size_t next = pieces.size();
  std::unordered_set<std::string_view> contents;
  for (const AddedToken& token : added) {
    if (token.content.empty()) throw FormatError("an added token with empty content");
    if (find_invalid_utf8(token.content) != std::string_view::npos)
      throw FormatError("an added token that is not valid UTF-8");
    if (!contents.insert(token.content).second) {
      throw FormatError("added token \"" + token.content + "\" appears twice");
    }
    const int64_t piece = piece_ids.find(pieces, token.content);
    if (piece >= 0 ? token.id != piece : token.id != next++) {
      throw FormatError("added token \"" + token.content + "\" has id " + std::to_string(token.id) +
                        ", which is neither its id in the vocabulary nor the next free one");
    }
  }
  const size_t size = total_size();
  for (const uint32_t id : special_ids) {
    if (id >= size) throw FormatError("a special token has id " + std::to_string(id));
  }
  for (const auto* items : {&single, &pair}) {
    for (const TemplateItem& item : *items) {
      const bool known = item.kind == TemplateItem::Kind::kFirst ||
                         item.kind == TemplateItem::Kind::kToken ||
                         (item.kind == TemplateItem::Kind::kSecond && items == &pair);
      if (!known) throw FormatError("the post-processor names a text that is not there");
      if (item.kind == TemplateItem::Kind::kToken && item.id >= size) {
        throw FormatError("the post-processor adds id " + std::to_string(item.id) +
                          ", but ids end at " + std::to_string(size - 1));
      }
    }
  }
}

}  // namespace llmjp::tokenizer
