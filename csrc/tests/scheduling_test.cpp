// Order, barriers, warps and blocks: what simt promises of scheduling, and every fault of it that
// it must catch.
#include <algorithm>
#include <numeric>
#include <vector>

#include "device/atomic.h"
#include "device/reduce.h"
#include "device/shared.h"
#include "device/shuffle.h"
#include "device/thread.h"
#include "tests/check.h"

namespace {

using namespace llmjp;
using tests::fault_of;
using tests::grid;

std::vector<int> order_under(uint64_t seed) {
  std::vector<int> order;
  simt::Options options;
  options.seed = seed;
  simt::launch(grid(4, 64), options, [&] {
    order.push_back(device::block_index_x() * 64 + device::thread_index());
    device::sync_threads();
    order.push_back(1000 + device::block_index_x() * 64 + device::thread_index());
  });
  return order;
}

TEST(every_thread_of_every_block_runs_once) {
  std::vector<int> runs(5 * 96, 0);
  simt::launch(grid(5, 96), [&] { ++runs[device::block_index_x() * 96 + device::thread_index()]; });
  CHECK(std::all_of(runs.begin(), runs.end(), [](int n) { return n == 1; }));
}

TEST(order_is_shuffled_and_repeats_with_the_seed) {
  const std::vector<int> order = order_under(7);
  CHECK(order == order_under(7));
  CHECK(order != order_under(8));
  CHECK(!std::is_sorted(order.begin(), order.begin() + 64));
}

TEST(blocks_are_interleaved) {
  const std::vector<int> order = order_under(3);
  int changes = 0;
  for (size_t i = 1; i < order.size(); ++i)
    changes += order[i] % 1000 / 64 != order[i - 1] % 1000 / 64;
  CHECK(changes > 50);
}

TEST(barrier_separates_phases) {
  std::vector<int> values(256, 0);
  bool all_seen = true;
  simt::launch(grid(1, 256), [&] {
    values[device::thread_index()] = 1;
    device::sync_threads();
    all_seen = all_seen && std::accumulate(values.begin(), values.end(), 0) == 256;
  });
  CHECK(all_seen);
}

// Raw pointers are not race-checked; the shuffled order must show the missing barrier all the same.
TEST(missing_barrier_shows_as_a_wrong_result) {
  int wrong = 0;
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    simt::Options options;
    options.seed = seed;
    std::vector<int> out(64);
    simt::launch(grid(1, 64, 64 * sizeof(int)), options, [&] {
      int* shared = device::dynamic_shared<int>();
      shared[device::thread_index()] = device::thread_index();
      out[device::thread_index()] = shared[63 - device::thread_index()];
    });
    for (int i = 0; i < 64; ++i) wrong += out[i] != 63 - i;
  }
  CHECK(wrong > 0);
}

TEST(thread_that_leaves_before_a_barrier_is_a_fault) {
  CHECK_FAULTS(grid(2, 64), "barrier not reached by all threads", [] {
    if (device::thread_index() == 17) return;
    device::sync_threads();
  });
}

TEST(fault_names_block_and_thread) {
  const std::string fault = fault_of(grid(1, 64), {}, [] {
    if (device::thread_index() != 17) device::sync_threads();
  });
  CHECK(fault.find("block (0, 0, 0) thread") != std::string::npos);
  CHECK(fault.find("scheduling_test.cpp") != std::string::npos);
  CHECK(fault.find("simt seed") != std::string::npos);
}

TEST(threads_at_different_barriers_are_a_fault) {
  // Outside the macro, whose arguments all stand on one line.
  const auto body = [] {
    if (device::thread_index() < 32) {
      device::sync_threads();
    } else {
      device::sync_threads();
    }
  };
  CHECK_FAULTS(grid(1, 64), "different barriers", body);
}

TEST(lane_that_never_comes_is_a_deadlock) {
  // Half of the warp waits at the barrier, the other half for them in a shuffle.
  CHECK_FAULTS(grid(1, 32), "deadlock", [] {
    if (device::lane_index() < 16) {
      device::sync_threads();
    } else {
      device::shuffle_xor(1, 1);
    }
  });
}

TEST(lanes_at_different_instructions_are_a_fault) {
  CHECK_FAULTS(grid(1, 32), "meet at different instructions", [] {
    if (device::lane_index() < 16) {
      device::shuffle_xor(1, 1);
    } else {
      device::ballot(true);
    }
  });
}

TEST(mask_without_the_calling_lane_is_a_fault) {
  CHECK_FAULTS(grid(1, 32), "not the calling lane", [] { device::ballot(true, 0xffu); });
}

TEST(mask_with_an_ended_lane_is_a_fault) {
  // The lane may end before the others come or after: the one is seen at the instruction, the other
  // as a deadlock.
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    simt::Options options;
    options.seed = seed;
    const std::string fault = fault_of(grid(1, 32), options, [] {
      if (device::lane_index() == 3) return;
      device::ballot(true);
    });
    CHECK(fault.find("have ended") != std::string::npos ||
          fault.find("deadlock") != std::string::npos);
  }
  CHECK_FAULTS(grid(1, 16), "have ended or do not exist", [] { device::ballot(true); });
}

