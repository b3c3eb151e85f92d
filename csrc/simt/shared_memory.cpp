#include "simt/shared_memory.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "simt/engine.h"

namespace llmjp::simt {
namespace {

constexpr size_t kAlignment = 128;

std::string thread_name(int index) { return "thread " + std::to_string(index); }

}  // namespace

void SharedMemory::Free::operator()(std::byte* data) const { std::free(data); }

SharedMemory::SharedMemory(size_t bytes) : bytes_(bytes), shadow_(bytes) {
  void* data = nullptr;
  if (posix_memalign(&data, kAlignment, bytes == 0 ? 1 : bytes) != 0) throw std::bad_alloc();
  std::memset(data, 0xff, bytes);
  data_.reset(static_cast<std::byte*>(data));
}

size_t SharedMemory::offset_of(Thread& thread, const void* address, size_t bytes,
                               const char* verb) {
  const auto start = reinterpret_cast<uintptr_t>(data_.get());
  const auto at = reinterpret_cast<uintptr_t>(address);
  (void)thread;
  if (at < start || at + bytes > start + bytes_) {
    current_launch().fault(std::string(verb) + " of " + std::to_string(bytes) +
                           " bytes outside the block's " + std::to_string(bytes_) +
                           " bytes of shared memory, at offset " +
                           std::to_string(static_cast<int64_t>(at) - static_cast<int64_t>(start)));
  }
  if (at % bytes != 0) {
    current_launch().fault(std::string(verb) + " of " + std::to_string(bytes) +
                           " bytes at the misaligned shared-memory offset " +
                           std::to_string(at - start));
  }
  return at - start;
}

// A write by another thread counts as seen after a block barrier, or after sync_warp within the
// warp.
void SharedMemory::check_writers(Thread& thread, const Byte& byte, size_t offset,
                                 const char* verb) {
  if (byte.copy_in_flight) {
    current_launch().fault(std::string(verb) + " of shared memory at offset " +
                           std::to_string(offset) + " while the cp.async that " +
                           thread_name(byte.writer) + " issued to it is in flight");
  }
  if (byte.writer == kNobody || byte.writer == thread.index) return;
  if (byte.write_epoch != thread.block->epoch) return;
  const bool same_warp = byte.writer / kWarpSize == thread.warp();
  if (same_warp && byte.write_warp_epoch != thread.block->warps[thread.warp()].epoch) return;
  current_launch().fault("race: " + std::string(verb) + " of shared memory at offset " +
                         std::to_string(offset) + " that " + thread_name(byte.writer) +
                         " wrote with no barrier between");
}

void SharedMemory::check_read(Thread& thread, const void* address, size_t bytes) {
  const size_t first = offset_of(thread, address, bytes, "read");
  const uint32_t epoch = thread.block->epoch;
  const uint32_t warp_epoch = thread.block->warps[thread.warp()].epoch;
  for (size_t offset = first; offset < first + bytes; ++offset) {
    Byte& byte = shadow_[offset];
    check_writers(thread, byte, offset, "read");
    if (byte.reader_warp == kNobody || byte.read_epoch != epoch) {
      byte.reader_warp = static_cast<int16_t>(thread.warp());
      byte.reader = static_cast<int16_t>(thread.index);
    } else if (byte.reader_warp != thread.warp()) {
      byte.reader_warp = kSeveral;
    } else if (byte.reader != thread.index) {
      byte.reader =
          byte.read_warp_epoch == warp_epoch ? kSeveral : static_cast<int16_t>(thread.index);
    }
    byte.read_epoch = epoch;
    byte.read_warp_epoch = warp_epoch;
  }
}

void SharedMemory::check_write(Thread& thread, const void* address, size_t bytes) {
  const size_t first = offset_of(thread, address, bytes, "write");
  const uint32_t epoch = thread.block->epoch;
  const uint32_t warp_epoch = thread.block->warps[thread.warp()].epoch;
  for (size_t offset = first; offset < first + bytes; ++offset) {
    Byte& byte = shadow_[offset];
    check_writers(thread, byte, offset, "write");
    if (byte.reader_warp != kNobody && byte.read_epoch == epoch) {
      const bool other_warp = byte.reader_warp != thread.warp();
      const bool other_lane = byte.reader != thread.index && byte.read_warp_epoch == warp_epoch;
      if (other_warp || other_lane) {
        const std::string who = other_warp && byte.reader_warp == kSeveral
                                    ? "threads of several warps"
                                : byte.reader == kSeveral
                                    ? "several threads of warp " + std::to_string(byte.reader_warp)
                                    : thread_name(byte.reader);
        current_launch().fault("race: write of shared memory at offset " + std::to_string(offset) +
                               " that " + who + " read with no barrier between");
      }
    }
    byte.writer = static_cast<int16_t>(thread.index);
    byte.write_epoch = epoch;
    byte.write_warp_epoch = warp_epoch;
  }
}

void SharedMemory::begin_copy(Thread& thread, const void* address, size_t bytes) {
  check_write(thread, address, bytes);
  const size_t first = offset_of(thread, address, bytes, "cp.async");
  std::memset(data_.get() + first, 0xff, bytes);
  for (size_t offset = first; offset < first + bytes; ++offset)
    shadow_[offset].copy_in_flight = true;
}

void SharedMemory::end_copy(Thread& thread, const void* address, size_t bytes) {
  const size_t first = offset_of(thread, address, bytes, "cp.async");
  for (size_t offset = first; offset < first + bytes; ++offset)
    shadow_[offset].copy_in_flight = false;
  check_write(thread, address, bytes);
}

}  // namespace llmjp::simt
