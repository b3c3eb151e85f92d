#include "tokenizer/compiled_model.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <new>
#include <system_error>

namespace llmjp::tokenizer {
namespace {

constexpr size_t aligned(size_t position) {
  return (position + kCompiledAlignment - 1) / kCompiledAlignment * kCompiledAlignment;
}

// Several sums side by side, so that no multiplication waits for the one before. `bytes` is a
// multiple of 64 bytes. A change of one word always changes the result, since every step can be
// undone; it is there against damage, not against forgery.
uint64_t checksum(std::string_view bytes) {
  constexpr uint64_t kOdd = 0x9E3779B97F4A7C15;  // bits without a pattern
  std::array<uint64_t, kCompiledAlignment / sizeof(uint64_t)> sums{};
  for (size_t i = 0; i < bytes.size(); i += sizeof sums) {
    for (size_t k = 0; k < sums.size(); ++k) {
      uint64_t word;
      std::memcpy(&word, bytes.data() + i + k * sizeof word, sizeof word);
      sums[k] = (std::rotl(sums[k], 29) ^ word) * kOdd;
    }
  }
  uint64_t sum = bytes.size();
  for (const uint64_t each : sums) sum = (std::rotl(sum, 29) ^ each ^ each >> 32) * kOdd;
  return sum;
}

struct File {
  explicit File(const std::string& path) : descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor < 0) fail(path);
  }
  ~File() { ::close(descriptor); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  [[noreturn]] static void fail(const std::string& path) {
    throw std::system_error(errno, std::generic_category(), path);
  }

  int descriptor;
};

}  // namespace

void CompiledWriter::append(CompiledBlock block, const void* data, size_t size) {
  bytes_.append(reinterpret_cast<const char*>(&block), sizeof block);
  bytes_.resize(aligned(bytes_.size()));
  if (size > 0) bytes_.append(static_cast<const char*>(data), size);
  bytes_.resize(aligned(bytes_.size()));
}

void CompiledWriter::seal(std::string& bytes) {
  bytes.resize(std::max(aligned(bytes.size()), kCompiledAlignment));
  CompiledHeader header{};
  std::copy(kCompiledMagic.begin(), kCompiledMagic.end(), header.magic);
  header.byte_order = kCompiledByteOrder;
  header.format = kCompiledFormat;
  header.size = bytes.size();
  header.checksum = checksum(std::string_view(bytes).substr(kCompiledAlignment));
  std::memcpy(bytes.data(), &header, sizeof header);
}

std::string CompiledWriter::finish() {
  seal(bytes_);
  return std::move(bytes_);
}

void CompiledReader::fail(const std::string& what) {
  throw FormatError("compiled tokenizer: " + what);
}

CompiledReader::CompiledReader(std::shared_ptr<const char> memory, size_t size)
    : memory_(std::move(memory)), bytes_(memory_.get(), size) {
  CompiledHeader header;
  if (size < kCompiledAlignment) fail("the file is cut short");
  std::memcpy(&header, bytes_.data(), sizeof header);
  if (std::string_view(header.magic, sizeof header.magic) != kCompiledMagic)
    fail("the file does not begin as one");
  if (header.byte_order != kCompiledByteOrder)
    fail("written on a machine of another byte order; compile it anew on this one");
  if (header.format != kCompiledFormat) {
    fail("format " + std::to_string(header.format) + ", but this build reads format " +
         std::to_string(kCompiledFormat) + "; compile it anew from its source");
  }
  if (header.size != size || size % kCompiledAlignment != 0)
    fail("the file has " + std::to_string(size) + " bytes instead of " +
         std::to_string(header.size));
  if (checksum(bytes_.substr(kCompiledAlignment)) != header.checksum)
    fail("the file is damaged: its checksum does not match");
}

std::shared_ptr<CompiledReader> CompiledReader::open(const std::string& path) {
  const File file(path);
  struct stat status{};
  if (::fstat(file.descriptor, &status) != 0) File::fail(path);
  const auto size = static_cast<size_t>(status.st_size);
  if (size == 0) fail("the file is empty");
#ifdef MAP_POPULATE
  constexpr int kFlags = MAP_SHARED | MAP_POPULATE;  // all of it is read to check it
#else
  constexpr int kFlags = MAP_SHARED;
#endif
  void* const memory = ::mmap(nullptr, size, PROT_READ, kFlags, file.descriptor, 0);
  if (memory == MAP_FAILED) File::fail(path);
  const std::shared_ptr<const char> owner(
      static_cast<const char*>(memory),
      [size](const char* start) { ::munmap(const_cast<char*>(start), size); });
  return std::shared_ptr<CompiledReader>(new CompiledReader(owner, size));
}

std::shared_ptr<CompiledReader> CompiledReader::copy(std::string_view bytes) {
  constexpr std::align_val_t kAlignment{kCompiledAlignment};
  auto* const memory = static_cast<char*>(::operator new(bytes.size() + 1, kAlignment));
  std::copy(bytes.begin(), bytes.end(), memory);
  const std::shared_ptr<const char> owner(
      memory, [](const char* start) { ::operator delete(const_cast<char*>(start), kAlignment); });
  return std::shared_ptr<CompiledReader>(new CompiledReader(owner, bytes.size()));
}

CompiledBlock CompiledReader::next(size_t element_size) {
  CompiledBlock block{};
  if (bytes_.size() - position_ < kCompiledAlignment) fail("the file is cut short");
  std::memcpy(&block, bytes_.data() + position_, sizeof block);
  position_ += kCompiledAlignment;
  if (block.element_size != element_size) fail("a block of another type than expected");
  if (block.count > (bytes_.size() - position_) / element_size)
    fail("a block beyond the file's end");
  return block;
}

const char* CompiledReader::take(const CompiledBlock& block) {
  const char* const data = bytes_.data() + position_;
  position_ = aligned(position_ + block.element_size * block.count);
  return data;
}

void CompiledReader::finish() const {
  if (position_ != bytes_.size()) fail("more blocks than expected");
}

}  // namespace llmjp::tokenizer
