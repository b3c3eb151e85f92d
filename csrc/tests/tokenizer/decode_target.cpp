#include <memory>

#include "tests/tokenizer/models.h"
#include "tests/tokenizer/texts.h"
#include "tokenizer/decoder.h"
#include "tokenizer/utf8.h"

namespace llmjp::tests {
namespace {

using namespace llmjp::tokenizer;

// Two bytes an id: bytes' pieces and their neighbours mostly, any 64-bit number at times.
std::vector<int64_t> ids_of_bytes(const uint8_t* data, size_t size) {
  std::vector<int64_t> ids;
  for (size_t i = 0; i + 1 < size; i += 2) {
    const int64_t id = data[i] | (data[i + 1] & 1) << 8;
    const bool far = data[i + 1] >= 0xF8;
    ids.push_back(far ? static_cast<int64_t>(uint64_t{data[i]} << (data[i + 1] & 7) * 8) : id);
  }
  return ids;
}

// Both checks of UTF-8 agree, also where the faster one's blocks meet.
void check_utf8(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  for (const size_t before : {0, 1021, 1022, 1023, 1024}) {
    const std::string text = std::string(before, 'a') + bytes;
    require(is_utf8(text) == (find_invalid_utf8(text) == std::string::npos), "is_utf8");
  }
}

void run(const uint8_t* data, size_t size) {
  check_utf8(data, size);
  static const Tokenizer json(parse_tokenizer_json(compose_json(ordinary_vocabulary())));
  static const Tokenizer model(
      parse_sentencepiece_model(compose_sentencepiece(ordinary_vocabulary()), false));
  if (size == 0) return;
  const bool skip_special = (data[0] & 1) != 0;
  const std::vector<int64_t> ids = ids_of_bytes(data + 1, size - 1);
  for (const Tokenizer* tokenizer : {&json, &model}) {
    const Decoder& decoder = tokenizer->decoder();
    const std::string text = decoder.decode(ids.data(), ids.size(), skip_special);
    require(find_invalid_utf8(text) == std::string::npos, "decoded text is valid UTF-8");
    DecodeStream stream(decoder, skip_special);
    std::string joined;
    for (const int64_t id : ids) {
      const std::string step = stream.step(id);
      require(find_invalid_utf8(step) == std::string::npos, "each step is valid UTF-8");
      joined += step;
    }
    joined += stream.finish();
    // A tokenizer.json replaces a whole run where one byte fits nowhere; a stream cannot.
    if (tokenizer == &model || text.find("\xEF\xBF\xBD") == std::string::npos)
      require(joined == text, "the steps of a stream are the text");
  }
}

std::vector<std::string> seeds() {
  std::string bytes("\1", 1);
  for (const char32_t c : std::u32string(U"é😍▁ あ")) {
    uint8_t encoded[4];
    const int length = encode_utf8(c, encoded);
    for (int i = 0; i < length; ++i) {  // byte b is id b + 1
      bytes += static_cast<char>(encoded[i] + 1);
      bytes += static_cast<char>(encoded[i] == 0xFF ? 1 : 0);
    }
  }
  return {bytes, std::string("\0\x02\x01\x03\x01\x04\xFF", 7),
          std::string("\1\xC3\0\xE3\0\x41", 6)};
}

}  // namespace

const Target kDecodeTarget = {"decode", run, seeds};

}  // namespace llmjp::tests
