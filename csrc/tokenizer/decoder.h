// Ids back to text, as the decoder chain of tokenizer.json says: byte pieces in a row become the
// text that they encode, "▁" becomes a space, one leading space is dropped.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/model.h"
#include "tokenizer/table.h"

namespace llmjp::tokenizer {

// Texts of sequences [begin, end) one after another; ends[i] is where that of sequence begin + i
// ends.
struct DecodedTexts {
  size_t begin = 0;
  std::string text;
  std::vector<size_t> ends;

  void clear() {
    text.clear();
    ends.clear();
  }
};

class Decoder {
 public:
  explicit Decoder(const Model& model);
  // Of a compiled file. Throws FormatError where a text lies outside of its table.
  Decoder(const Model& model, CompiledReader& reader);
  void write(CompiledWriter& writer) const;

  // UTF-8 text of ids[0, count), of any integer type. Ids that no token has are dropped, special
  // ones too on request. A run of byte pieces that is not valid UTF-8 as a whole gives one U+FFFD
  // per byte; with decode_bytes_singly only the bytes that fit nowhere do.
  template <class Id>
  std::string decode(const Id* ids, size_t count, bool skip_special) const {
    std::string out;
    out.reserve(4 * count);  // what a piece has in most texts, about
    append_text(ids, count, skip_special, out);
    return out;
  }

  // Calls take() on this thread with the texts of ids[offsets[i], offsets[i + 1]), i < count, in
  // order, many at a time, while other threads go on with those that follow.
  template <class Id>
  void decode_batch(const Id* ids, const int64_t* offsets, size_t count, bool skip_special,
                    size_t num_threads, const std::function<void(const DecodedTexts&)>& take) const;

  enum class Kind : uint8_t { kNone, kText, kByte };
  struct Entry {          // stands in files: no byte of it is without a meaning
    uint32_t offset = 0;  // of kText, in texts_
    uint32_t size = 0;
    Kind kind = Kind::kNone;
    uint8_t byte = 0;  // of kByte
    uint8_t special = 0;
    uint8_t unused = 0;
  };
  // The entry of an id that is to appear in the text, else null.
  const Entry* entry(int64_t id, bool skip_special) const {
    if (id < 0 || static_cast<size_t>(id) >= entries_.size()) return nullptr;
    const Entry& found = entries_[static_cast<size_t>(id)];
    return found.kind == Kind::kNone || (skip_special && found.special != 0) ? nullptr : &found;
  }
  std::string_view text(const Entry& entry) const {
    return {texts_.data() + entry.offset, entry.size};
  }
  // Appends the characters that `bytes` begins with and one U+FFFD per byte that fits nowhere, and
  // returns how many bytes that took: all if `last`, else all but an unfinished character.
  size_t append_characters(std::string_view bytes, bool last, std::string& out) const;
  // Drops the leading space of out[begin…], the first text of a decoding to be given out.
  void settle_start(bool from_bytes, bool& started, std::string& out, size_t begin = 0) const;

 private:
  template <class Self, class Archive>
  static void transfer(Self& self, Archive& archive);
  template <class Id>
  void append_text(const Id* ids, size_t count, bool skip_special, std::string& out) const;

  Table<Entry> entries_;
  Table<char> texts_;  // of all pieces, spaces already in place of marks
  bool byte_marks_ = false;
  bool bytes_singly_ = false;
  bool strip_leading_space_ = false;
};

// Decodes ids as they come: characters appear as soon as their bytes are complete. The joined steps
// and finish() equal decode() of all ids, except in runs of byte pieces that are not valid UTF-8:
// there decode() replaces the whole run, which a stream has partly given out already, and the
// stream replaces only the bytes that fit nowhere.
class DecodeStream {
 public:
  DecodeStream(const Decoder& decoder, bool skip_special)
      : decoder_(decoder), skip_special_(skip_special) {}

  std::string step(int64_t id);
  std::string finish();  // what incomplete bytes are left, as U+FFFD; the stream starts anew

 private:
  void drain(bool last, std::string& out);

  const Decoder& decoder_;
  bool skip_special_;
  bool started_ = false;  // some text has been given out
  std::string bytes_;     // of a character that is not complete yet
};

}  // namespace llmjp::tokenizer
