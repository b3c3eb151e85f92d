// A growing array of token ids that is never zero-filled: encoders reserve once per block and write
// unchecked. `Id` is uint16_t where the vocabulary allows: half the memory to write and to hand
// over.
//
// The memory is malloc's, for two reasons: large arrays grow by moving pages instead of ids, and
// the finished array can be handed to an owner that knows nothing of this class.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

namespace llmjp::tokenizer {

struct FreeMemory {
  void operator()(void* memory) const { std::free(memory); }
};

template <class Id>
class IdBuffer {
  static_assert(std::is_trivially_copyable_v<Id>);

 public:
  using Memory = std::unique_ptr<Id[], FreeMemory>;

  IdBuffer() = default;
  IdBuffer(IdBuffer&& other) noexcept
      : data_(std::move(other.data_)),
        size_(std::exchange(other.size_, 0)),
        capacity_(std::exchange(other.capacity_, 0)) {}
  IdBuffer& operator=(IdBuffer&& other) noexcept {
    data_ = std::move(other.data_);
    size_ = std::exchange(other.size_, 0);
    capacity_ = std::exchange(other.capacity_, 0);
    return *this;
  }

  size_t size() const { return size_; }
  size_t capacity() const { return capacity_; }
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
  void append(const Id* ids, size_t count) {
    std::copy_n(ids, count, reserve(count));
    size_ += count;
  }

  // Gives the memory away, cut to its contents; null if there is none.
  Memory release() {
    if (size_ < capacity_ && size_ > 0) resize(size_);
    if (size_ == 0) data_.reset();
    size_ = capacity_ = 0;
    return std::move(data_);
  }

 private:
  void grow(size_t count) { resize(std::max(size_ + count, capacity_ + capacity_ / 2 + 64)); }
  void resize(size_t capacity) {
    if (capacity > std::numeric_limits<size_t>::max() / sizeof(Id)) throw std::bad_alloc();
    void* const memory = std::realloc(data_.get(), capacity * sizeof(Id));
    if (memory == nullptr) throw std::bad_alloc();
    static_cast<void>(data_.release());  // realloc has taken it
    data_.reset(static_cast<Id*>(memory));
    capacity_ = capacity;
  }

  Memory data_;
  size_t size_ = 0;
  size_t capacity_ = 0;
};

}  // namespace llmjp::tokenizer
