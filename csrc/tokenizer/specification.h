// What a tokenizer file says, read and checked, before anything is compiled from it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace llmjp::tokenizer {

// A token that is cut out of the text before the search. `normalized`: it is looked for after
// spaces have become "▁", and itself goes through the same normalisation first.
struct AddedToken {
  std::string content;
  uint32_t id = 0;
  bool special = false;
  bool normalized = false;
};

// One step of the template that surrounds a text or a pair of texts.
struct TemplateItem {
  enum class Kind { kFirst, kSecond, kToken };
  Kind kind = Kind::kFirst;
  uint32_t id = 0;  // of kToken
};

struct Specification {
  static constexpr size_t kMaxPieces = size_t{1} << 24;
  static constexpr double kUnknownPenalty =
      10.0;  // an unknown character costs this more than the worst piece

  // Pieces by id. Those with searchable[id] = 0 have an id but are never found in a text.
  std::vector<std::string> pieces;
  std::vector<double> scores;
  std::vector<uint8_t> searchable;
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

  size_t total_size() const;  // ids go from 0 to this, added tokens included

  // Throws FormatError where ids, scores or pieces are out of what the search can hold.
  void check() const;
};

// Reads a Hugging Face tokenizer.json with a Unigram model of the LLM-jp kind.
Specification parse_tokenizer_json(std::string_view text);

// Reads a SentencePiece .model (a ModelProto message) with a byte-fallback Unigram model.
Specification parse_sentencepiece_model(std::string_view bytes);

}  // namespace llmjp::tokenizer
