// A view of the characters of a Python str in its own representation.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llmjp::tokenizer {

// 1, 2 or 4 bytes a character, whichever the widest one needs.
struct Text {
  const void* data = nullptr;
  size_t size = 0;  // characters
  int width = 1;    // bytes per character
};

// Calls `action` with the characters in their type.
template <class Action>
auto with_characters(const Text& text, const Action& action) {
  if (text.width == 1) return action(static_cast<const uint8_t*>(text.data));
  if (text.width == 2) return action(static_cast<const char16_t*>(text.data));
  return action(static_cast<const char32_t*>(text.data));
}

}  // namespace llmjp::tokenizer
