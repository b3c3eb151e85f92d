// A growing array of token ids that is never zero-filled: encoders reserve once per block and write
// unchecked. `Id` is uint16_t where the vocabulary allows: half the memory to write and to hand
// over.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

namespace llmjp::tokenizer {

template <class Id>
class IdBuffer {
 public:
  size_t size() const { return size_; }
  const Id* data() const { return data_.get(); }
  Id& operator[](size_t i) { return data_[i]; }
  Id operator[](size_t i) const { return data_[i]; }
  void clear() { size_ = 0; }

  // Where the next ids go; at least `count` of them fit. commit() says how many were written.
  Id* reserve(size_t count) {
    if (capacity_ - size_ < count) grow(count);
    return data_.get() + size_;
  }
  void commit(size_t count) { size_ += count; }

  void push(uint32_t id) {
    *reserve(1) = static_cast<Id>(id);
    ++size_;
  }

 private:
  void grow(size_t count) {
    const size_t capacity = std::max(size_ + count, capacity_ + capacity_ / 2 + 64);
    auto data = std::make_unique_for_overwrite<Id[]>(capacity);
    if (size_ > 0) std::memcpy(data.get(), data_.get(), size_ * sizeof(Id));
    data_ = std::move(data);
    capacity_ = capacity;
  }

  std::unique_ptr<Id[]> data_;
  size_t size_ = 0;
  size_t capacity_ = 0;
};

}  // namespace llmjp::tokenizer
