#include "simt/engine.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <numeric>
#include <string_view>
#include <utility>

namespace llmjp::simt {
namespace {

thread_local Launch* active = nullptr;
thread_local FiberStackPool stacks;

std::string to_string(const std::source_location& where) {
  const std::string file = where.file_name();
  return file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(where.line());
}

std::string lanes(uint32_t mask) {
  std::string list;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (mask >> lane & 1u) list += (list.empty() ? "" : ", ") + std::to_string(lane);
  }
  return list;
}

bool same_place(const std::source_location& a, const std::source_location& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         std::string_view(a.file_name()) == b.file_name();
}

}  // namespace

Block::Block(const Grid& grid)
    : shared(grid.shared_bytes), warps((grid.threads_per_block + kWarpSize - 1) / kWarpSize) {
  const int in_last_warp = grid.threads_per_block % kWarpSize;
  if (in_last_warp != 0) warps.back().ended = kFullMask << in_last_warp;
}

Options next_default_options() {
  static const uint64_t first_seed = [] {
    const char* text = std::getenv("LLMJP_SIMT_SEED");
    return text == nullptr ? uint64_t{1} : std::strtoull(text, nullptr, 10);
  }();
  static std::atomic<uint64_t> launches{0};
  Options options;
  options.seed = first_seed + launches++;
  return options;
}

Launch& current_launch() { return *active; }

Launch::Launch(const Grid& grid, const Options& options, std::function<void()> body)
    : grid_(grid), options_(options), body_(std::move(body)), random_state_(options.seed) {
  const int threads = grid.threads_per_block;
  if (threads < 1 || threads > 1024) {
    throw Fault("a block has 1 to 1024 threads, got " + std::to_string(threads));
  }
  const int64_t blocks = int64_t{grid.blocks.x} * grid.blocks.y * grid.blocks.z;
  if (grid.blocks.x < 1 || grid.blocks.y < 1 || grid.blocks.z < 1) {
    throw Fault("a grid has at least one block in each dimension, got (" +
                std::to_string(grid.blocks.x) + ", " + std::to_string(grid.blocks.y) + ", " +
                std::to_string(grid.blocks.z) + ")");
  }
  block_order_.resize(blocks);
  std::iota(block_order_.begin(), block_order_.end(), 0);
  for (int64_t i = blocks - 1; i > 0; --i) {
    std::swap(block_order_[i], block_order_[random() % static_cast<uint64_t>(i + 1)]);
  }
}

Launch::~Launch() {
  for (auto& block : resident_) {
    for (Thread& thread : block->threads) {
      if (thread.stack != nullptr) stacks.give_back(thread.stack, true);
    }
  }
}

