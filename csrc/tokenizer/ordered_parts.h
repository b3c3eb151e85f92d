// Work in numbered parts over threads, whose results the calling thread takes in order, while the
// others go on.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

#include "tokenizer/helper_threads.h"

namespace llmjp::tokenizer {

// `Result` has clear(): what has been taken is filled anew, so that few of them exist at a time and
// their memory is warm.
template <class Result>
class OrderedParts {
 public:
  explicit OrderedParts(size_t count) : slots_(count) {}

  // Calls make(worker, part, result) once for each part, over `workers` threads at most, this one
  // among them as worker 0, and on this one take(part, end, result_of) for ranges of parts in
  // order. Ranges are about a sixteenth of all parts or more: taking may mean waiting for a lock.
  // An exception of either ends the work and is thrown here, of several that of the earliest part.
  template <class Make, class Take>
  void run(size_t workers, const Make& make, const Take& take) {
    const std::function<void(size_t)> help = [&](size_t worker) {
      while (step(worker, make)) {
      }
    };
    Helpers helpers(std::max<size_t>(1, std::min(workers, slots_.size())) - 1, help);
    const Ending ending(*this);
    size_t least = std::max<size_t>(1, slots_.size() / 16);
    for (size_t taken = 0; taken < slots_.size();) {
      const size_t ready = ready_from(taken);
      if (ready < slots_.size() && ready - taken < least) {
        if (step(0, make)) continue;
        if (least > 1) {
          least = 1;
          continue;
        }
        if (ready == taken) {
          std::unique_lock lock(mutex_);
          done_.wait(lock, [&] { return slots_[taken].done || error_; });
          if (!slots_[taken].done) break;
          continue;
        }
      }
      take(taken, ready, [&](size_t part) -> const Result& { return slots_[part].result; });
      const std::scoped_lock lock(mutex_);
      for (; taken < ready; ++taken) {
        slots_[taken].result.clear();
        spare_.push_back(std::move(slots_[taken].result));
      }
    }
    helpers.wait();
    if (error_) std::rethrow_exception(error_);
  }

 private:
  struct Slot {
    Result result;
    bool done = false;
  };

  // Whatever ends the work ends it for the helpers too.
  class Ending {
   public:
    explicit Ending(OrderedParts& owner) : owner_(owner) {}
    ~Ending() {
      const std::scoped_lock lock(owner_.mutex_);
      owner_.next_ = owner_.slots_.size();
    }
    Ending(const Ending&) = delete;
    Ending& operator=(const Ending&) = delete;

   private:
    OrderedParts& owner_;
  };

  // Makes the next part; false if there is none left.
  template <class Make>
  bool step(size_t worker, const Make& make) {
    size_t part;
    Result result;
    {
      const std::scoped_lock lock(mutex_);
      if (next_ == slots_.size()) return false;
      part = next_++;
      if (!spare_.empty()) {
        result = std::move(spare_.back());
        spare_.pop_back();
      }
    }
    std::exception_ptr error;
    try {
      make(worker, part, result);
    } catch (...) {
      error = std::current_exception();
    }
    const std::scoped_lock lock(mutex_);
    if (!error) {
      slots_[part].result = std::move(result);
      slots_[part].done = true;
    } else {
      if (!error_ || part < error_part_) {
        error_ = error;
        error_part_ = part;
      }
      next_ = slots_.size();
    }
    done_.notify_all();
    return true;
  }

  size_t ready_from(size_t part) {
    const std::scoped_lock lock(mutex_);
    while (part < slots_.size() && slots_[part].done) ++part;
    return part;
  }

  std::mutex mutex_;  // guards everything below, but results of parts that are done
  std::condition_variable done_;
  std::vector<Slot> slots_;
  std::vector<Result> spare_;
  size_t next_ = 0;
  std::exception_ptr error_;
  size_t error_part_ = 0;
};

}  // namespace llmjp::tokenizer
