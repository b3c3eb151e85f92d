#include "tokenizer/decoder.h"

#include <optional>

#include "tokenizer/utf8.h"

namespace llmjp::tokenizer {
namespace {

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// The byte that a token such as "<0x41>" stands for. Lower case counts, and so does "<0x+5>":
// Rust's integer parser, on which Hugging Face's decoder relies, takes a plus sign.
std::optional<uint8_t> byte_of(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return std::nullopt;
  const int high = token[3] == '+' ? 0 : hex_digit(token[3]);
  const int low = hex_digit(token[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<uint8_t>(16 * high + low);
}

void append_replacing_marks(std::string_view text, std::string& out) {
  while (true) {
    const size_t mark = text.find(kSpaceMarkUtf8);
    out.append(text.substr(0, mark));
    if (mark == std::string_view::npos) return;
    out.push_back(' ');
    text.remove_prefix(mark + kSpaceMarkUtf8.size());
  }
}

}  // namespace

Decoder::Decoder(const Model& model)
    : entries_(model.size()),
      byte_marks_(model.spec.decode_byte_marks),
      bytes_singly_(model.spec.decode_bytes_singly),
      strip_leading_space_(model.spec.strip_leading_space) {
  std::vector<uint8_t> exists(model.size(), 0);
  for (size_t id = 0; id < model.spec.pieces.size(); ++id) exists[id] = 1;
  for (const AddedToken& token : model.spec.added) exists[token.id] = 1;
  for (size_t id = 0; id < entries_.size(); ++id) {
    if (exists[id] == 0) continue;
    const std::string_view token = model.token(static_cast<uint32_t>(id));
    Entry& entry = entries_[id];
    entry.special = model.is_special[id] != 0;
    if (const std::optional<uint8_t> byte = byte_of(token)) {
      entry.kind = Kind::kByte;
      entry.byte = *byte;
      continue;
    }
    entry.kind = Kind::kText;
    entry.offset = static_cast<uint32_t>(texts_.size());
    append_replacing_marks(token, texts_);
    entry.size = static_cast<uint32_t>(texts_.size() - entry.offset);
  }
}

size_t Decoder::append_characters(std::string_view bytes, bool last, std::string& out) const {
  size_t done = 0;
  while (done < bytes.size()) {
    char32_t c;
    int length = 1;
    const Utf8State state = decode_utf8(bytes.data() + done, bytes.size() - done, c, length);
    if (state == Utf8State::kIncomplete && !last) break;
    if (state == Utf8State::kComplete) {
      const std::string_view character = bytes.substr(done, static_cast<size_t>(length));
      if (byte_marks_ && character == kSpaceMarkUtf8) {
        out.push_back(' ');
      } else {
        out.append(character);
      }
      done += static_cast<size_t>(length);
    } else {
      append_utf8(out, kReplacementCharacter);
      ++done;
    }
  }
  return done;
}

void Decoder::settle_start(bool from_bytes, bool& started, std::string& out) const {
  if (started || out.empty()) return;
  started = true;
  if (strip_leading_space_ && !(from_bytes && bytes_singly_) && out.front() == ' ') out.erase(0, 1);
}

std::string Decoder::decode(const int64_t* ids, size_t count, bool skip_special) const {
  std::string out;
  out.reserve(4 * count);  // what a piece has in most texts, about
  std::string bytes;
  bool started = false;
  const auto flush = [&] {
    if (bytes_singly_ || find_invalid_utf8(bytes) == std::string_view::npos) {
      append_characters(bytes, true, out);
    } else {
      for (size_t i = 0; i < bytes.size(); ++i) append_utf8(out, kReplacementCharacter);
    }
    bytes.clear();
    settle_start(true, started, out);
  };
  for (size_t i = 0; i < count; ++i) {
    const Entry* found = entry(ids[i], skip_special);
    if (found == nullptr) continue;
    if (found->kind == Kind::kByte) {
      bytes.push_back(static_cast<char>(found->byte));
      continue;
    }
    if (!bytes.empty()) flush();
    out.append(text(*found));
    settle_start(false, started, out);
  }
  if (!bytes.empty()) flush();
  return out;
}

void DecodeStream::drain(bool last, std::string& out) {
  bytes_.erase(0, decoder_.append_characters(bytes_, last, out));
  decoder_.settle_start(true, started_, out);
}

std::string DecodeStream::step(int64_t id) {
  std::string out;
  const Decoder::Entry* found = decoder_.entry(id, skip_special_);
  if (found == nullptr) return out;
  if (found->kind == Decoder::Kind::kByte) {
    bytes_.push_back(static_cast<char>(found->byte));
    drain(false, out);
  } else {
    drain(true, out);
    out.append(decoder_.text(*found));
    decoder_.settle_start(false, started_, out);
  }
  return out;
}

std::string DecodeStream::finish() {
  std::string out;
  drain(true, out);
  started_ = false;
  return out;
}

}  // namespace llmjp::tokenizer
