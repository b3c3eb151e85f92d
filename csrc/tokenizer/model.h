// A tokenizer file compiled for searching and decoding. Immutable once built, so any number of
// threads may share it.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tokenizer/added_tokens.h"
#include "tokenizer/specification.h"
#include "tokenizer/trie.h"
#include "tokenizer/utf8.h"

namespace llmjp::tokenizer {

// Half of a surrogate pair: a Python str may hold one, no encoding of Unicode text may.
class LoneSurrogate : public std::runtime_error {
 public:
  LoneSurrogate() : std::runtime_error("text with a lone surrogate cannot be encoded") {}
};

struct Model {
  explicit Model(Specification specification);

  Specification spec;
  CharacterCodes codes;               // with spaces_to_marks U+0020 has the code of "▁"
  Trie trie;                          // of all searchable pieces
  size_t longest_piece = 1;           // of them, in characters
  std::array<int32_t, 256> byte_ids;  // -1: there is no such piece
  AddedTokens raw_tokens;             // looked for before normalisation
  AddedTokens normalized_tokens;      // looked for after it
  std::unordered_map<std::string, uint32_t> id_of_token;
  std::vector<uint8_t> is_special;  // by id

  size_t size() const { return is_special.size(); }
  // Empty for ids that nothing has. An added token that is looked for in normalised text goes by
  // its normalised form ("▁hello"), as in Hugging Face `tokenizers`: so its spaces come back in
  // decoding.
  std::string_view token(uint32_t id) const;

  // The character that the search sees: marks for spaces.
  char32_t normalize(char32_t c) const {
    return c == U' ' && spec.spaces_to_marks ? kSpaceMark : c;
  }

  // The id of the piece that `text` is as a whole, or -1.
  int32_t find_piece(const std::u32string& text) const;

 private:
  // Of added tokens that are no pieces, and of those that normalisation changes.
  std::unordered_map<uint32_t, std::string> added_names_;
};

}  // namespace llmjp::tokenizer
