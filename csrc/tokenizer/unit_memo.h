// Remembers the ids of short units. What a unit's ids are depends on its characters alone, so
// whatever is in here, results are the same: it only saves the search.
//
// What a look-up costs is the cache line that it has to wait for, so entries are as small as their
// units allow: one table for units of up to 7 bytes, most by far, one for up to 15, one for up
// to 32.
//
// Two entries a set, a set within a cache line. A table grows with what it holds up to a fixed
// size: pages of memory that are touched for the first time cost as much as the searches that they
// save. From then on new entries push out old ones; text made to collide makes misses and nothing
// else.
#pragma once

#include <algorithm>
#include <array>
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

// As a count of ids: to be searched in doubles each time; too many to be kept here.
inline constexpr uint16_t kTied = 0xFFFF;
inline constexpr uint16_t kTooMany = 0xFFFE;

// The characters themselves, followed by zeros, and in the last byte their number and width, which
// make it unambiguous and never 0.
template <size_t kWords>
struct UnitKey {
  static constexpr size_t kBytes = 8 * kWords - 1;  // of characters at most

  std::array<uint64_t, kWords> words;

  // Reads 8 * kWords bytes from `text`, of which the first `length` characters count: more bytes
  // than fit a key of one word less, and no more than kBytes.
  template <class Char>
  static UnitKey read(const Char* text, size_t length) {
    UnitKey key;
    std::memcpy(key.words.data(), text, sizeof key.words);
    const size_t unused = 8 * (8 * kWords - length * sizeof(Char));  // bits, 8 to 64
    uint64_t& last = key.words[kWords - 1];
    last = last << (unused - 8) << 8 >> (unused - 8) >> 8;
    last |= uint64_t{length << 1 | (sizeof(Char) - 1)} << 56;
    return key;
  }

  uint64_t hash() const {
    constexpr uint64_t kSecond = 0xC2B2AE3D27D4EB4F;
    uint64_t hash = words[0];
    for (size_t i = 1; i < kWords; ++i) hash ^= words[i] * kSecond;
    return hash * kMixer >> 40;
  }
  bool operator==(const UnitKey& other) const {
    uint64_t differing = 0;
    for (size_t i = 0; i < kWords; ++i) differing |= words[i] ^ other.words[i];
    return differing == 0;
  }
};

// Ids of units by keys of so many words. `Id` is the same in all calls.
template <size_t kWords, size_t kIds>
class UnitMemo {
 public:
  using Key = UnitKey<kWords>;
  static constexpr size_t kKeyBytes = Key::kBytes;

  // 2^bits sets at most, taken when first used.
  explicit UnitMemo(int bits) : most_sets_(size_t{1} << bits) {}

  template <class Id>
  struct Entry {
    Key key;
    Id ids[kIds];
    uint16_t count;

    // Writes kWritten ids, of which `count` are meant.
    void copy_ids(Id* out) const { std::memcpy(out, ids, kWritten * sizeof(Id)); }
    static constexpr size_t kWritten = kIds + 2 / sizeof(Id);
  };

  // The entry of this key, or null. allocate() has been called.
  template <class Id>
  const Entry<Id>* find(const Key& key) const {
    const Entry<Id>* const set = entries<Id>() + 2 * index(key);
    const Entry<Id>* const entry = set + (set[1].key == key ? 1 : 0);
    return entry->key == key ? entry : nullptr;
  }

  template <class Id>
  void insert(const Key& key, const Id* ids, uint16_t count) {
    if (++inserted_ > sets_ + sets_ / 2 && sets_ < most_sets_) grow<Id>();
    Entry<Id>* const set = entries<Id>() + 2 * index(key);
    set[1] = set[0];
    set[0].key = key;
    set[0].count = count <= kIds || count == kTied ? count : kTooMany;
    if (count <= kIds) std::copy_n(ids, count, set[0].ids);
  }

  template <class Id>
  void allocate() {
    if (memory_.get() != nullptr) return;
    memory_.allocate(2 * most_sets_ * sizeof(Entry<Id>));
    sets_ = std::min(most_sets_, kFewestSets);
  }

