// What one thread needs besides the model: lent for the time of a call and kept for the next one.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <string>

#include "host/cpu_features.h"
#include "tokenizer/model.h"
#include "tokenizer/sequential_search.h"
#include "tokenizer/unit_rules.h"
#include "tokenizer/unit_search.h"

namespace llmjp::tokenizer {

// How texts are searched: ids do not depend on it.
struct SearchOptions {
  bool units = true;   // where the vocabulary allows; false: the plain search, for comparison
  int memo_bits = 15;  // 2^15 sets of short units: 2.4 MB a thread with all others
  size_t chunk = size_t{1} << 16;  // characters of a long text that a thread takes at a time
  host::InstructionSet instructions = host::InstructionSet::kGeneric;  // that the CPU has
};

struct Workspace {
  Workspace(const Model& model, const UnitRules& rules, const SearchOptions& search)
      : sequential(model), units(model, rules, sequential, search.memo_bits, search.instructions) {}
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  SequentialSearch sequential;
  UnitSearch units;
  std::u32string segment;  // normalised, when added tokens have to be found in it
};

// Idle workspaces of a tokenizer. Slots instead of a list under a lock: a process forked from a
// thread's midst must not inherit a lock that nobody will release.
class WorkspacePool {
 public:
  // Gives the workspace back when it goes.
  class Lease {
   public:
    Lease(WorkspacePool& pool, std::unique_ptr<Workspace> workspace)
        : pool_(&pool), workspace_(std::move(workspace)) {}
    Lease(Lease&&) = default;
    Lease& operator=(Lease&&) = delete;
    ~Lease() {
      if (workspace_) pool_->keep(std::move(workspace_));
    }
    Workspace& operator*() const { return *workspace_; }

   private:
    WorkspacePool* pool_;
    std::unique_ptr<Workspace> workspace_;
  };

  WorkspacePool() = default;
  ~WorkspacePool() {
    for (auto& slot : idle_) delete slot.load();
  }
  WorkspacePool(const WorkspacePool&) = delete;
  WorkspacePool& operator=(const WorkspacePool&) = delete;

  template <class Make>
  Lease lend(const Make& make) {
    for (auto& slot : idle_) {
      if (slot.load(std::memory_order_relaxed) == nullptr) continue;
      if (std::unique_ptr<Workspace> found{slot.exchange(nullptr)})
        return {*this, std::move(found)};
    }
    return {*this, make()};
  }

 private:
  void keep(std::unique_ptr<Workspace> workspace) {
    for (auto& slot : idle_) {
      Workspace* empty = slot.load(std::memory_order_relaxed);
      if (empty == nullptr && slot.compare_exchange_strong(empty, workspace.get())) {
        static_cast<void>(workspace.release());
        return;
      }
    }
  }

  std::array<std::atomic<Workspace*>, 32> idle_{};
};

}  // namespace llmjp::tokenizer
