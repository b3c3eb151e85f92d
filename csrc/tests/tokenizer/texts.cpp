#include "tests/tokenizer/texts.h"

#include <algorithm>
#include <cstring>
#include <string_view>

namespace llmjp::tests {
namespace {

// The last one is half of a surrogate pair, which no text may hold.
constexpr std::u32string_view kCharacters =
    U"ーあい本を読む。▁\u3000éß\u0301\u200B\uFEFF\uFFFD😍🙏\U0010FFFF한ن\x7F\x80\xFF東京笑草…ｗ（";
constexpr std::u32string_view kWords[] = {
    U"<0x41>", U"<0x0A>", U"<EOD>", U"    ", U"hello x", U"本を読む", U"oooooooooooooooo", U"<EO"};
constexpr size_t kMostCharacters = 4096;

}  // namespace

std::u32string text_of_bytes(const uint8_t* data, size_t size) {
  std::u32string text;
  for (size_t i = 0; i < size && text.size() < kMostCharacters; ++i) {
    const uint8_t byte = data[i];
    if (byte < 0x80) {
      text += static_cast<char32_t>(byte);
    } else if (byte < 0xE0) {
      const size_t index = byte - 0x80U;
      text += index < kCharacters.size() ? kCharacters[index] : U'\u3041' + index;
    } else if (byte < 0xF0) {
      if (!text.empty()) text.append(size_t{1} << (byte & 7), text.back());
    } else if (byte < 0xF8) {
      text += kWords[byte & 7];
    } else if (byte == 0xFF) {
      text += char32_t{0xD800};
    }
  }
  return text;
}

HeldText::HeldText(const std::u32string& text, int width)
    : bytes_(text.size() * static_cast<size_t>(width)), size_(text.size()), width_(width) {
  for (size_t i = 0; i < text.size(); ++i) {
    uint8_t* const place = bytes_.data() + i * static_cast<size_t>(width);
    if (width == 1) {
      *place = static_cast<uint8_t>(text[i]);
    } else if (width == 2) {
      const auto c = static_cast<char16_t>(text[i]);
      std::memcpy(place, &c, sizeof c);
    } else {
      std::memcpy(place, &text[i], sizeof(char32_t));
    }
  }
}

std::vector<int> widths_of(const std::u32string& text) {
  const char32_t widest = text.empty() ? 0 : *std::max_element(text.begin(), text.end());
  if (widest <= 0xFF) return {1, 2, 4};
  if (widest <= 0xFFFF) return {2, 4};
  return {4};
}

Ids encode(const tokenizer::Tokenizer& tokenizer, const std::u32string& text, int width,
           bool encode_special_tokens) {
  const HeldText held(text, width);
  tokenizer::IdBuffer<uint32_t> ids;
  tokenizer.encode(held.view(), nullptr, {false, encode_special_tokens}, ids);
  return {ids.data(), ids.data() + ids.size()};
}

}  // namespace llmjp::tests
