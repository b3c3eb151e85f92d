// Remembers the ids of short units. What a unit's ids are depends on its characters alone, so
// whatever is in here, results are the same: it only saves the search.
//
// A table of fixed size, two entries a set, a set a cache line. New entries push out old ones; text
// made to collide makes misses and nothing else.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace llmjp::tokenizer {

class UnitMemo {
 public:
  static constexpr size_t kKeyBytes = 15;
  static constexpr size_t kIdBytes = 14;
  static constexpr uint8_t kTied = 0xFF;  // as a count: to be searched in doubles each time

  // 2^bits sets of 64 bytes, taken when first used.
  explicit UnitMemo(int bits) : bits_(bits) {}

  // The characters themselves, followed by zeros, and in the last byte their number and width,
  // which make it unambiguous and never 0.
  struct Key {
    uint64_t low;
    uint64_t high;
  };

  struct Entry {
    uint64_t low;
    uint64_t high;
    uint8_t ids[kIdBytes];
    uint16_t count;

    // Writes 16 bytes, of which `count` ids are meant.
    template <class Id>
    void copy_ids(Id* out) const {
      std::memcpy(out, ids, kIdBytes + 2);
    }
  };
  static_assert(sizeof(Entry) == 32);

  // Reads 16 bytes from `text`, of which the first `length` characters, kKeyBytes at most, count.
  template <class Char>
  static Key key(const Char* text, size_t length) {
    const Key& mask = kMasks[length * sizeof(Char)];
    const Key& tag = kTags[length << 1 | (sizeof(Char) - 1)];
    Key key;
    std::memcpy(&key, text, sizeof key);
    return {(key.low & mask.low) | tag.low, (key.high & mask.high) | tag.high};
  }

  // The entry of this key, or null. allocate() has been called.
  const Entry* find(const Key& key) const {
    const Entry* const set = entries_ + 2 * index(key);
    const Entry* const entry = set + (matches(set[1], key) ? 1 : 0);
    return matches(*entry, key) ? entry : nullptr;
  }

  template <class Id>
  void insert(const Key& key, const Id* ids, uint8_t count) {
    Entry* const set = entries_ + 2 * index(key);
    set[1] = set[0];
    set[0].low = key.low;
    set[0].high = key.high;
    set[0].count = count;
    if (count != kTied) std::memcpy(set[0].ids, ids, count * sizeof(Id));
  }

  // calloc: memory that the system hands out zeroed is not touched before it is used.
  void allocate() {
    if (memory_) return;
    constexpr size_t kLine = 64;
    size_t size = (sizeof(Entry) << (bits_ + 1)) + kLine;
    void* start = std::calloc(size, 1);
    if (start == nullptr) throw std::bad_alloc();
    memory_.reset(start);
    entries_ = static_cast<Entry*>(std::align(kLine, size - kLine, start, size));
  }

 private:
  template <size_t kCount, class ByteAt>
  static constexpr std::array<Key, kCount> keys(const ByteAt& byte_at) {
    std::array<Key, kCount> keys{};
    for (size_t k = 0; k < kCount; ++k) {
      std::array<uint8_t, 16> bytes{};
      for (size_t i = 0; i < 16; ++i) bytes[i] = byte_at(k, i);
      keys[k] = std::bit_cast<Key>(bytes);
    }
    return keys;
  }
  static const std::array<Key, 17> kMasks;  // by number of bytes that count
  static const std::array<Key, 34> kTags;   // by number of characters and width

  size_t index(const Key& key) const {
    constexpr uint64_t kFirst = 0x9E3779B97F4A7C15;  // odd, bits without a pattern
    constexpr uint64_t kSecond = 0xC2B2AE3D27D4EB4F;
    return static_cast<size_t>((key.low ^ key.high * kSecond) * kFirst >> 1 >> (63 - bits_));
  }
  static bool matches(const Entry& entry, const Key& key) {
    return ((entry.low ^ key.low) | (entry.high ^ key.high)) == 0;
  }

  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };

  std::unique_ptr<void, Free> memory_;
  Entry* entries_ = nullptr;  // in it
  int bits_;
};

inline constexpr std::array<UnitMemo::Key, 17> UnitMemo::kMasks =
    UnitMemo::keys<17>([](size_t k, size_t i) -> uint8_t { return i < k ? 0xFF : 0; });
inline constexpr std::array<UnitMemo::Key, 34> UnitMemo::kTags =
    UnitMemo::keys<34>([](size_t k, size_t i) -> uint8_t {
      return i < kKeyBytes ? 0 : static_cast<uint8_t>(k >> 1 | (k & 1) << 7);
    });

}  // namespace llmjp::tokenizer
