// A flat array that is its own, or lies in memory that someone else keeps: in a compiled model
// file, whose pages all processes share.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>
#include <vector>

namespace llmjp::tokenizer {

template <class T>
class Table {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Table() = default;
  Table(std::vector<T> elements)  // NOLINT: a vector is a table
      : own_(std::move(elements)), data_(own_.data()), size_(own_.size()) {}
  // `data` outlives the table.
  Table(const T* data, size_t size) : data_(data), size_(size) {}
  Table(Table&& other) noexcept { *this = std::move(other); }
  Table& operator=(Table&& other) noexcept {
    own_ = std::move(other.own_);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }

  const T* data() const { return data_; }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }
  const T& operator[](size_t i) const { return data_[i]; }

  // Only a table that is its own grows.
  void push_back(const T& element) {
    own_.push_back(element);
    data_ = own_.data();
    size_ = own_.size();
  }
  void append(const T* elements, size_t count) {
    own_.insert(own_.end(), elements, elements + count);
    data_ = own_.data();
    size_ = own_.size();
  }

 private:
  std::vector<T> own_;
  const T* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace llmjp::tokenizer
