// What a tokenizer file says, read and checked, before anything is compiled from it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/pieces.h"
#include "tokenizer/table.h"

namespace llmjp::tokenizer {

// A token that is cut out of the text before the search. `normalized`: it is looked for after
// spaces have become "▁", and itself goes through the same normalisation first.
struct AddedToken {
  std::string content;
  uint32_t id = 0;
  bool special = false;
  bool normalized = false;

  template <class Self, class Archive>
  static void transfer(Self& self, Archive& archive) {
    archive(self.content);
    archive(self.id);
    archive(self.special);
    archive(self.normalized);
  }
};

// One step of the template that surrounds a text or a pair of texts.
struct TemplateItem {
  enum class Kind : uint32_t { kFirst, kSecond, kToken };
  Kind kind = Kind::kFirst;
  uint32_t id = 0;  // of kToken
};

struct Specification {
  static constexpr size_t kMaxPieces = size_t{1} << 24;
  static constexpr double kUnknownPenalty =
      10.0;  // an unknown character costs this more than the worst piece

  // Pieces by id. Those with searchable[id] = 0 have an id but are never found in a text.
  Pieces pieces;
  PieceIds piece_ids;
  Table<double> scores;
  Table<uint8_t> searchable;
  uint32_t unknown_id = 0;
  double unknown_score = 0.0;
  bool byte_fallback = false;
  bool single_precision_sums = false;  // each path's sum is rounded to float, as SentencePiece does

  bool prefix_mark = false;      // "▁" goes before every non-empty segment
  bool spaces_to_marks = false;  // every U+0020 becomes "▁"

  std::vector<AddedToken> added;      // ids below pieces.size() or next after it, in order
  std::vector<uint32_t> special_ids;  // left out of decoded text on request
  std::vector<TemplateItem> single;
  std::vector<TemplateItem> pair;

  bool decode_bytes = false;  // runs of <0x..> become the characters they encode
  // Of a run of byte pieces: SentencePiece replaces only the bytes that fit nowhere, and leaves
  // spaces and marks as they are; Hugging Face's chain replaces all bytes of the run, and treats
  // characters from bytes as any others.
  bool decode_bytes_singly = false;
  bool decode_byte_marks = false;  // a "▁" that came from bytes becomes a space too
  bool strip_leading_space = false;

  template <class Self, class Archive>
  static void transfer(Self& self, Archive& archive) {
    Pieces::transfer(self.pieces, archive);
    PieceIds::transfer(self.piece_ids, archive);
    archive(self.scores);
    archive(self.searchable);
    archive(self.unknown_id);
    archive(self.unknown_score);
    archive(self.byte_fallback);
    archive(self.single_precision_sums);
    archive(self.prefix_mark);
    archive(self.spaces_to_marks);
    archive(self.added);
    archive(self.special_ids);
    archive(self.single);
    archive(self.pair);
    archive(self.decode_bytes);
    archive(self.decode_bytes_singly);
    archive(self.decode_byte_marks);
    archive(self.strip_leading_space);
  }

  size_t total_size() const;  // ids go from 0 to this, added tokens included

  // What a reader of files ends with. Builds piece_ids; throws FormatError where ids, scores or
  // pieces are out of what the search can hold.
  void finish();
  // The same of a specification that has its piece_ids.
  void check() const;
};

// Reads a Hugging Face tokenizer.json with a Unigram model of the LLM-jp kind.
Specification parse_tokenizer_json(std::string_view text);

// Reads a SentencePiece .model (a ModelProto message) with a byte-fallback Unigram model.
// `single_precision_sums`: follow the rounding of SentencePiece's sums, instead of adding exactly.
Specification parse_sentencepiece_model(std::string_view bytes, bool single_precision_sums);

}  // namespace llmjp::tokenizer
