// Shared memory and cp.async: poison, races, bounds, alignment, and data that arrives no earlier
// than it may.
#include <cmath>
#include <vector>

#include "device/cp_async.h"
#include "device/shared.h"
#include "device/shared_atomic.h"
#include "device/thread.h"
#include "device/vector.h"
#include "tests/check.h"

namespace {

using namespace llmjp;
using device::shared_load;
using device::shared_store;
using tests::grid;

int* shared_ints() { return device::dynamic_shared<int>(); }

TEST(shared_memory_starts_poisoned) {
  bool all_nan = true;
  simt::launch(grid(2, 32, 32 * sizeof(float)), [&] {
    all_nan =
        all_nan &&
        std::isnan(shared_load<float>(&device::dynamic_shared<float>()[device::thread_index()]));
  });
  CHECK(all_nan);
}

TEST(reading_what_another_thread_wrote_without_a_barrier_is_a_race) {
  CHECK_FAULTS(grid(1, 64, 64 * sizeof(int)), "race", [] {
    const int thread = device::thread_index();
    shared_store(&shared_ints()[thread], thread);
    shared_load<int>(&shared_ints()[63 - thread]);
  });
}

TEST(writing_what_another_thread_read_without_a_barrier_is_a_race) {
  CHECK_FAULTS(grid(1, 64, 64 * sizeof(int)), "race", [] {
    const int thread = device::thread_index();
    shared_store(&shared_ints()[thread], thread);
    device::sync_threads();
    shared_load<int>(&shared_ints()[(thread + 32) % 64]);
    shared_store(&shared_ints()[thread], 0);
  });
}

TEST(two_threads_that_write_one_place_are_a_race) {
  CHECK_FAULTS(grid(1, 64, sizeof(int)), "race",
               [] { shared_store(shared_ints(), device::thread_index()); });
}

TEST(atomics_of_all_threads_may_meet_in_one_place) {
  uint32_t sum = 0, bits = 0;
  simt::launch(grid(1, 64, 2 * sizeof(uint32_t)), [&] {
    auto* places = device::dynamic_shared<uint32_t>();
    const auto thread = static_cast<uint32_t>(device::thread_index());
    if (thread < 2) shared_store(&places[thread], 0u);
    device::sync_threads();
    device::shared_atomic_add(&places[0], thread);
    device::shared_atomic_or(&places[1], 1u << thread % 32);
    device::sync_threads();
    sum = shared_load<uint32_t>(&places[0]);
    bits = shared_load<uint32_t>(&places[1]);
  });
  CHECK_EQUAL(sum, 64u * 63u / 2u);
  CHECK_EQUAL(bits, 0xffffffffu);
}

TEST(an_atomic_on_what_another_thread_wrote_without_a_barrier_is_a_race) {
  CHECK_FAULTS(grid(1, 64, sizeof(uint32_t)), "race", [] {
    auto* place = device::dynamic_shared<uint32_t>();
    if (device::thread_index() == 0) shared_store(place, 0u);
    device::shared_atomic_add(place, 1u);
  });
}

TEST(writing_what_another_thread_changed_atomically_without_a_barrier_is_a_race) {
  CHECK_FAULTS(grid(1, 64, sizeof(uint32_t)), "race", [] {
    auto* place = device::dynamic_shared<uint32_t>();
    device::shared_atomic_or(place, 1u);
    if (device::thread_index() == 0) shared_store(place, 0u);
  });
}

TEST(overlapping_accesses_of_different_width_are_a_race) {
  CHECK_FAULTS(grid(1, 2, 16), "race", [] {
    if (device::thread_index() == 0) {
      shared_store(shared_ints(), device::Vector<int, 4>{});
    } else {
      shared_load<int>(&shared_ints()[3]);
    }
  });
}

TEST(barriers_and_sync_warp_order_shared_memory) {
  std::vector<int> out(64);
  simt::launch(grid(3, 64, 64 * sizeof(int)), [&] {
    const int thread = device::thread_index();
    for (int round = 0; round < 3; ++round) {
      shared_store(&shared_ints()[thread], thread + round);
      device::sync_warp();
      const int neighbour = shared_load<int>(&shared_ints()[thread ^ 1]);
      device::sync_threads();
      const int far = shared_load<int>(&shared_ints()[63 - thread]);
      device::sync_threads();
      out[thread] = neighbour - round == (thread ^ 1) && far - round == 63 - thread ? 1 : 0;
    }
  });
  for (int value : out) CHECK_EQUAL(value, 1);
}

TEST(sync_warp_does_not_order_other_warps) {
  CHECK_FAULTS(grid(1, 64, 64 * sizeof(int)), "race", [] {
    const int thread = device::thread_index();
    shared_store(&shared_ints()[thread], thread);
    device::sync_warp();
    shared_load<int>(&shared_ints()[63 - thread]);
  });
}

TEST(many_readers_are_no_race) {
  simt::launch(grid(1, 96, sizeof(int)), [] {
    if (device::thread_index() == 40) shared_store(shared_ints(), 5);
    device::sync_threads();
    if (shared_load<int>(shared_ints()) != 5) simt::current_launch().fault("lost");
  });
}

TEST(access_outside_shared_memory_is_a_fault) {
  CHECK_FAULTS(grid(1, 1, 8), "outside the block's 8 bytes",
               [] { shared_load<int>(&shared_ints()[2]); });
  CHECK_FAULTS(grid(1, 1, 8), "outside the block's 8 bytes",
               [] { shared_store(&shared_ints()[-1], 0); });
}

TEST(misaligned_accesses_are_faults) {
  CHECK_FAULTS(grid(1, 1, 64), "misaligned",
               [] { shared_load<device::Vector<int, 4>>(&shared_ints()[1]); });
  alignas(16) static float global[8] = {};
  CHECK_FAULTS(grid(1, 1), "not a multiple of 16",
               [] { device::load<device::Vector<float, 4>>(&global[1]); });
  CHECK_FAULTS(grid(1, 1, 64), "not a multiple",
               [] { device::cp_async(device::dynamic_shared<char>(), &global[1]); });
  CHECK_FAULTS(grid(1, 1, 64), "misaligned",
               [] { device::cp_async(device::dynamic_shared<char>() + 4, &global[4]); });
}

struct Source {
  alignas(16) int values[64 * 4];
  Source() {
    for (int i = 0; i < 256; ++i) values[i] = i;
  }
};

TEST(cp_async_arrives_at_its_wait) {
  static const Source source;
  std::vector<int> early(64), late(64);
  simt::launch(grid(1, 64, 64 * 16), [&] {
    const int thread = device::thread_index();
    int* own = &shared_ints()[thread * 4];
    device::cp_async(own, &source.values[thread * 4]);
    device::cp_async_commit_group();
    early[thread] = own[2];  // a raw read: poison, since nothing has arrived
    device::cp_async_wait_group<0>();
    late[thread] = shared_load<int>(&own[2]);
  });
  for (int i = 0; i < 64; ++i) {
    CHECK_EQUAL(early[i], -1);
    CHECK_EQUAL(late[i], i * 4 + 2);
  }
}

TEST(cp_async_groups_arrive_in_order) {
  static const Source source;
  int first = 0, second = 0;
  simt::launch(grid(1, 1, 32), [&] {
    device::cp_async(shared_ints(), &source.values[4]);
    device::cp_async_commit_group();
    device::cp_async<8>(shared_ints() + 4, &source.values[8]);
    device::cp_async_commit_group();
    device::cp_async_wait_group<1>();
    first = shared_load<int>(shared_ints());
    second = shared_ints()[4];
    device::cp_async_wait_group<0>();
    second = second == -1 ? shared_load<int>(&shared_ints()[5]) : 0;
  });
  CHECK_EQUAL(first, 4);
  CHECK_EQUAL(second, 9);
}

TEST(cp_async_fills_with_zeros_what_it_does_not_read) {
  static const Source source;
  std::vector<int> out(4);
  simt::launch(grid(1, 1, 32), [&] {
    device::cp_async(shared_ints(), &source.values[4], 8);
    device::cp_async(shared_ints() + 4, nullptr, 0);
    device::cp_async_commit_group();
    device::cp_async_wait_group<0>();
    for (int i = 0; i < 4; ++i)
      out[i] = shared_load<int>(&shared_ints()[i]) + shared_load<int>(&shared_ints()[4 + i]);
  });
  CHECK(out == (std::vector<int>{4, 5, 0, 0}));
}

TEST(reading_a_copy_in_flight_is_a_fault) {
  static const Source source;
  CHECK_FAULTS(grid(1, 1, 16), "in flight", [] {
    device::cp_async(shared_ints(), &source.values[0]);
    device::cp_async_commit_group();
    shared_load<int>(shared_ints());
  });
}

TEST(a_copy_never_committed_does_not_arrive) {
  static const Source source;
  CHECK_FAULTS(grid(1, 1, 16), "in flight", [] {
    device::cp_async(shared_ints(), &source.values[0]);
    device::cp_async_wait_group<0>();
    shared_load<int>(shared_ints());
  });
}

TEST(a_copy_never_waited_for_is_a_fault) {
  static const Source source;
  CHECK_FAULTS(grid(1, 1, 16), "never waited for", [] {
    device::cp_async(shared_ints(), &source.values[0]);
    device::cp_async_commit_group();
  });
}

TEST(another_threads_copy_needs_a_barrier) {
  static const Source source;
  const auto body = [](bool with_barrier) {
    const int thread = device::thread_index();
    device::cp_async(&shared_ints()[thread * 4], &source.values[thread * 4]);
    device::cp_async_commit_group();
    device::cp_async_wait_group<0>();
    if (with_barrier) device::sync_threads();
    shared_load<int>(&shared_ints()[(63 - thread) * 4]);
  };
  CHECK_FAULTS(grid(1, 64, 1024), "shared memory", [&] { body(false); });
  simt::launch(grid(1, 64, 1024), [&] { body(true); });
}

// Run by tests/test_simt.py in the sanitized build only, which must stop them.
TEST(overrun_of_shared_memory_by_raw_pointer) {
  simt::launch(grid(1, 1, 24), [] {
    volatile int* shared = shared_ints();
    shared[6] = 1;
  });
}

TEST(overrun_of_global_memory) {
  std::vector<float> global(5);
  simt::launch(grid(1, 8), [&] {
    volatile float* out = global.data();
    out[device::thread_index()] = 1.0f;
  });
}

}  // namespace
