// The interpreter's lock around work that needs no Python objects.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>

namespace llmjp::tokenizer {

// Characters, or ids, below which the lock is kept: some ten microseconds of work. To get it back
// where other threads want it can take a whole switch interval, 5 ms.
inline constexpr size_t kWorthUnlocking = size_t{1} << 12;

// Releases the lock for the object's lifetime if the work is worth it.
class Unlocked {
 public:
  explicit Unlocked(size_t work) : state_(work < kWorthUnlocking ? nullptr : PyEval_SaveThread()) {}
  ~Unlocked() {
    if (state_ != nullptr) PyEval_RestoreThread(state_);
  }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

  // Takes the lock back for a while, on the thread that released it.
  class Relocked {
   public:
    explicit Relocked(Unlocked& unlocked) : unlocked_(unlocked), released_(unlocked.state_) {
      if (released_ != nullptr) PyEval_RestoreThread(released_);
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
