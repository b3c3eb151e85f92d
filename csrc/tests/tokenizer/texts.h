// Texts from bytes, in the three representations that Python has for a str.
#pragma once

#include <string>
#include <vector>

#include "tests/tokenizer/targets.h"
#include "tokenizer/tokenizer.h"

namespace llmjp::tests {

// ASCII stands for itself; other bytes stand for characters, runs and words that are hard.
std::u32string text_of_bytes(const uint8_t* data, size_t size);

// A text in one of the widths that hold it.
class HeldText {
 public:
  HeldText(const std::u32string& text, int width);
  tokenizer::Text view() const { return {bytes_.data(), size_, width_}; }

 private:
  std::vector<uint8_t> bytes_;  // no byte more than the text has: sanitizers see what reads beyond
  size_t size_;
  int width_;
};

// Widths in bytes that hold every character of the text.
std::vector<int> widths_of(const std::u32string& text);

using Ids = std::vector<uint32_t>;

// The ids of a text, without the template's.
Ids encode(const tokenizer::Tokenizer& tokenizer, const std::u32string& text, int width,
           bool encode_special_tokens = false);

}  // namespace llmjp::tests