 private:
  static constexpr size_t kFewestSets = 1024;

  template <class Id>
  Entry<Id>* entries() const {
    return reinterpret_cast<Entry<Id>*>(memory_.get());
  }

  // A key's set among 2^n is, of its sets among 2^(n + 1), the one in the lower half.
  size_t index(const Key& key) const { return static_cast<size_t>(key.hash()) & (sets_ - 1); }

  // Doubles the table in its place: what now belongs to the upper half moves there.
  template <class Id>
  void grow() {
    const size_t half = sets_;
    sets_ *= 2;
    Entry<Id>* const entry = entries<Id>();
    for (size_t i = 0; i < 2 * half; ++i) {
      if (entry[i].key == Key{}) continue;
      const size_t place = index(entry[i].key);
      if (place == i / 2) continue;
      entry[2 * place + i % 2] = entry[i];
      entry[i] = {};
    }
  }

  ZeroedArray<std::byte> memory_;
  size_t most_sets_;
  size_t sets_ = 0;
  size_t inserted_ = 0;
};

using ShortUnitMemo = UnitMemo<1, 3>;
using MediumUnitMemo = UnitMemo<2, 7>;
static_assert(sizeof(ShortUnitMemo::Entry<uint16_t>) == 16);
static_assert(sizeof(MediumUnitMemo::Entry<uint16_t>) == 32);

// Ids of units of one character, more than half of most text, by that character: kana and signs lie
// in a few cache lines.
class SingleUnitMemo {
 public:
  template <class Id>
  void allocate() {
    if (memory_.get() == nullptr) memory_.allocate(0x10000 * sizeof(Id));
  }
  // One more than the id, or 0.
  template <class Id>
  Id& operator()(char16_t c, Id) const {
    return reinterpret_cast<Id*>(memory_.get())[c];
  }

 private:
  ZeroedArray<std::byte> memory_;
};

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
  template <class Id>
  struct Entry {
    std::array<uint64_t, 4> words;
    Id ids[kIdBytes / sizeof(Id)];
    uint8_t length;
    uint8_t width;
    uint16_t count;

    void copy_ids(Id* out) const { std::memcpy(out, ids, kIdBytes); }
  };

  template <class Char>
  static Key key(const Char* text, size_t length) {
    Key key;
    std::memcpy(key.words.data(), text, length * sizeof(Char));
    key.length = static_cast<uint8_t>(length);
    key.width = sizeof(Char);
    return key;
  }

  template <class Id>
  const Entry<Id>* find(const Key& key) const {
    const Entry<Id>& entry = at<Id>(key);
    return entry.words == key.words && entry.length == key.length && entry.width == key.width
               ? &entry
               : nullptr;
  }

  template <class Id>
  void insert(const Key& key, const Id* ids, uint16_t count) {
    constexpr size_t kIds = kIdBytes / sizeof(Id);
    Entry<Id>& entry = at<Id>(key);
    entry.words = key.words;
    entry.length = key.length;
    entry.width = key.width;
    entry.count = count <= kIds || count == kTied ? count : kTooMany;
    if (count <= kIds) std::copy_n(ids, count, entry.ids);
  }

  void allocate() {
    if (memory_.get() == nullptr) memory_.allocate(kEntryBytes << bits_);
  }

 private:
  static constexpr size_t kEntryBytes = 64;
  static_assert(sizeof(Entry<uint16_t>) == kEntryBytes && sizeof(Entry<uint32_t>) == kEntryBytes);

  template <class Id>
  Entry<Id>& at(const Key& key) const {
    uint64_t hash = key.length;
    for (const uint64_t word : key.words) hash = (hash ^ word ^ hash >> 32) * kMixer;
    return reinterpret_cast<Entry<Id>*>(memory_.get())[hash >> 1 >> (63 - bits_)];
  }

  ZeroedArray<std::byte> memory_;
  int bits_;
};

}  // namespace llmjp::tokenizer
