#include "tokenizer/trie.h"

#include <algorithm>
#include <numeric>

#include "tokenizer/json.h"

namespace llmjp::tokenizer {

CharacterCodes::CharacterCodes() { build({}); }

void CharacterCodes::build(const std::vector<std::pair<char32_t, uint32_t>>& entries) {
  std::vector<uint16_t> page_of(kLimit >> 8, 0);
  std::vector<uint32_t> codes(256, kNone);
  for (const auto& [c, code] : entries) {
    uint16_t& page = page_of[c >> 8];
    if (page == 0) {
      page = static_cast<uint16_t>(codes.size() >> 8);
      codes.resize(codes.size() + 256, kNone);
    }
    codes[(size_t{page} << 8) | (c & 0xFF)] = code;
    highest_ = std::max(highest_, code);
  }
  page_of_ = std::move(page_of);
  codes_ = std::move(codes);
}

void CharacterCodes::check() const {
  const size_t pages = codes_.size() >> 8;
  if (page_of_.size() != kLimit >> 8 || codes_.size() != pages << 8 ||
      std::any_of(page_of_.begin(), page_of_.end(), [&](uint16_t page) { return page >= pages; }) ||
      std::any_of(codes_.begin(), codes_.end(), [&](uint32_t code) { return code > highest_; }))
    throw FormatError("the table of characters leads outside of itself");
}

namespace {

// Places the children of one node after another into free slots of the double array. The free slots
// form a list in rising order. A slot that many nodes in a row could not use is taken off the list:
// it stays empty, and building stays linear in practice.
class Builder {
 public:
  Builder(std::vector<Trie::Node>& nodes, uint32_t highest_code)
      : nodes_(nodes), highest_code_(highest_code) {
    grow(1);
    take(0);
  }

  // A base for children with these codes, in rising order, of the node `parent`, behind which they
  // are to stand.
  int32_t place(const std::vector<uint32_t>& codes, int32_t parent) {
    int misses = 0;
    for (int32_t slot = first_free_;; slot = next_free_[static_cast<size_t>(slot)]) {
      if (slot < 0) {  // every free slot was tried
        slot = static_cast<int32_t>(nodes_.size());
        grow(nodes_.size() + highest_code_ + 1);
      }
      const int32_t base = slot - static_cast<int32_t>(codes.front());
      if (base < 0) continue;
      if (slot > parent) {
        grow(static_cast<size_t>(base) + highest_code_ + 1);
        const bool fits = std::all_of(codes.begin(), codes.end(), [&](uint32_t code) {
          return is_free(base + static_cast<int32_t>(code));
        });
        if (fits) return base;
      }
      constexpr int kPatience = 64;
      if (++misses % kPatience == 0) first_free_ = slot;
    }
  }

  void take(int32_t slot) {
    taken_[static_cast<size_t>(slot)] = 1;
    const int32_t next = next_free_[static_cast<size_t>(slot)];
    const int32_t previous = previous_free_[static_cast<size_t>(slot)];
    if (previous >= 0) next_free_[static_cast<size_t>(previous)] = next;
    if (next >= 0) previous_free_[static_cast<size_t>(next)] = previous;
    if (slot == first_free_) first_free_ = next;
    if (slot == last_free_) last_free_ = previous;
  }

 private:
  bool is_free(int32_t slot) const { return taken_[static_cast<size_t>(slot)] == 0; }

  void grow(size_t size) {
    const size_t old = nodes_.size();
    if (size <= old) return;
    size = std::max(size, old + old / 2 + 256);
    nodes_.resize(size);
    taken_.resize(size, 0);
    next_free_.resize(size, -1);
    previous_free_.resize(size, -1);
    for (size_t i = old; i < size; ++i) {
      const auto slot = static_cast<int32_t>(i);
      previous_free_[i] = last_free_;
      if (last_free_ >= 0) next_free_[static_cast<size_t>(last_free_)] = slot;
      if (first_free_ < 0) first_free_ = slot;
      last_free_ = slot;
    }
  }

