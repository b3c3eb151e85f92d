// A block's dynamic shared memory: a heap buffer of exactly the size asked for (an address
// sanitizer sees the first byte beyond it), full of 0xff at the start (NaN in every float type),
// and a shadow that finds races.
//
// The shadow holds, per byte, who wrote and who read it last and when. "When" is the number of
// block barriers passed and, within a warp, the number of sync_warp calls passed; nothing else
// orders shared memory between threads. Two accesses by different threads, at least one a write,
// with neither kind of barrier between them, are a race. Accesses through device::shared_load,
// shared_store, ldmatrix and cp.async are checked; raw pointers are not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace llmjp::simt {

struct Thread;

class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes);

  std::byte* data() { return data_.get(); }
  size_t bytes() const { return bytes_; }

  void check_read(Thread& thread, const void* address, size_t bytes);
  void check_write(Thread& thread, const void* address, size_t bytes);

  // From cp.async's issue until its wait nobody may touch the destination.
  void begin_copy(Thread& thread, const void* address, size_t bytes);
  void end_copy(Thread& thread, const void* address, size_t bytes);

 private:
  static constexpr int16_t kNobody = -1;
  static constexpr int16_t kSeveral = -2;

  struct Byte {
    uint32_t write_epoch = 0;
    uint32_t write_warp_epoch = 0;
    uint32_t read_epoch = 0;
    uint32_t read_warp_epoch = 0;
    int16_t writer = kNobody;
    int16_t reader_warp = kNobody;  // or kSeveral warps
    int16_t reader = kNobody;       // or kSeveral lanes of reader_warp
    bool copy_in_flight = false;
  };

  struct Free {
    void operator()(std::byte* data) const;
  };

  size_t offset_of(Thread& thread, const void* address, size_t bytes, const char* verb);
  void check_writers(Thread& thread, const Byte& byte, size_t offset, const char* verb);

  std::unique_ptr<std::byte, Free> data_;
  size_t bytes_;
  std::vector<Byte> shadow_;
};

}  // namespace llmjp::simt
