// Reads a SentencePiece .model: the protocol-buffer message ModelProto, of which a tokenizer needs
// a dozen fields. The wire format (varints, lengths, fixed 32 and 64 bits) is read here directly: a
// protobuf dependency for that would be larger than the rest of the tokenizer.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "tokenizer/json.h"
#include "tokenizer/specification.h"
#include "tokenizer/utf8.h"

namespace llmjp::tokenizer {
namespace {

enum class PieceType { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

constexpr size_t kLongestPiece = 7999;  // in bytes: SentencePiece's own bound

struct Field {
  uint32_t number = 0;
  uint64_t integer = 0;    // varint and fixed fields
  std::string_view bytes;  // length-delimited fields
  bool delimited = false;
};

class WireReader {
 public:
  explicit WireReader(std::string_view bytes) : bytes_(bytes) {}

  bool next(Field& field) {
    if (position_ == bytes_.size()) return false;
    const uint64_t key = varint();
    if (key >> 32 != 0 || key >> 3 == 0) fail("field number out of range");
    field = Field{};
    field.number = static_cast<uint32_t>(key >> 3);
    switch (key & 7) {
      case 0:
        field.integer = varint();
        break;
      case 1:
        field.integer = fixed(8);
        break;
      case 2: {
        const uint64_t size = varint();
        if (size > bytes_.size() - position_) fail("a field longer than the file");
        field.bytes = bytes_.substr(position_, size);
        field.delimited = true;
        position_ += size;
        break;
      }
      case 5:
        field.integer = fixed(4);
        break;
      default:
        fail("unknown wire type");
    }
    return true;
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw FormatError("not a SentencePiece model: " + std::string(what) + " at byte " +
                      std::to_string(position_) + " of a message of " +
                      std::to_string(bytes_.size()) + " bytes");
  }

  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (position_ == bytes_.size()) fail("the file ends inside a number");
      const uint8_t byte = static_cast<uint8_t>(bytes_[position_++]);
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
    fail("a number of more than 64 bits");
  }

  uint64_t fixed(size_t size) {
    if (bytes_.size() - position_ < size) fail("the file ends inside a number");
    uint64_t value = 0;
    for (size_t i = 0; i < size; ++i)
      value |= uint64_t{static_cast<uint8_t>(bytes_[position_++])} << (8 * i);
    return value;
  }

