// Ids back to text, as the decoder chain of tokenizer.json says: byte pieces in a row become the
// text that they encode, "▁" becomes a space, one leading space is dropped.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/model.h"

namespace llmjp::tokenizer {

class Decoder {
 public:
  explicit Decoder(const Model& model);

  // UTF-8 text of ids[0, count). Ids that no token has are dropped, special ones too on request. A
  // run of byte pieces that is not valid UTF-8 as a whole gives one U+FFFD per byte; with
  // decode_bytes_singly only the bytes that fit nowhere do.
  std::string decode(const int64_t* ids, size_t count, bool skip_special) const;

  enum class Kind : uint8_t { kNone, kText, kByte };
  struct Entry {
    uint32_t offset = 0;  // of kText, in texts_
    uint32_t size = 0;
    Kind kind = Kind::kNone;
    uint8_t byte = 0;  // of kByte
    bool special = false;
  };
  // The entry of an id that is to appear in the text, else null.
  const Entry* entry(int64_t id, bool skip_special) const {
    if (id < 0 || static_cast<size_t>(id) >= entries_.size()) return nullptr;
    const Entry& found = entries_[static_cast<size_t>(id)];
    return found.kind == Kind::kNone || (skip_special && found.special) ? nullptr : &found;
  }
  std::string_view text(const Entry& entry) const {
    return {texts_.data() + entry.offset, entry.size};
  }
  // Appends the characters that `bytes` begins with and one U+FFFD per byte that fits nowhere, and
  // returns how many bytes that took: all if `last`, else all but an unfinished character.
  size_t append_characters(std::string_view bytes, bool last, std::string& out) const;
  // Drops the leading space of `out`, the first text of a decoding to be given out.
  void settle_start(bool from_bytes, bool& started, std::string& out) const;

 private:
  std::vector<Entry> entries_;
  std::string texts_;  // of all pieces, spaces already in place of marks
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
