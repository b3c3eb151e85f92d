// Remembers the ids of short units. What a unit's ids are depends on its characters alone, so
// whatever is in here, results are the same: it only saves the search.
//
// A table of fixed size, two entries a set, a set a cache line. New entries push out old ones; text
// made to collide makes misses and nothing else.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

namespace llmjp::tokenizer {

class UnitMemo {
 public:
  static constexpr size_t kKeyBytes = 16;
  static constexpr size_t kIdBytes = 14;
  static constexpr uint8_t kTied = 0xFF;  // a count: to be searched in doubles each time

  // 2^bits sets of 64 bytes, taken when first used.
  explicit UnitMemo(int bits) : bits_(bits) {}

  // The characters themselves, followed by zeros, and what makes them unambiguous.
  struct Key {
    uint64_t low;
    uint64_t high;
    uint8_t tag;  // number and width of the characters; never 0
  };

  struct alignas(32) Entry {
    uint64_t low;
    uint64_t high;
    uint8_t ids[kIdBytes];
    uint8_t tag;
    uint8_t count;

    // Writes 16 bytes, of which `count` ids are meant.
    template <class Id>
    void copy_ids(Id* out) const {
      std::memcpy(out, ids, kIdBytes + 2);
    }
  };
  static_assert(sizeof(Entry) == 32);

  // Reads kKeyBytes bytes from `text`, of which the first `length` characters count.
  template <class Char>
  static Key key(const Char* text, size_t length) {
    Key key;
    uint64_t mask[2];
    std::memcpy(mask, kMasks.data() + kKeyBytes - length * sizeof(Char), sizeof mask);
    std::memcpy(&key.low, text, sizeof key.low);
    std::memcpy(&key.high, reinterpret_cast<const char*>(text) + 8, sizeof key.high);
    key.low &= mask[0];
    key.high &= mask[1];
    key.tag = static_cast<uint8_t>(length | (sizeof(Char) - 1) << 7);
    return key;
  }

  // The entry of this key, or null. allocate() has been called.
  const Entry* find(const Key& key) const {
    const Entry* const set = entries_.get() + 2 * index(key);
    const Entry* const entry = set + (matches(set[1], key) ? 1 : 0);
    return matches(*entry, key) ? entry : nullptr;
  }

  template <class Id>
  void insert(const Key& key, const Id* ids, uint8_t count) {
    Entry* const set = entries_.get() + 2 * index(key);
    set[1] = set[0];
    set[0].low = key.low;
    set[0].high = key.high;
    set[0].tag = key.tag;
    set[0].count = count;
    if (count != kTied) std::memcpy(set[0].ids, ids, count * sizeof(Id));
  }

  void allocate() {
    if (!entries_) entries_ = std::make_unique<Entry[]>(size_t{2} << bits_);
  }

 private:
  static constexpr std::array<uint8_t, 2 * kKeyBytes> kMasks = [] {
    std::array<uint8_t, 2 * kKeyBytes> bytes{};
    for (size_t i = 0; i < kKeyBytes; ++i) bytes[i] = 0xFF;
    return bytes;
  }();

  size_t index(const Key& key) const {
    constexpr uint64_t kFirst = 0x9E3779B97F4A7C15;  // odd, bits without a pattern
    constexpr uint64_t kSecond = 0xC2B2AE3D27D4EB4F;
    return static_cast<size_t>((key.low ^ key.high * kSecond) * kFirst >> 1 >> (63 - bits_));
  }
  static bool matches(const Entry& entry, const Key& key) {
    return ((entry.low ^ key.low) | (entry.high ^ key.high) |
            static_cast<uint64_t>(entry.tag ^ key.tag)) == 0;
  }

  std::unique_ptr<Entry[]> entries_;
  int bits_;
};

}  // namespace llmjp::tokenizer