// SplitMix64 (Steele, Lea, Flood 2014): one word of state, good enough to draw orders from.
uint64_t Launch::random() {
  uint64_t z = (random_state_ += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

void Launch::run() {
  Launch* const outer = std::exchange(active, this);
  while (fault_.empty()) {
    while (resident_.size() < static_cast<size_t>(std::max(1, options_.resident_blocks)) &&
           next_block_ < block_order_.size()) {
      start_block();
    }
    if (resident_.empty()) break;
    current_ = pick_ready();
    if (current_ == nullptr) {
      fault_ = describe_deadlock();
      break;
    }
    Fiber::switch_to(host_, current_->fiber);
    if (ended_ != nullptr) retire(*std::exchange(ended_, nullptr));
  }
  active = outer;
  if (!fault_.empty()) throw Fault(fault_ + " [simt seed " + std::to_string(options_.seed) + "]");
}

void Launch::start_block() {
  const int64_t linear = block_order_[next_block_++];
  auto block = std::make_unique<Block>(grid_);
  block->index = {static_cast<int>(linear % grid_.blocks.x),
                  static_cast<int>(linear / grid_.blocks.x % grid_.blocks.y),
                  static_cast<int>(linear / grid_.blocks.x / grid_.blocks.y)};
  for (int i = 0; i < grid_.threads_per_block; ++i) {
    Thread& thread = block->threads.emplace_back();
    thread.block = block.get();
    thread.index = i;
    thread.stack = stacks.take();
    thread.fiber.start(thread.stack, &Launch::thread_main, this);
    make_ready(thread);
  }
  resident_.push_back(std::move(block));
}

void Launch::thread_main(void* argument) {
  Launch& launch = *static_cast<Launch*>(argument);
  launch.body_();
  Thread& thread = launch.current();
  Block& block = *thread.block;
  if (!thread.copies.empty()) {
    launch.fault("the thread ended with " + std::to_string(thread.copies.size()) +
                 " cp.async copies that it never waited for");
  }
  if (block.at_barrier > 0) {
    launch.fault("barrier not reached by all threads: this one ended while others wait at " +
                 to_string(block.barrier_at));
  }
  thread.state = State::kDone;
  launch.ended_ = &thread;
  Fiber::switch_to(thread.fiber, launch.host_, true);
}

// Runs on the host's stack: the thread's own is free now.
void Launch::retire(Thread& thread) {
  idle_spins_ = 0;
  stacks.give_back(std::exchange(thread.stack, nullptr), false);
  Block& block = *thread.block;
  block.warps[thread.warp()].ended |= 1u << thread.lane();
  if (++block.ended < grid_.threads_per_block) return;
  std::erase_if(resident_, [&](const auto& candidate) { return candidate.get() == &block; });
}

void Launch::make_ready(Thread& thread) {
  thread.state = State::kReady;
  ready_.push_back(&thread);
}

Thread* Launch::pick_ready() {
  if (ready_.empty()) return nullptr;
  const size_t chosen = (random() >> 32) * ready_.size() >> 32;
  Thread* thread = ready_[chosen];
  ready_[chosen] = ready_.back();
  ready_.pop_back();
  thread->state = State::kRunning;
  return thread;
}

// Hands the processor to another thread; returns when something has made this one ready and it was
// picked.
void Launch::wait(State state, const char* waits_for, const std::source_location& where) {
  Thread& self = *current_;
  self.state = state;
  self.waits_for = waits_for;
  self.waits_at = where;
  if (state == State::kReady) ready_.push_back(&self);
  Thread* next = pick_ready();
  if (next == &self) return;
  current_ = next;
  Fiber::switch_to(self.fiber, next == nullptr ? host_ : next->fiber);
}

void Launch::sync_threads(const std::source_location& where) {
  Thread& self = *current_;
  Block& block = *self.block;
  if (block.ended > 0) {
    fault("barrier not reached by all threads: this one waits at " + to_string(where) + " but " +
          std::to_string(block.ended) + " threads of the block have ended");
  }
  if (block.at_barrier == 0) {
    block.barrier_at = where;
  } else if (!same_place(block.barrier_at, where)) {
    fault("threads of the block wait at different barriers: this one at " + to_string(where) +
          ", others at " + to_string(block.barrier_at));
  }
  if (++block.at_barrier < grid_.threads_per_block) {
    wait(State::kBarrier, "the block's barrier", where);
    return;
  }
  block.at_barrier = 0;
  ++block.epoch;
  ++statistics_.barriers;
  idle_spins_ = 0;
  for (Thread& thread : block.threads) {
    if (thread.state == State::kBarrier) make_ready(thread);
  }
  // The last to arrive has no right to go on first.
  wait(State::kReady, "its turn", where);
}

void Launch::yield_in_spin(const std::source_location& where) {
  const uint64_t limit = 10000 + 1000 * resident_.size() * grid_.threads_per_block;
  if (++idle_spins_ > limit) {
    fault("deadlock: spin_wait at " + to_string(where) +
          " waits for something that no resident thread does" +
          (next_block_ < block_order_.size() ? " (blocks that are not resident yet cannot run)"
                                             : ""));
  }
  wait(State::kReady, "spin_wait", where);
}

void Launch::warp_instruction(const char* instruction, uint32_t mask, void* payload,
                              Complete complete, const std::source_location& where) {
  Thread& self = *current_;
  Warp& warp = self.block->warps[self.warp()];
  const uint32_t own = 1u << self.lane();
  if ((mask & own) == 0) {
    fault(std::string(instruction) + " at " + to_string(where) + ": the mask names lanes " +
          lanes(mask) + " but not the calling lane " + std::to_string(self.lane()));
  }
  if ((mask & warp.ended) != 0) {
    fault(std::string(instruction) + " at " + to_string(where) + ": lanes " +
          lanes(mask & warp.ended) + " of the mask have ended or do not exist");
  }
  Rendezvous* meeting = nullptr;
  for (Rendezvous& candidate : warp.waiting) {
    if ((candidate.mask & mask) == 0) continue;
    if (candidate.mask != mask || std::string_view(candidate.instruction) != instruction ||
        !same_place(candidate.where, where)) {
      fault("lanes of a warp meet at different instructions: " + std::string(instruction) + " at " +
            to_string(where) + " for lanes " + lanes(mask) + ", but lanes " +
            lanes(candidate.arrived) + " wait at " + candidate.instruction + " at " +
            to_string(candidate.where) + " for lanes " + lanes(candidate.mask));
    }
    meeting = &candidate;
  }
  if (meeting == nullptr) {
    meeting = &warp.waiting.emplace_back();
    meeting->mask = mask;
    meeting->instruction = instruction;
    meeting->where = where;
  }
  meeting->payload[self.lane()] = payload;
  meeting->arrived |= own;
  if (meeting->arrived != mask) {
    wait(State::kWarp, instruction, where);
    return;
  }
  const Rendezvous done = *meeting;
  *meeting = warp.waiting.back();
  warp.waiting.pop_back();
  ++statistics_.warp_instructions;
  idle_spins_ = 0;
  complete(self, done.payload, mask);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (lane != self.lane() && (mask >> lane & 1u) != 0) {
      make_ready(self.block->threads[self.warp() * kWarpSize + lane]);
    }
  }
  wait(State::kReady, "its turn", where);
}

void Launch::fault(const std::string& what) {
  fault_ = what + " — " + describe(*current_);
  Fiber::switch_to(current_->fiber, host_, true);
  std::abort();  // the host never resumes a fiber that has faulted
}

std::string Launch::describe(const Thread& thread) const {
  const Index3& block = thread.block->index;
  return "block (" + std::to_string(block.x) + ", " + std::to_string(block.y) + ", " +
         std::to_string(block.z) + ") thread " + std::to_string(thread.index);
}

std::string Launch::describe_deadlock() const {
  std::string what = "deadlock: no thread can go on;";
  int named = 0;
  for (const auto& block : resident_) {
    for (const Thread& thread : block->threads) {
      if (thread.state == State::kDone || named == 4) continue;
      what += (named++ == 0 ? " " : "; ") + describe(thread) + " waits for " + thread.waits_for +
              " at " + to_string(thread.waits_at);
    }
  }
  return what;
}

Statistics launch(const Grid& grid, const Options& options, std::function<void()> body) {
  Launch launch(grid, options, std::move(body));
  launch.run();
  return launch.statistics();
}

Statistics launch(const Grid& grid, std::function<void()> body) {
  return launch(grid, next_default_options(), std::move(body));
}

}  // namespace llmjp::simt
