// A fiber: a stack and a saved stack pointer, switched by hand.
//
// A block's GPU threads run as fibers of one operating-system thread, so a switch is the price of
// every barrier and every warp instruction. Saving only what the C++ calling convention asks a
// callee to keep makes it a dozen instructions; ucontext would add a system call for the signal
// mask.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace llmjp::simt {

// One stack, page-aligned, with an unmapped page below it: an overflow faults instead of corrupting
// a neighbour.
class FiberStack {
 public:
  explicit FiberStack(size_t bytes);
  ~FiberStack();
  FiberStack(const FiberStack&) = delete;
  FiberStack& operator=(const FiberStack&) = delete;

  void* bottom() const { return bottom_; }
  size_t bytes() const { return bytes_; }

 private:
  void* mapping_;
  void* bottom_;
  size_t bytes_;
};

// Either the operating-system thread's own context (default-constructed) or a stack on which
// `entry` runs.
class Fiber {
 public:
  using Entry = void (*)(void* argument);

  Fiber() = default;

  // The next switch_to() this fiber calls entry(argument) on `stack`; entry must never return.
  void start(FiberStack* stack, Entry entry, void* argument);

  // Leaves `from`, which is running, and continues `to`. `from_is_done` says that `from` is never
  // resumed.
  static void switch_to(Fiber& from, Fiber& to, bool from_is_done = false);

 private:
  static void enter();
  static void finish_switch(Fiber& now);

  void* stack_pointer_ = nullptr;
  FiberStack* stack_ = nullptr;
  Entry entry_ = nullptr;
  void* argument_ = nullptr;
  void* sanitizer_fake_stack_ = nullptr;
  const void* sanitizer_bottom_ = nullptr;
  size_t sanitizer_bytes_ = 0;
};

// Stacks are kept between launches: mapping one costs more than running a small kernel's thread.
class FiberStackPool {
 public:
  FiberStack* take();

  // `abandoned`: the fiber that ran on it was left somewhere in the middle.
  void give_back(FiberStack* stack, bool abandoned);

 private:
  std::vector<std::unique_ptr<FiberStack>> all_;
  std::vector<FiberStack*> free_;
};

}  // namespace llmjp::simt