TEST(diverged_halves_of_a_warp_may_wait_at_different_instructions) {
  std::vector<int> out(32);
  simt::launch(grid(1, 32), [&] {
    const int lane = device::lane_index();
    if (lane < 16) {
      out[lane] = device::shuffle(lane, 15 - lane, 0x0000ffffu);
    } else {
      out[lane] = static_cast<int>(device::ballot(lane % 2 == 0, 0xffff0000u) >> 16);
    }
  });
  for (int lane = 0; lane < 16; ++lane) CHECK_EQUAL(out[lane], 15 - lane);
  for (int lane = 16; lane < 32; ++lane) CHECK_EQUAL(out[lane], 0x5555);
}

TEST(shuffles_take_the_lane_that_they_name) {
  std::vector<int> up(32), down(32), crossed(32), first(32);
  std::vector<double> wide(32);
  simt::launch(grid(1, 32), [&] {
    const int lane = device::lane_index();
    up[lane] = device::shuffle_up(lane, 3);
    down[lane] = device::shuffle_down(lane, 5);
    crossed[lane] = device::shuffle_xor(lane, 9);
    first[lane] = device::shuffle(lane * 10, 4);
    wide[lane] = device::shuffle(lane + 0.25, 31);
  });
  for (int lane = 0; lane < 32; ++lane) {
    CHECK_EQUAL(up[lane], lane >= 3 ? lane - 3 : lane);
    CHECK_EQUAL(down[lane], lane + 5 < 32 ? lane + 5 : lane);
    CHECK_EQUAL(crossed[lane], lane ^ 9);
    CHECK_EQUAL(first[lane], 40);
    CHECK_EQUAL(wide[lane], 31.25);
  }
}

TEST(shuffle_from_outside_the_mask_gives_poison) {
  std::vector<int> out(32, 0);
  simt::launch(grid(1, 32), [&] {
    const int lane = device::lane_index();
    if (lane < 16) out[lane] = device::shuffle(lane, 20, 0x0000ffffu);
  });
  for (int lane = 0; lane < 16; ++lane) CHECK_EQUAL(out[lane], -1);
}

TEST(block_sum_adds_all_warps) {
  std::vector<float> out(128 * 2);
  simt::launch(grid(1, 128, 8 * sizeof(float)), [&] {
    const int thread = device::thread_index();
    float values[2] = {static_cast<float>(thread), 1.0f};
    device::block_sum<4>(values, device::dynamic_shared<float>());
    out[thread * 2] = values[0];
    out[thread * 2 + 1] = values[1];
  });
  for (int thread = 0; thread < 128; ++thread) {
    CHECK_EQUAL(out[thread * 2], 127.0f * 128 / 2);
    CHECK_EQUAL(out[thread * 2 + 1], 128.0f);
  }
}

TEST(atomics_lose_nothing) {
  int sum = 0, largest = -1, winner = -1;
  float float_sum = 0.0f;
  simt::launch(grid(7, 64), [&] {
    const int id = device::block_index_x() * 64 + device::thread_index();
    device::atomic_add(&sum, id);
    device::atomic_add(&float_sum, 0.5f);
    device::atomic_max(&largest, id);
    device::atomic_compare_and_swap(&winner, -1, id);
  });
  CHECK_EQUAL(sum, 447 * 448 / 2);
  CHECK_EQUAL(float_sum, 224.0f);
  CHECK_EQUAL(largest, 447);
  CHECK(winner >= 0 && winner < 448);
}

// Each block waits for the one before it: right as long as the chain fits the resident blocks.
void chained_blocks(std::vector<int>& flags, std::vector<int>& order) {
  const int block = device::block_index_x();
  if (device::thread_index() == 0) {
    if (block > 0) device::spin_wait([&] { return device::load_acquire(&flags[block - 1]) == 1; });
    order.push_back(block);
    device::store_release(&flags[block], 1);
  }
  device::sync_threads();
}

TEST(resident_blocks_may_wait_for_each_other) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    std::vector<int> flags(4, 0), order;
    simt::Options options;
    options.seed = seed;
    options.resident_blocks = 4;
    simt::launch(grid(4, 32), options, [&] { chained_blocks(flags, order); });
    CHECK(order == (std::vector<int>{0, 1, 2, 3}));
  }
}

TEST(waiting_for_a_block_that_cannot_run_is_a_deadlock) {
  bool caught = false;
  for (uint64_t seed = 1; seed <= 20 && !caught; ++seed) {
    std::vector<int> flags(8, 0), order;
    simt::Options options;
    options.seed = seed;
    options.resident_blocks = 2;
    caught = fault_of(grid(8, 32), options, [&] {
               chained_blocks(flags, order);
             }).find("blocks that are not resident yet cannot run") != std::string::npos;
  }
  CHECK(caught);
}

TEST(a_launch_after_a_fault_is_clean) {
  CHECK(fault_of(grid(2, 64), {}, [] {
          if (device::thread_index() == 0) device::sync_threads();
        }) != "");
  int sum = 0;
  simt::launch(grid(2, 64), [&] {
    device::sync_threads();
    device::atomic_add(&sum, 1);
  });
  CHECK_EQUAL(sum, 128);
}

TEST(impossible_grids_are_refused) {
  CHECK(fault_of(grid(0, 32), {}, [] {}).find("at least one block") != std::string::npos);
  CHECK(fault_of(grid(1, 1025), {}, [] {}).find("1 to 1024 threads") != std::string::npos);
}

}  // namespace
