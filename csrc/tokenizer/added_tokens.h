// Finds added tokens in a text: the leftmost match, and of several that start there the longest.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/find_character.h"
#include "tokenizer/specification.h"

namespace llmjp::tokenizer {

class AddedTokens {
 public:
  struct Match {
    size_t begin = 0;
    size_t end = 0;
    uint32_t id = 0;
    bool special = false;
  };

  void add(std::u32string content, uint32_t id, bool special);
  bool empty() const { return tokens_.empty(); }

  // The first match in text[from, size); false where there is none.
  template <class Char>
  bool find(const Char* text, size_t from, size_t size, Match& match) const {
    for (size_t i = from; i < size; ++i) {
      i = next_candidate(text, i, size);
      if (i >= size) return false;
      for (const Token& token : tokens_) {  // longest first
        if (matches(token.content, text + i, size - i)) {
          match = {i, i + token.content.size(), token.id, token.special};
          return true;
        }
      }
    }
    return false;
  }

 private:
  struct Token {
    std::u32string content;
    uint32_t id;
    bool special;
  };

  template <class Char>
  size_t next_candidate(const Char* text, size_t i, size_t size) const {
    if (first_characters_.size() == 1) {  // the usual case, "<"
      const char32_t wanted = first_characters_[0];
      if (static_cast<char32_t>(static_cast<Char>(wanted)) != wanted) return size;
      return find_character(text, i, size, static_cast<Char>(wanted));
    }
    while (i < size && first_characters_.find(text[i]) == std::u32string::npos) ++i;
    return i;
  }

  template <class Char>
  static bool matches(const std::u32string& content, const Char* text, size_t size) {
    if (content.size() > size) return false;
    for (size_t i = 0; i < content.size(); ++i) {
      if (static_cast<char32_t>(text[i]) != content[i]) return false;
    }
    return true;
  }

  std::vector<Token> tokens_;
  std::u32string first_characters_;
};

}  // namespace llmjp::tokenizer
