// The next place of a character that texts are first looked through for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace llmjp::tokenizer {

// The first `wanted` in text[from, size), or size.
template <class Char>
size_t find_character(const Char* text, size_t from, size_t size, Char wanted) {
  if (from >= size) return size;
  if constexpr (sizeof(Char) == 1) {
    const void* const found = std::memchr(text + from, wanted, size - from);
    return found == nullptr ? size : static_cast<size_t>(static_cast<const Char*>(found) - text);
  } else {
    constexpr size_t kStep = 32;  // without an exit inside: compilers make vectors of it
    for (; from + kStep <= size; from += kStep) {
      Char differing = 1;
      for (size_t i = 0; i < kStep; ++i)
        differing = static_cast<Char>(differing & (text[from + i] != wanted ? 1 : 0));
      if (differing == 0) break;
    }
    while (from < size && text[from] != wanted) ++from;
    return from;
  }
}

}  // namespace llmjp::tokenizer
