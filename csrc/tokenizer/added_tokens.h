// Finds added tokens in a text: the leftmost match, and of several that start there the longest.
#pragma once

#include <algorithm>
#include <array>
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
      if (const Token* const token = longest_at(text + i, size - i)) {
        match = {i, i + token->content.size(), token->id, token->special};
        return true;
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
    while (i < size && !may_begin_[text[i] % may_begin_.size()]) ++i;
    return i;
  }

  // The longest token that `text` begins with, or null. Those that share its first characters lie
  // side by side, fewer with each character: thousands of tokens cost little more than a few.
  template <class Char>
  const Token* longest_at(const Char* text, size_t size) const {
    const Token* longest = nullptr;
    auto begin = tokens_.begin();
    auto end = tokens_.end();
    for (size_t i = 0; begin != end; ++i) {
      if (begin->content.size() == i) longest = &*begin;  // of equal ones the first
      while (begin != end && begin->content.size() == i) ++begin;
      if (i == size) break;
      const auto c = static_cast<char32_t>(text[i]);
      begin = std::partition_point(begin, end, [&](const Token& t) { return t.content[i] < c; });
      end = std::partition_point(begin, end, [&](const Token& t) { return t.content[i] == c; });
    }
    return longest;
  }

  std::vector<Token> tokens_;  // by content
  std::u32string first_characters_;
  std::array<bool, 256> may_begin_{};  // by the lowest byte of a first character
};

}  // namespace llmjp::tokenizer
