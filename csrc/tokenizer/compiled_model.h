// A compiled tokenizer: every table that the search reads, as a file that is mapped into memory and
// used where it lies. Loading it parses nothing, and all processes share its pages.
//
// The file is a header and then blocks, each an array of one element type, in the order of the
// transfer() functions of Specification, Model, UnitRules and Decoder: these say what is in the
// file, for the writer and for the reader. Blocks start at multiples of 64 bytes. Numbers are as in
// memory; the header tells the byte order.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "tokenizer/json.h"
#include "tokenizer/table.h"

namespace llmjp::tokenizer {

struct CompiledHeader {
  char magic[8];
  uint32_t byte_order;
  uint32_t format;
  uint64_t size;      // of the file
  uint64_t checksum;  // of what follows the header
};
static_assert(sizeof(CompiledHeader) == 32);

inline constexpr std::string_view kCompiledMagic = "LLMJPTOK";
inline constexpr uint32_t kCompiledByteOrder = 0x01020304;
inline constexpr uint32_t kCompiledFormat = 4;  // one more whenever a transfer() changes
inline constexpr size_t kCompiledAlignment = 64;

struct CompiledBlock {
  uint64_t element_size;
  uint64_t count;
};

class CompiledWriter {
 public:
  CompiledWriter() : bytes_(kCompiledAlignment, '\0') {}

  template <class T>
  void operator()(const Table<T>& table) {
    block(table.data(), table.size());
  }
  template <class T>
  void operator()(const std::vector<T>& elements) {
    if constexpr (std::is_trivially_copyable_v<T>) {
      block(elements.data(), elements.size());
    } else {
      (*this)(uint64_t{elements.size()});
      for (const T& element : elements) T::transfer(element, *this);
    }
  }
  void operator()(const std::string& text) { block(text.data(), text.size()); }
  void operator()(std::string_view text) { block(text.data(), text.size()); }
  void operator()(bool value) { (*this)(uint8_t{value}); }
  template <class T>
    requires std::is_arithmetic_v<T>
  void operator()(T value) {
    block(&value, 1);
  }

  // The file's bytes. The writer is empty then.
  std::string finish();
  // Writes the header over the first bytes of a file, for what follows them.
  static void seal(std::string& bytes);

 private:
  template <class T>
  void block(const T* elements, size_t count) {
    append({sizeof(T), count}, elements, sizeof(T) * count);
  }
  void append(CompiledBlock block, const void* data, size_t size);

  std::string bytes_;
};

class CompiledReader {
 public:
  // Maps a file. Throws std::system_error if it cannot be read, FormatError if it is no compiled
  // tokenizer of this build's format and byte order, or damaged.
  static std::shared_ptr<CompiledReader> open(const std::string& path);
  // From a copy of bytes.
  static std::shared_ptr<CompiledReader> copy(std::string_view bytes);

  template <class T>
  void operator()(Table<T>& table) {
    const CompiledBlock block = next(sizeof(T));
    table = Table<T>(reinterpret_cast<const T*>(take(block)), block.count);
  }
  template <class T>
  void operator()(std::vector<T>& elements) {
    if constexpr (std::is_trivially_copyable_v<T>) {
      Table<T> table;
      (*this)(table);
      elements.assign(table.begin(), table.end());
    } else {
      uint64_t count = 0;
      (*this)(count);
      elements.clear();
      for (; count > 0; --count) T::transfer(elements.emplace_back(), *this);
    }
  }
  void operator()(std::string& text) {
    Table<char> table;
    (*this)(table);
    text.assign(table.begin(), table.end());
  }
  void operator()(std::string_view& text) {
    Table<char> table;
    (*this)(table);
    text = {table.data(), table.size()};
  }
  void operator()(bool& value) {
    uint8_t byte = 0;
    (*this)(byte);
    value = byte != 0;
  }
  template <class T>
    requires std::is_arithmetic_v<T>
  void operator()(T& value) {
    const CompiledBlock block = next(sizeof(T));
    if (block.count != 1) fail("a block of another length than expected");
    std::memcpy(&value, take(block), sizeof value);
  }

  void finish() const;  // throws FormatError if something is left

 private:
  explicit CompiledReader(std::shared_ptr<const char> memory, size_t size);

  CompiledBlock next(size_t element_size);
  const char* take(const CompiledBlock& block);
  [[noreturn]] static void fail(const std::string& what);

  std::shared_ptr<const char> memory_;  // multiples of 64 bytes are so in memory too
  std::string_view bytes_;
  size_t position_ = kCompiledAlignment;
};

}  // namespace llmjp::tokenizer
