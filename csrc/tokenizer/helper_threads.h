// Threads that help with one call and sleep until the next.
//
// A thread that is started anew costs its call some 60 to 90 microseconds, is put on whatever core
// the system finds, and begins with memory that it has to ask the system for. One that was woken
// has its stack, its allocator's memory and mostly its core from the call before.
//
// A fork copies none of them. Those that sleep are therefore ended before it, by a handler that the
// system calls, so that parent and child go on without any and get new ones when they need them.
// Those of a call that another thread is in the middle of are lost to the child, as is that
// thread. At the process's end they just sleep on: nothing destroys the place where they wait.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

namespace llmjp::tokenizer {

class HelperThread;

// The helpers of one call.
class Helpers {
 public:
  // work(1), work(2), … work(count) run while the caller goes on, each in a thread of its own;
  // fewer of them if the system has no more threads to give. `work` lives as long as this, and does
  // not throw.
  Helpers(size_t count, const std::function<void(size_t)>& work);
  ~Helpers();
  Helpers(const Helpers&) = delete;
  Helpers& operator=(const Helpers&) = delete;

  // How many there are.
  size_t count() const { return threads_.size(); }
  // Until the last one is done.
  void wait();

 private:
  std::vector<std::unique_ptr<HelperThread>> threads_;
};

}  // namespace llmjp::tokenizer
