#include "tokenizer/helper_threads.h"

#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <csignal>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

namespace llmjp::tokenizer {
namespace {

// While it lives, threads are started that leave the process's signals to the others: a sleeping
// helper that took one would keep it from who waits for it. Those of a thread's own faults stay.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t blocked;
    sigfillset(&blocked);
    for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS})
      sigdelset(&blocked, own);
    pthread_sigmask(SIG_SETMASK, &blocked, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

}  // namespace

class HelperThread {
 public:
  HelperThread() {
    const SignalsBlocked blocked;
    thread_ = std::thread([this] { serve(); });
  }
  ~HelperThread() {
    {
      const std::scoped_lock lock(mutex_);
      leaving_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }
  HelperThread(const HelperThread&) = delete;
  HelperThread& operator=(const HelperThread&) = delete;

  void start(const std::function<void(size_t)>& work, size_t number) {
    {
      const std::scoped_lock lock(mutex_);
      work_ = &work;
      number_ = number;
    }
    changed_.notify_one();
  }

  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return work_ == nullptr; });
  }

 private:
  void serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return work_ != nullptr || leaving_; });
      if (work_ == nullptr) return;
      lock.unlock();
      (*work_)(number_);
      lock.lock();
      work_ = nullptr;
      changed_.notify_one();
    }
  }

  std::mutex mutex_;  // guards what stands between it and the thread
  std::condition_variable changed_;
  const std::function<void(size_t)>* work_ = nullptr;  // null: asleep
  size_t number_ = 0;
  bool leaving_ = false;
  std::thread thread_;
};

namespace {

// Helpers without work.
class Idle {
 public:
  // The process's. Never destroyed: at its end other threads may still be in the middle of a call.
  static Idle& here() {
    static Idle* const idle = [] {
      auto* const made = new Idle;
      pthread_atfork([] { here().before_fork(); }, [] { here().mutex_.unlock(); },
                     [] { here().mutex_.unlock(); });
      return made;
    }();
    return *idle;
  }

  // Null if there is none.
  std::unique_ptr<HelperThread> take() {
    const std::scoped_lock lock(mutex_);
    if (threads_.empty()) return nullptr;
    std::unique_ptr<HelperThread> thread = std::move(threads_.back());
    threads_.pop_back();
    return thread;
  }

  // Keeps one for each core of the machine, and ends the others.
  void keep(std::unique_ptr<HelperThread> thread) {
    const std::scoped_lock lock(mutex_);
    if (threads_.size() < most_) threads_.push_back(std::move(thread));
  }

 private:
  Idle() { threads_.reserve(most_); }

  // The lock is held throughout the fork, so that the child finds what it guards in order.
  void before_fork() {
    mutex_.lock();
    threads_.clear();
  }

  const size_t most_ = std::max(1U, std::thread::hardware_concurrency());
  std::mutex mutex_;  // guards what follows
  std::vector<std::unique_ptr<HelperThread>> threads_;
};

}  // namespace

Helpers::Helpers(size_t count, const std::function<void(size_t)>& work) {
  threads_.reserve(count);
  while (threads_.size() < count) {
    std::unique_ptr<HelperThread> thread = Idle::here().take();
    if (thread == nullptr) {
      try {
        thread = std::make_unique<HelperThread>();
      } catch (const std::exception&) {
        return;  // no more threads to be had
      }
    }
    threads_.push_back(std::move(thread));
    threads_.back()->start(work, threads_.size());
  }
}

Helpers::~Helpers() {
  wait();
  // The first one first: the next call begins with it again, and with the memory that it works in.
  while (!threads_.empty()) {
    Idle::here().keep(std::move(threads_.back()));
    threads_.pop_back();
  }
}

void Helpers::wait() {
  for (const auto& thread : threads_) thread->wait();
}

}  // namespace llmjp::tokenizer
