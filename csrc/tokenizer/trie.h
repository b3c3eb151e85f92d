// The vocabulary as a trie over character codes, stored as a double array.
//
// Characters that occur in some piece have codes 1, 2, … by falling frequency; all others have code
// 0. A step in the trie is one addition, one load and one comparison, and a piece of three Japanese
// characters takes three steps instead of the nine that bytes would.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "tokenizer/table.h"

namespace llmjp::tokenizer {

class CharacterCodes {
 public:
  static constexpr uint32_t kNone = 0;
  static constexpr char32_t kLimit = 0x110000;

  CharacterCodes();
  // entries[i]: a character and its code.
  void build(const std::vector<std::pair<char32_t, uint32_t>>& entries);

  // Any 32-bit value may be asked for; those above U+10FFFF have no code.
  uint32_t operator[](char32_t c) const {
    return c < kLimit ? codes_[(size_t{page_of_[c >> 8]} << 8) | (c & 0xFF)] : kNone;
  }
  uint32_t highest() const { return highest_; }

  template <class Self, class Archive>
  static void transfer(Self& self, Archive& archive) {
    archive(self.page_of_);
    archive(self.codes_);
    archive(self.highest_);
  }
  // Throws FormatError where a look-up would leave the tables. After transfer().
  void check() const;

 private:
  Table<uint16_t> page_of_;  // of 256 characters; page 0 holds no codes
  Table<uint32_t> codes_;
  uint32_t highest_ = kNone;
};

class Trie {
 public:
  struct Node {
    int32_t base = 0;
    int32_t parent = -1;  // who may step here; -1: free
    int32_t id = -1;      // of the piece that ends here; -1: none
  };

  // `keys` are code strings, none empty, all different; ids[i] belongs to keys[i].
  void build(const std::vector<std::u32string>& keys, const std::vector<int32_t>& ids);

  static constexpr int32_t kRoot = 0;

  // The child of `node` by `code`, or -1.
  int32_t step(int32_t node, uint32_t code) const {
    const int32_t child = nodes_[static_cast<size_t>(node)].base + static_cast<int32_t>(code);
    return nodes_[static_cast<size_t>(child)].parent == node ? child : -1;
  }
  const Node& node(int32_t index) const { return nodes_[static_cast<size_t>(index)]; }
  const Node* nodes() const { return nodes_.data(); }
  size_t size() const { return nodes_.size(); }

  template <class Self, class Archive>
  static void transfer(Self& self, Archive& archive) {
    archive(self.nodes_);
  }
  // Throws FormatError where a step by a code up to `highest_code` would leave the nodes, an id is
  // not below `ids`, or a way has not at most `longest` steps. After transfer().
  void check(uint32_t highest_code, size_t ids, size_t longest) const;

 private:
  // Long enough that base + code stays inside for every code in use. A node stands behind its
  // parent, so that one pass finds all depths.
  Table<Node> nodes_;
};

}  // namespace llmjp::tokenizer
