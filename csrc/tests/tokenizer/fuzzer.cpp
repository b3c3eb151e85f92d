// libFuzzer's entry: one program for each target, named by LLMJP_FUZZ_TARGET.
#include "tests/tokenizer/targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const llmjp::tests::Target* const target = llmjp::tests::find_target(LLMJP_FUZZ_TARGET);
  target->run(data, size);
  return 0;
}
