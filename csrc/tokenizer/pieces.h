// The texts of the pieces, one after another in one array, and the ids of texts.
#pragma once

#include <cstdint>
#include <string_view>

#include "tokenizer/table.h"

namespace llmjp::tokenizer {

class Pieces {
 public:
  size_t size() const { return ends_.size(); }
  bool empty() const { return ends_.empty(); }
  std::string_view operator[](size_t id) const {
    const uint32_t begin = id == 0 ? 0 : ends_[id - 1];
    return {texts_.data() + begin, ends_[id] - begin};
  }
  // Throws FormatError if all texts together are of 4 GiB or more.
  void push_back(std::string_view piece);

  template <class Self, class Archive>
  static void transfer(Self& self, Archive& archive) {
    archive(self.texts_);
    archive(self.ends_);
  }
  // Throws FormatError where a piece ends outside of the texts or is not UTF-8. After transfer().
  void check() const;

 private:
  Table<char> texts_;
  Table<uint32_t> ends_;
};

// A hash table from texts to ids, which are slots' only contents: the texts stand in Pieces.
class PieceIds {
 public:
  // Throws FormatError if a piece appears twice.
  void build(const Pieces& pieces);

  // The id of the piece that `text` is, or -1.
  int64_t find(const Pieces& pieces, std::string_view text) const;

  template <class Self, class Archive>
  static void transfer(Self& self, Archive& archive) {
    archive(self.slots_);
  }
  // Throws FormatError where a lookup would not end or leave the pieces. After transfer().
  void check(const Pieces& pieces) const;

 private:
  static constexpr uint32_t kEmpty = 0xFFFFFFFF;
  static uint64_t hash(std::string_view text);

  Table<uint32_t> slots_;  // a power of two of them, at least half of them empty
};

}  // namespace llmjp::tokenizer
