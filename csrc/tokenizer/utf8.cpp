#include "tokenizer/utf8.h"

#include <algorithm>
#include <array>

namespace llmjp::tokenizer {
namespace {

constexpr size_t kBefore = 3;  // bytes that a byte's place in a character depends on
constexpr size_t kBlock = 1024;

// Whether bytes[kBefore, kBefore + kBlock) have no fault, going by the bytes before each.
bool is_sound(const uint8_t* bytes) {
  uint8_t fault = 0;
  for (size_t i = kBefore; i < kBefore + kBlock; ++i) {
    const uint8_t byte = bytes[i];
    const uint8_t before = bytes[i - 1];
    const auto continues = static_cast<uint8_t>((byte & 0xC0) == 0x80);
    const auto expected =
        static_cast<uint8_t>((before >= 0xC0) | (bytes[i - 2] >= 0xE0) | (bytes[i - 3] >= 0xF0));
    const auto no_lead = static_cast<uint8_t>((byte == 0xC0) | (byte == 0xC1) | (byte >= 0xF5));
    // Overlong forms, surrogates and values beyond U+10FFFF show in the second byte.
    const auto not_second = static_cast<uint8_t>(
        ((before == 0xE0) & (byte < 0xA0)) | ((before == 0xED) & (byte >= 0xA0)) |
        ((before == 0xF0) & (byte < 0x90)) | ((before == 0xF4) & (byte >= 0x90)));
    fault |= static_cast<uint8_t>((continues ^ expected) | no_lead | not_second);
  }
  return fault == 0;
}

}  // namespace

bool is_utf8(std::string_view text) {
  std::array<uint8_t, kBefore + kBlock> block{};  // as if zero bytes stood before the text
  bool last = false;
  for (size_t done = 0; !last;) {
    const size_t count = std::min(kBlock, text.size() - done);
    std::copy_n(text.data() + done, count, block.data() + kBefore);
    last = count < kBlock;  // and after it, which no character goes on to
    std::fill(block.begin() + kBefore + count, block.end(), uint8_t{0});
    if (!is_sound(block.data())) return false;
    std::copy_n(block.end() - kBefore, kBefore, block.begin());
    done += count;
  }
  return true;
}

}  // namespace llmjp::tokenizer