  std::string_view bytes_;
  size_t position_ = 0;
};

[[noreturn]] void refuse(const std::string& what) {
  throw FormatError("SentencePiece model: " + what);
}

void read_piece(std::string_view message, Specification& spec, std::vector<PieceType>& types) {
  if (spec.pieces.size() == Specification::kMaxPieces) refuse("a vocabulary of absurd size");
  std::string_view text;
  float score = 0.0F;
  uint64_t type = static_cast<uint64_t>(PieceType::kNormal);
  WireReader reader(message);
  for (Field field; reader.next(field);) {
    if (field.number == 1) text = field.bytes;
    if (field.number == 2) score = std::bit_cast<float>(static_cast<uint32_t>(field.integer));
    if (field.number == 3) type = field.integer;
  }
  const std::string where = "piece " + std::to_string(spec.pieces.size());
  if (find_invalid_utf8(text) != std::string_view::npos) refuse(where + " is not valid UTF-8");
  if (type < 1 || type > 6) refuse(where + " has the unknown type " + std::to_string(type));
  if (text.empty()) refuse(where + " is empty");
  if (text.size() > kLongestPiece) {
    refuse(where + " has " + std::to_string(text.size()) + " bytes, more than " +
           std::to_string(kLongestPiece));
  }
  if (text.find('\0') != std::string_view::npos) {
    if (text.size() > 1) refuse(where + " has a null character inside");
    type = static_cast<uint64_t>(PieceType::kUnused);  // what conversions leave; <0x00> serves
  }
  spec.pieces.push_back(text);
  spec.scores.push_back(score);
  types.push_back(static_cast<PieceType>(type));
}

void read_trainer(std::string_view message, Specification& spec) {
  uint64_t model_type = 1;
  WireReader reader(message);
  for (Field field; reader.next(field);) {
    if (field.number == 3) model_type = field.integer;
    if (field.number == 24 && field.integer != 0)
      refuse("treat_whitespace_as_suffix is not supported");
    if (field.number == 35) spec.byte_fallback = field.integer != 0;
  }
  static constexpr const char* kNames[] = {"Unigram", "BPE", "word", "character"};
  if (model_type != 1) {
    const std::string name =
        model_type >= 1 && model_type <= 4 ? kNames[model_type - 1] : std::to_string(model_type);
    refuse("model type " + name + " is not supported (supported: Unigram)");
  }
}

void read_normalizer(std::string_view message, Specification& spec) {
  std::string name;
  bool charsmap = false;
  bool remove_extra = true;  // the message's default
  spec.prefix_mark = true;
  spec.spaces_to_marks = true;
  WireReader reader(message);
  for (Field field; reader.next(field);) {
    if (field.number == 1) name = std::string(field.bytes);
    if (field.number == 2) charsmap = !field.bytes.empty();
    if (field.number == 3) spec.prefix_mark = field.integer != 0;
    if (field.number == 4) remove_extra = field.integer != 0;
    if (field.number == 5) spec.spaces_to_marks = field.integer != 0;
  }
  if (charsmap) refuse("normalisation \"" + name + "\" is not supported (supported: identity)");
  if (remove_extra) refuse("remove_extra_whitespaces is not supported");
}

// What an unknown character costs. Only normal pieces count, and in single precision. Below 10 no
// row of unknown characters is better than the piece that they spell, so that the search need not
// tell SentencePiece's unknown pieces, one a character, from Hugging Face's, one a row.
double unknown_score(const std::vector<PieceType>& types, const Table<double>& scores) {
  float lowest = std::numeric_limits<float>::infinity();
  for (size_t id = 0; id < types.size(); ++id) {
    if (types[id] == PieceType::kNormal) lowest = std::min(lowest, static_cast<float>(scores[id]));
  }
  if (std::isinf(lowest)) refuse("there is no normal piece with a finite score");
  constexpr auto kPenalty = static_cast<float>(Specification::kUnknownPenalty);
  if (lowest >= kPenalty) refuse("scores of 10 or more are not supported");
  return lowest - kPenalty;
}

// Pieces that the user defined have a tenth for each byte but the first one instead of their score,
// so that they win, and the longer ones first. To the library the product is a float. In exact
// sums the tenth is a multiple of a small power of two, as single-precision scores are: then so
// are all sums, and equal lengths in equal numbers of pieces stay equal.
double user_defined_score(size_t bytes, bool single_precision_sums) {
  const auto steps = static_cast<double>(bytes - 1);
  if (single_precision_sums) return static_cast<float>(0.1 * steps);
  constexpr double kUnit = 1.0 / (1 << 20);
  return steps * std::nearbyint(0.1 / kUnit) * kUnit;
}

void check_byte_pieces(const Specification& spec, const std::vector<PieceType>& types) {
  size_t count = 0;
  for (size_t id = 0; id < types.size(); ++id) {
    if (types[id] != PieceType::kByte) continue;
    const std::string_view name = spec.pieces[id];
    const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'); };
    if (name.size() != 6 || !name.starts_with("<0x") || !is_digit(name[3]) || !is_digit(name[4]) ||
        name[5] != '>') {
      refuse("piece " + std::to_string(id) + " is a byte but not named <0x00> to <0xFF>");
    }
    ++count;
  }
  if (count != 256)  // all different: the vocabulary has been checked
    refuse("byte_fallback needs the 256 byte pieces, found " + std::to_string(count));
}

}  // namespace

Specification parse_sentencepiece_model(std::string_view bytes, bool single_precision_sums) {
  Specification spec;
  std::vector<PieceType> types;
  bool normalizer = false;
  bool trainer = false;
  WireReader reader(bytes);
  for (Field field; reader.next(field);) {
    if (field.number > 5 && field.number < 200)
      refuse("unknown field " + std::to_string(field.number));
    if (field.number <= 5 && !field.delimited)
      refuse("a message was expected in field " + std::to_string(field.number));
    if (field.number == 1) read_piece(field.bytes, spec, types);
    if (field.number == 2) read_trainer(field.bytes, spec);
    if (field.number == 3) read_normalizer(field.bytes, spec);
    if (field.number == 5) {
      Field rule;
      for (WireReader rules(field.bytes); rules.next(rule);) {
        if (rule.number == 2 && !rule.bytes.empty()) refuse("a denormalizer is not supported");
      }
    }
    trainer |= field.number == 2;
    normalizer |= field.number == 3;
  }
  if (spec.pieces.empty()) refuse("there is no vocabulary");
  if (!trainer || !normalizer) refuse("trainer_spec or normalizer_spec is missing");
  if (!spec.byte_fallback) refuse("a model without byte_fallback is not supported");
  const auto unknowns = std::count(types.begin(), types.end(), PieceType::kUnknown);
  if (unknowns != 1) refuse("there must be one unknown piece, found " + std::to_string(unknowns));
  for (size_t id = 0; id < types.size(); ++id) {
    const PieceType type = types[id];
    const bool special = type == PieceType::kUnknown || type == PieceType::kControl;
    if (type == PieceType::kUnknown) spec.unknown_id = static_cast<uint32_t>(id);
    if (special) spec.special_ids.push_back(static_cast<uint32_t>(id));
    spec.searchable.push_back(type == PieceType::kNormal || type == PieceType::kUserDefined);
  }
  spec.finish();
  check_byte_pieces(spec, types);
  spec.unknown_score = unknown_score(types, spec.scores);
  std::vector<double> scores(spec.scores.begin(), spec.scores.end());
  for (size_t id = 0; id < types.size(); ++id) {
    if (types[id] == PieceType::kUserDefined)
      scores[id] = user_defined_score(spec.pieces[id].size(), single_precision_sums);
  }
  spec.scores = std::move(scores);
  spec.single = {{TemplateItem::Kind::kFirst, 0}};
  spec.pair = {{TemplateItem::Kind::kFirst, 0}, {TemplateItem::Kind::kSecond, 0}};
  spec.single_precision_sums = single_precision_sums;
  spec.decode_bytes = true;
  spec.decode_bytes_singly = true;
  spec.strip_leading_space = spec.prefix_mark;
  return spec;
}

}  // namespace llmjp::tokenizer
