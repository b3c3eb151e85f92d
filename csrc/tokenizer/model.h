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

class CompiledReader;
class CompiledWriter;

struct Model {
  explicit Model(Specification specification);
  // Of a compiled file, which the reader's memory outlives. Throws FormatError where a search would
  // leave the tables, or would not find the pieces by their characters.
  explicit Model(CompiledReader& reader);
  void write(CompiledWriter& writer) const;

  Specification spec;
  CharacterCodes codes;               // with spaces_to_marks U+0020 has the code of "▁"
  Trie trie;                          // of all searchable pieces
  size_t longest_piece = 1;           // of them, in characters
  std::array<int32_t, 256> byte_ids;  // -1: there is no such piece
  AddedTokens raw_tokens;             // looked for before normalisation
  AddedTokens normalized_tokens;      // looked for after it
  std::vector<uint8_t> is_special;    // by id

  size_t size() const { return is_special.size(); }
  // Empty for ids that nothing has. An added token that is looked for in normalised text goes by
  // its normalised form ("▁hello"), as in Hugging Face `tokenizers`: so its spaces come back in
  // decoding.
  std::string_view token(uint32_t id) const;

  // The id of a piece or added token, or -1.
  int64_t find_token(std::string_view text) const;

  // The character that the search sees: marks for spaces.
  char32_t normalize(char32_t c) const {
    return c == U' ' && spec.spaces_to_marks ? kSpaceMark : c;
  }

  // The id of the piece that `text` is as a whole, or -1.
  int32_t find_piece(const std::u32string& text) const;

 private:
  template <class Self, class Archive>
  static void transfer(Self& self, Archive& archive);
  // A piece that no text can hold is not in the trie.
  bool reachable(size_t id) const {
    return !spec.pieces[id].empty() && spec.searchable[id] != 0 &&
           (!spec.spaces_to_marks || spec.pieces[id].find(' ') == std::string_view::npos);
  }
  void add_tokens();  // what is made of the pieces and added tokens in either case

  // Of added tokens that are no pieces, and of those that normalisation changes.
  std::unordered_map<uint32_t, std::string> added_names_;
  std::unordered_map<std::string_view, uint32_t> added_ids_;  // of spec.added
};

}  // namespace llmjp::tokenizer
