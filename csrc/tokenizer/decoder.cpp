#include "tokenizer/decoder.h"

#include <algorithm>
#include <optional>
#include <unordered_set>

#include "tokenizer/compiled_model.h"
#include "tokenizer/json.h"
#include "tokenizer/ordered_parts.h"
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
    : byte_marks_(model.spec.decode_byte_marks),
      bytes_singly_(model.spec.decode_bytes_singly),
      strip_leading_space_(model.spec.strip_leading_space) {
  std::vector<uint8_t> exists(model.size(), 0);
  for (size_t id = 0; id < model.spec.pieces.size(); ++id) exists[id] = 1;
  // Hugging Face's library goes by names: an added token that normalisation changes has another one
  // than the special token that it is, and stays in the text.
  std::vector<uint8_t> is_special = model.is_special;
  std::unordered_set<std::string_view> special_names;
  for (const AddedToken& token : model.spec.added) {
    exists[token.id] = 1;
    is_special[token.id] = 0;
    if (token.special) special_names.insert(token.content);
  }
  std::vector<Entry> entries(model.size());
  std::string texts;
  for (size_t id = 0; id < entries.size(); ++id) {
    if (exists[id] == 0) continue;
    const std::string_view token = model.token(static_cast<uint32_t>(id));
    Entry& entry = entries[id];
    entry.special = is_special[id] != 0 || special_names.contains(token) ? 1 : 0;
    if (const std::optional<uint8_t> byte = byte_of(token)) {
      entry.kind = Kind::kByte;
      entry.byte = *byte;
      continue;
    }
    entry.kind = Kind::kText;
    entry.offset = static_cast<uint32_t>(texts.size());
    append_replacing_marks(token, texts);
    entry.size = static_cast<uint32_t>(texts.size() - entry.offset);
  }
  entries_ = std::move(entries);
  texts_ = std::vector<char>(texts.begin(), texts.end());
}

template <class Self, class Archive>
void Decoder::transfer(Self& self, Archive& archive) {
  archive(self.entries_);
  archive(self.texts_);
}

void Decoder::write(CompiledWriter& writer) const { transfer(*this, writer); }

Decoder::Decoder(const Model& model, CompiledReader& reader)
    : byte_marks_(model.spec.decode_byte_marks),
      bytes_singly_(model.spec.decode_bytes_singly),
      strip_leading_space_(model.spec.strip_leading_space) {
  transfer(*this, reader);
  const bool inside = std::all_of(entries_.begin(), entries_.end(), [&](const Entry& entry) {
    return uint64_t{entry.offset} + entry.size <= texts_.size();
  });
  if (!inside || entries_.size() != model.size())
    throw FormatError("the texts of tokens lie outside of their table");
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

void Decoder::settle_start(bool from_bytes, bool& started, std::string& out, size_t begin) const {
  if (started || out.size() == begin) return;
  started = true;
  if (strip_leading_space_ && !(from_bytes && bytes_singly_) && out[begin] == ' ')
    out.erase(begin, 1);
}

template <class Id>
void Decoder::append_text(const Id* ids, size_t count, bool skip_special, std::string& out) const {
  const size_t begin = out.size();
  std::string bytes;
  bool started = false;
  const auto flush = [&] {
    if (bytes_singly_ || find_invalid_utf8(bytes) == std::string_view::npos) {
      append_characters(bytes, true, out);
    } else {
      for (size_t i = 0; i < bytes.size(); ++i) append_utf8(out, kReplacementCharacter);
    }
    bytes.clear();
    settle_start(true, started, out, begin);
  };
  for (size_t i = 0; i < count; ++i) {
    const Entry* found = entry(static_cast<int64_t>(ids[i]), skip_special);
    if (found == nullptr) continue;
    if (found->kind == Kind::kByte) {
      bytes.push_back(static_cast<char>(found->byte));
      continue;
    }
    if (!bytes.empty()) flush();
    out.append(text(*found));
    if (!started) settle_start(false, started, out, begin);
  }
  if (!bytes.empty()) flush();
}

template <class Id>
void Decoder::decode_batch(const Id* ids, const int64_t* offsets, size_t count, bool skip_special,
                           size_t num_threads,
                           const std::function<void(const DecodedTexts&)>& take) const {
  constexpr int64_t kPerSequence = 16;  // what a sequence costs by itself, in ids
  constexpr int64_t kWorthThreads = 1 << 13;
  constexpr int64_t kLeastPart = 1 << 10;
  constexpr int64_t kLargestPart = 1 << 16;
  const auto cost = [&](size_t i) { return offsets[i + 1] - offsets[i] + kPerSequence; };
  int64_t left = 0;
  for (size_t i = 0; i < count; ++i) left += cost(i);
  if (left < kWorthThreads) num_threads = 1;
  const auto threads = static_cast<int64_t>(std::clamp<size_t>(num_threads, 1, count + 1));
  // A share of what is left: no thread is left with a long tail.
  const auto part_size = [&] { return std::clamp(left / (8 * threads), kLeastPart, kLargestPart); };
  std::vector<size_t> parts{0};  // where each begins
  int64_t size = part_size();
  int64_t held = 0;
  for (size_t i = 0; i < count; ++i) {
    held += cost(i);
    left -= cost(i);
    if (held < size && i + 1 < count) continue;
    parts.push_back(i + 1);
    size = part_size();
    held = 0;
  }
  const auto decode_part = [&](size_t, size_t part, DecodedTexts& out) {
    out.begin = parts[part];
    for (size_t i = parts[part]; i < parts[part + 1]; ++i) {
      append_text(ids + offsets[i], static_cast<size_t>(offsets[i + 1] - offsets[i]), skip_special,
                  out.text);
      out.ends.push_back(out.text.size());
    }
  };
  OrderedParts<DecodedTexts>(parts.size() - 1)
      .run(num_threads, decode_part, [&](size_t begin, size_t end, const auto& texts_of) {
        for (size_t part = begin; part < end; ++part) take(texts_of(part));
      });
}

#define LLMJP_DECODE(Id)                                                               \
  template void Decoder::append_text(const Id*, size_t, bool, std::string&) const;     \
  template void Decoder::decode_batch(const Id*, const int64_t*, size_t, bool, size_t, \
                                      const std::function<void(const DecodedTexts&)>&) const;
LLMJP_DECODE(uint16_t)
LLMJP_DECODE(int32_t)
LLMJP_DECODE(uint32_t)
LLMJP_DECODE(int64_t)
#undef LLMJP_DECODE

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
