// What host::launch refuses before a GPU would, and in which words.
#include "host/launch.h"

#include "tests/check.h"

namespace {

using namespace llmjp;

std::string refusal_of(const std::function<void()>& check) {
  try {
    check();
  } catch (const host::Unsupported& refusal) {
    return refusal.what();
  }
  return "";
}

TEST(shared_memory_beyond_the_gpus_is_refused_with_both_numbers) {
  constexpr int64_t kAllowed = 99 * 1024;
  CHECK_EQUAL(refusal_of([&] { host::check_shared_bytes(kAllowed, kAllowed, "a kernel"); }), "");
  CHECK_EQUAL(refusal_of([&] { host::check_shared_bytes(kAllowed + 1, kAllowed, "a kernel"); }),
              "a kernel needs 101377 bytes of shared memory a block; this GPU gives 101376");
}

TEST(grids_that_are_empty_or_too_wide_are_refused) {
  constexpr int64_t kMost = 2147483647;
  CHECK_EQUAL(host::checked_blocks(kMost, "a kernel"), kMost);
  for (const int64_t blocks : {int64_t{0}, kMost + 1}) {
    CHECK_EQUAL(refusal_of([&] { host::checked_blocks(blocks, "a kernel"); }),
                "a kernel needs " + std::to_string(blocks) + " blocks; a grid has 1 to 2147483647");
  }
}

}  // namespace
