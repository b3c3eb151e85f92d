// Remembers the ids of short units. What a unit's ids are depends on its characters alone, so
// whatever is in here, results are the same: it only saves the search.
//
// Two entries a set, a set a cache line. The table grows with what it holds up to a fixed size:
// pages of memory that are touched for the first time cost as much as the searches that they save.
// From then on new entries push out old ones; text made to collide makes misses and nothing else.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace llmjp::tokenizer {

// A zeroed array that begins with a cache line. Memory that the system hands out zeroed is not
// touched before it is used.
template <class T>
class ZeroedArray {
 public:
  void allocate(size_t count) {
    constexpr size_t kLine = 64;
    size_t size = count * sizeof(T) + kLine;
    void* start = std::calloc(size, 1);
    if (start == nullptr) throw std::bad_alloc();
    memory_.reset(start);
    start_ = static_cast<T*>(std::align(kLine, size - kLine, start, size));
  }
  T* get() const { return start_; }
  T& operator[](size_t i) const { return start_[i]; }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
  T* start_ = nullptr;
};

inline constexpr uint64_t kMixer = 0x9E3779B97F4A7C15;  // odd, bits without a pattern

class UnitMemo {
 public:
  static constexpr size_t kKeyBytes = 15;
  static constexpr size_t kIdBytes = 14;
  static constexpr uint8_t kTied = 0xFF;  // as a count: to be searched in doubles each time

  // 2^bits sets of 64 bytes at most, taken when first used.
  explicit UnitMemo(int bits) : most_sets_(size_t{1} << bits) {}

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
    Key key;
    std::memcpy(&key, text, sizeof key);
    return {key.low & mask.low,
            (key.high & mask.high) | kTags[length << 1 | (sizeof(Char) - 1)].high};
  }

  // The entry of this key, or null. allocate() has been called.
  const Entry* find(const Key& key) const {
    const Entry* const set = entries_.get() + 2 * index(key);
    const Entry* const entry = set + (matches(set[1], key) ? 1 : 0);
    return matches(*entry, key) ? entry : nullptr;
  }

  template <class Id>
  void insert(const Key& key, const Id* ids, uint8_t count) {
    if (++inserted_ > sets_ + sets_ / 2 && sets_ < most_sets_) grow();
    Entry* const set = entries_.get() + 2 * index(key);
    set[1] = set[0];
    set[0].low = key.low;
    set[0].high = key.high;
    set[0].count = count;
    if (count != kTied) std::memcpy(set[0].ids, ids, count * sizeof(Id));
  }

  void allocate() {
    if (entries_.get() != nullptr) return;
    entries_.allocate(2 * most_sets_);
    sets_ = std::min(most_sets_, kFewestSets);
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

  static constexpr size_t kFewestSets = 1024;

  // A key's set among 2^n is, of its sets among 2^(n + 1), the one in the lower half.
  size_t index(const Key& key) const {
    constexpr uint64_t kSecond = 0xC2B2AE3D27D4EB4F;
    return static_cast<size_t>((key.low ^ key.high * kSecond) * kMixer >> 40) & (sets_ - 1);
  }
  static bool matches(const Entry& entry, const Key& key) {
    return ((entry.low ^ key.low) | (entry.high ^ key.high)) == 0;
  }

  // Doubles the table in its place: what now belongs to the upper half moves there.
  void grow() {
    const size_t half = sets_;
    sets_ *= 2;
    for (size_t set = 0; set < half; ++set) {
      for (size_t way = 0; way < 2; ++way) {
        Entry& entry = entries_[2 * set + way];
        const size_t place = index({entry.low, entry.high});
        if (entry.high == 0 || place == set) continue;
        entries_[2 * place + way] = entry;
        entry = Entry{};
      }
    }
  }

  ZeroedArray<Entry> entries_;
  size_t most_sets_;
  size_t sets_ = 0;
  size_t inserted_ = 0;
};

inline constexpr std::array<UnitMemo::Key, 17> UnitMemo::kMasks =
    UnitMemo::keys<17>([](size_t k, size_t i) -> uint8_t { return i < k ? 0xFF : 0; });
inline constexpr std::array<UnitMemo::Key, 34> UnitMemo::kTags =
    UnitMemo::keys<34>([](size_t k, size_t i) -> uint8_t {
      return i < kKeyBytes ? 0 : static_cast<uint8_t>(k >> 1 | (k & 1) << 7);
    });

// The same for the few units that are longer: one entry a set, of a fixed number of sets.
class LongUnitMemo {
 public:
  static constexpr size_t kKeyBytes = 32;
  static constexpr size_t kIdBytes = 28;

  explicit LongUnitMemo(int bits) : bits_(bits) {}

  struct Key {
    std::array<uint64_t, 4> words{};
    uint8_t length = 0;  // of the characters, and
    uint8_t width = 0;   // never 0
  };
  struct Entry {
    std::array<uint64_t, 4> words;
    uint8_t ids[kIdBytes];
    uint8_t length;
    uint8_t width;
    uint16_t count;

    template <class Id>
    void copy_ids(Id* out) const {
      std::memcpy(out, ids, kIdBytes);
    }
  };
  static_assert(sizeof(Entry) == 64);

  template <class Char>
  static Key key(const Char* text, size_t length) {
    Key key;
    std::memcpy(key.words.data(), text, length * sizeof(Char));
    key.length = static_cast<uint8_t>(length);
    key.width = sizeof(Char);
    return key;
  }

  const Entry* find(const Key& key) const {
    const Entry& entry = entries_[index(key)];
    return entry.words == key.words && entry.length == key.length && entry.width == key.width
               ? &entry
               : nullptr;
  }

  template <class Id>
  void insert(const Key& key, const Id* ids, uint8_t count) {
    Entry& entry = entries_[index(key)];
    entry.words = key.words;
    entry.length = key.length;
    entry.width = key.width;
    entry.count = count;
    if (count != UnitMemo::kTied) std::memcpy(entry.ids, ids, count * sizeof(Id));
  }

  void allocate() {
    if (entries_.get() == nullptr) entries_.allocate(size_t{1} << bits_);
  }

 private:
  size_t index(const Key& key) const {
    uint64_t hash = key.length;
    for (const uint64_t word : key.words) hash = (hash ^ word ^ hash >> 32) * kMixer;
    return static_cast<size_t>(hash >> 1 >> (63 - bits_));
  }

  ZeroedArray<Entry> entries_;
  int bits_;
};

}  // namespace llmjp::tokenizer
