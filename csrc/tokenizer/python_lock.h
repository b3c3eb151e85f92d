// The interpreter's lock around work that needs no Python objects.
#pragma once

#include <pybind11/pybind11.h>

#include <unistd.h>

#include <cstddef>

namespace llmjp::tokenizer {

// Characters, or ids, below which the lock is kept: some ten microseconds of work. To get it back
// where other threads want it can take a whole switch interval, 5 ms.
inline constexpr size_t kWorthUnlocking = size_t{1} << 12;

// Takes the lock back. Where the interpreter is coming to its end meanwhile, it lets no thread but
// its own have the lock again: before Python 3.14 it ends others by an exception that nothing may
// hold up, on their way through destructors that would touch its objects without the lock. Such a
// thread is stopped here instead, as 3.14 does it, and ends with the process.
inline void restore(PyThreadState* state) {
  try {
    PyEval_RestoreThread(state);
  } catch (...) {
    for (;;) pause();
  }
}

// Releases the lock for the object's lifetime if the work is worth it.
class Unlocked {
 public:
  explicit Unlocked(size_t work) : state_(work < kWorthUnlocking ? nullptr : PyEval_SaveThread()) {}
  ~Unlocked() {
    if (state_ != nullptr) restore(state_);
  }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

  // Takes the lock back for a while, on the thread that released it.
  class Relocked {
   public:
    explicit Relocked(Unlocked& unlocked) : unlocked_(unlocked), released_(unlocked.state_) {
      if (released_ != nullptr) restore(released_);
      unlocked_.state_ = nullptr;
    }
    ~Relocked() {
      if (released_ != nullptr) unlocked_.state_ = PyEval_SaveThread();
    }
    Relocked(const Relocked&) = delete;
    Relocked& operator=(const Relocked&) = delete;

   private:
    Unlocked& unlocked_;
    PyThreadState* released_;
  };

 private:
  PyThreadState* state_;
};

}  // namespace llmjp::tokenizer
