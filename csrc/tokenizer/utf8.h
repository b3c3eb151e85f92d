// UTF-8 in strict form: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace llmjp::tokenizer {

inline constexpr char32_t kReplacementCharacter = 0xFFFD;
inline constexpr char32_t kSpaceMark = 0x2581;  // "▁", which stands for a space inside pieces
inline constexpr std::string_view kSpaceMarkUtf8 = "\xE2\x96\x81";

constexpr bool is_surrogate(char32_t c) { return c >= 0xD800 && c <= 0xDFFF; }

// Writes the 1 to 4 bytes of `c`, a Unicode scalar value, and returns their count.
inline int encode_utf8(char32_t c, uint8_t* out) {
  if (c < 0x80) {
    out[0] = static_cast<uint8_t>(c);
    return 1;
  }
  if (c < 0x800) {
    out[0] = static_cast<uint8_t>(0xC0 | (c >> 6));
    out[1] = static_cast<uint8_t>(0x80 | (c & 0x3F));
    return 2;
  }
  if (c < 0x10000) {
    out[0] = static_cast<uint8_t>(0xE0 | (c >> 12));
    out[1] = static_cast<uint8_t>(0x80 | ((c >> 6) & 0x3F));
    out[2] = static_cast<uint8_t>(0x80 | (c & 0x3F));
    return 3;
  }
  out[0] = static_cast<uint8_t>(0xF0 | (c >> 18));
  out[1] = static_cast<uint8_t>(0x80 | ((c >> 12) & 0x3F));
  out[2] = static_cast<uint8_t>(0x80 | ((c >> 6) & 0x3F));
  out[3] = static_cast<uint8_t>(0x80 | (c & 0x3F));
  return 4;
}

inline void append_utf8(std::string& text, char32_t c) {
  uint8_t bytes[4];
  const int count = encode_utf8(c, bytes);
  text.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(count));
}

constexpr bool is_utf8_continuation(uint8_t byte) { return (byte & 0xC0) == 0x80; }

// Bytes that a sequence starting with `lead` has; 0 where no sequence starts with it.
constexpr int utf8_length(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;
  if (lead < 0xE0) return 2;
  if (lead < 0xF0) return 3;
  return lead < 0xF5 ? 4 : 0;
}

// State of a sequence that may still be growing.
enum class Utf8State { kComplete, kIncomplete, kInvalid };

// Reads the first character of bytes[0, size), size >= 1. kComplete sets `c` and `length`;
// kIncomplete: a prefix of some valid sequence; kInvalid: no continuation can make it valid.
inline Utf8State decode_utf8(const char* bytes, size_t size, char32_t& c, int& length) {
  const auto at = [bytes](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = at(0);
  length = utf8_length(lead);
  if (length == 0) return Utf8State::kInvalid;
  if (length == 1) {
    c = lead;
    return Utf8State::kComplete;
  }
  if (length == 3 && size >= 3 && lead != 0xE0 && lead != 0xED) {  // most Japanese text
    const uint8_t second = at(1);
    const uint8_t third = at(2);
    c = static_cast<char32_t>((lead & 0x0F) << 12 | (second & 0x3F) << 6 | (third & 0x3F));
    if ((second & 0xC0) == 0x80 && (third & 0xC0) == 0x80) return Utf8State::kComplete;
    return Utf8State::kInvalid;
  }
  c = lead & (0x7F >> length);
  for (int i = 1; i < length; ++i) {
    if (static_cast<size_t>(i) >= size) return Utf8State::kIncomplete;
    const uint8_t byte = at(static_cast<size_t>(i));
    uint8_t low = 0x80;
    uint8_t high = 0xBF;
    if (i == 1) {  // where overlong forms, surrogates and values beyond U+10FFFF show
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    }
    if (byte < low || byte > high) return Utf8State::kInvalid;
    c = (c << 6) | (byte & 0x3F);
  }
  return Utf8State::kComplete;
}

// Position of the first byte that is not valid UTF-8, or npos.
inline size_t find_invalid_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    char32_t c;
    int length;
    if (decode_utf8(text.data() + i, text.size() - i, c, length) != Utf8State::kComplete) return i;
    i += static_cast<size_t>(length);
  }
  return std::string_view::npos;
}

// Whether find_invalid_utf8() finds nothing, in a fraction of its time on long texts. Only bytes
// are compared, each with the three before it, so that the compiler makes vectors of it.
bool is_utf8(std::string_view text);

// The characters of valid UTF-8.
inline std::u32string to_utf32(std::string_view text) {
  std::u32string characters;
  characters.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    char32_t c = 0;
    int length = 1;
    decode_utf8(text.data() + i, text.size() - i, c, length);
    characters.push_back(c);
    i += static_cast<size_t>(length);
  }
  return characters;
}

}  // namespace llmjp::tokenizer