  std::vector<Trie::Node>& nodes_;
  uint32_t highest_code_;
  std::vector<uint8_t> taken_;
  std::vector<int32_t> next_free_;
  std::vector<int32_t> previous_free_;
  int32_t first_free_ = -1;
  int32_t last_free_ = -1;
};

// The indices of the keys in the keys' order. Most comparisons end within the first three codes,
// which stand beside the index: 21 bits each, as codes are not above the number of characters.
std::vector<uint32_t> sorted(const std::vector<std::u32string>& keys) {
  struct Entry {
    uint64_t first_codes;
    uint32_t index;
  };
  constexpr size_t kFirst = 3;
  constexpr int kBits = 21;
  std::vector<Entry> entries(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    entries[i].index = static_cast<uint32_t>(i);
    for (size_t k = 0; k < kFirst; ++k)
      entries[i].first_codes =
          entries[i].first_codes << kBits | (k < keys[i].size() ? keys[i][k] : 0);
  }
  std::sort(entries.begin(), entries.end(), [&](const Entry& a, const Entry& b) {
    return a.first_codes != b.first_codes ? a.first_codes < b.first_codes
                                          : keys[a.index] < keys[b.index];
  });
  std::vector<uint32_t> order;
  order.reserve(keys.size());
  for (const Entry& entry : entries) order.push_back(entry.index);
  return order;
}

// Keys order[begin, end) share their first `depth` codes, which lead to `node`.
struct Span {
  int32_t node;
  size_t begin;
  size_t end;
  size_t depth;
};

}  // namespace

void Trie::build(const std::vector<std::u32string>& keys, const std::vector<int32_t>& ids) {
  const std::vector<uint32_t> order = sorted(keys);
  uint32_t highest_code = 0;
  for (const std::u32string& key : keys) {
    for (const char32_t code : key) highest_code = std::max<uint32_t>(highest_code, code);
  }

  std::vector<Node> nodes;
  Builder builder(nodes, highest_code);
  nodes[kRoot].parent = -2;  // taken, and nobody's child
  std::vector<Span> spans{{kRoot, 0, keys.size(), 0}};
  std::vector<uint32_t> codes;
  std::vector<size_t> starts;
  for (size_t next = 0; next < spans.size(); ++next) {
    Span span = spans[next];
    if (span.begin < span.end && keys[order[span.begin]].size() == span.depth) {
      nodes[static_cast<size_t>(span.node)].id = ids[order[span.begin]];
      ++span.begin;
    }
    codes.clear();
    starts.clear();
    for (size_t i = span.begin; i < span.end; ++i) {
      const auto code = static_cast<uint32_t>(keys[order[i]][span.depth]);
      if (codes.empty() || codes.back() != code) {
        codes.push_back(code);
        starts.push_back(i);
      }
    }
    if (codes.empty()) continue;
    starts.push_back(span.end);
    const int32_t base = builder.place(codes, span.node);
    nodes[static_cast<size_t>(span.node)].base = base;
    for (size_t i = 0; i < codes.size(); ++i) {
      const int32_t child = base + static_cast<int32_t>(codes[i]);
      builder.take(child);
      nodes[static_cast<size_t>(child)].parent = span.node;
      spans.push_back({child, starts[i], starts[i + 1], span.depth + 1});
    }
  }
  // A leaf steps from base 0, and code 0 leads to the base itself: both stay inside, and no such
  // slot names it parent.
  int32_t highest_base = 0;
  for (const Node& node : nodes) highest_base = std::max(highest_base, node.base);
  nodes.resize(static_cast<size_t>(highest_base) + highest_code + 1);
  nodes_ = std::move(nodes);
}

void Trie::check(uint32_t highest_code, size_t ids, size_t longest) const {
  // depths[n + 1] is 1 + the steps that lead to node n, from the root or another node without a
  // parent; depths[0] stands for the parent of these. One pass whose branches are never taken: this
  // is a large part of loading a compiled file.
  std::vector<uint32_t> depths(nodes_.size() + 1);
  uint32_t deepest = 0;
  uint32_t highest_base = 0;  // a negative one is above all others
  int32_t highest_id = -1;
  for (size_t n = 0; n < nodes_.size(); ++n) {
    const Node& node = nodes_[n];
    const auto above = static_cast<size_t>(std::max(node.parent, -1) + 1);
    if (above > n) throw FormatError("the trie has a node before its parent");
    const uint32_t depth = depths[above] + 1;
    depths[n + 1] = depth;
    deepest = std::max(deepest, depth);
    highest_base = std::max(highest_base, static_cast<uint32_t>(node.base));
    highest_id = std::max(highest_id, node.id);
  }
  if (nodes_.empty() || nodes_[kRoot].parent >= 0 ||
      size_t{highest_base} + highest_code >= nodes_.size() ||
      highest_id >= static_cast<int64_t>(ids))
    throw FormatError("the trie leads outside of itself");
  if (std::max<size_t>(deepest - 1, 1) != longest)
    throw FormatError("the longest piece is not as long as the trie is deep");
}

}  // namespace llmjp::tokenizer
