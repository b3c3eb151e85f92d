// Runs a kernel on the CPU: every GPU thread is a fiber, and the fibers of several blocks take
// turns in a random order.
//
// A thread runs until it must wait — at a barrier, at a warp instruction for the other lanes, in
// spin_wait — or until it ends. Which of the runnable threads goes next is drawn from a seeded
// generator, so that an order that a kernel has no right to rely on is not kept. Code between two
// waits runs undisturbed; what a missing barrier would let a GPU mix up shows as a wrong order
// here, as poison (shared_memory.h), or as a race report.
//
// Faults — a barrier that not all threads reach, lanes that meet at different instructions, a
// deadlock, misaligned or racing shared memory — end the launch with a simt::Fault that names
// block, thread and source line. The fibers that are still waiting are abandoned: kernels hold
// nothing that needs a destructor.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

#include "simt/fiber.h"
#include "simt/shared_memory.h"

namespace llmjp::simt {

constexpr int kWarpSize = 32;
constexpr uint32_t kFullMask = 0xffffffffu;

class Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Index3 {
  int x = 0;
  int y = 0;
  int z = 0;
};

struct Grid {
  Index3 blocks{1, 1, 1};
  int threads_per_block = 1;  // along x
  size_t shared_bytes = 0;
};

struct Options {
  uint64_t seed = 1;
  int resident_blocks = 3;  // blocks whose threads are interleaved, as blocks share a GPU
};

// The options of launches that name none: seed from LLMJP_SIMT_SEED (or 1), counted up by one per
// launch so that a sequence of launches sees many orders and can still be repeated.
Options next_default_options();

// What a launch was seen to do; read by tests of layouts.
struct Statistics {
  uint64_t warp_instructions = 0;
  uint64_t barriers = 0;
  uint64_t matrix_row_conflicts =
      0;  // extra shared-memory passes that ldmatrix needs because rows share banks
};

struct Thread;
struct Block;

// A warp instruction in which some lanes have arrived and others are awaited.
struct Rendezvous {
  uint32_t mask = 0;
  uint32_t arrived = 0;
  const char* instruction = nullptr;
  std::source_location where;
  void* payload[kWarpSize] = {};
};

struct Warp {
  std::vector<Rendezvous>
      waiting;         // disjoint masks: a diverged warp may wait at several instructions
  uint32_t ended = 0;  // lanes that have ended or, in a last partial warp, never were
  uint32_t epoch = 0;  // counts sync_warp, which alone orders memory within a warp
};

struct CopyInFlight {
  void* shared = nullptr;
  const void* global = nullptr;
  int bytes = 0;
  int bytes_read = 0;  // the rest is filled with zeros
  int group = 0;
};

enum class State : uint8_t { kReady, kRunning, kBarrier, kWarp, kDone };

struct Thread {
  Fiber fiber;
  FiberStack* stack = nullptr;
  Block* block = nullptr;
  int index = 0;
  State state = State::kReady;
  std::source_location waits_at;
  const char* waits_for = "";
  std::vector<CopyInFlight> copies;
  int copy_group = 0;  // groups committed so far

  int warp() const { return index / kWarpSize; }
  int lane() const { return index % kWarpSize; }
};

struct Block {
  explicit Block(const Grid& grid);

  Index3 index;
  std::deque<Thread> threads;  // never moves its elements: fibers hold their addresses
  SharedMemory shared;
  std::vector<Warp> warps;
  std::source_location barrier_at;
  int at_barrier = 0;
  int ended = 0;
  uint32_t epoch = 0;  // counts completed barriers
};

class Launch {
 public:
  Launch(const Grid& grid, const Options& options, std::function<void()> body);
  ~Launch();

  void run();

  // Called by the running thread.
  void sync_threads(const std::source_location& where);
  void yield_in_spin(const std::source_location& where);
  [[noreturn]] void fault(const std::string& what);

  // Waits until every lane of `mask` has come to `instruction` with its payload; the last one to
  // come calls `complete(context, payloads)`, whose effects all lanes see when they go on.
  using Complete = void (*)(Thread& last, void* const (&payloads)[kWarpSize], uint32_t mask);
  void warp_instruction(const char* instruction, uint32_t mask, void* payload, Complete complete,
                        const std::source_location& where);

  Thread& current() { return *current_; }
  const Grid& grid() const { return grid_; }
  Statistics& statistics() { return statistics_; }
  std::string describe(const Thread& thread) const;

 private:
  static void thread_main(void* argument);
  void start_block();
  void retire(Thread& thread);
  void make_ready(Thread& thread);
  void wait(State state, const char* waits_for, const std::source_location& where);
  Thread* pick_ready();
  uint64_t random();
  std::string describe_deadlock() const;

  Grid grid_;
  Options options_;
  std::function<void()> body_;
  uint64_t random_state_;
  std::vector<int64_t> block_order_;
  size_t next_block_ = 0;
  std::vector<std::unique_ptr<Block>> resident_;
  std::vector<Thread*> ready_;
  Fiber host_;
  Thread* current_ = nullptr;
  Thread* ended_ = nullptr;  // has just left its stack for the host's
  std::string fault_;
  uint64_t idle_spins_ = 0;  // spin_wait turns since anything else happened
  Statistics statistics_;
};

// The launch whose fibers are running on this operating-system thread.
Launch& current_launch();
inline Thread& current_thread() { return current_launch().current(); }

// Runs body() once per GPU thread and returns what was seen; throws Fault.
Statistics launch(const Grid& grid, std::function<void()> body);
Statistics launch(const Grid& grid, const Options& options, std::function<void()> body);

}  // namespace llmjp::simt
