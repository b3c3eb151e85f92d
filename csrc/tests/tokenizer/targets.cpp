#include "tests/tokenizer/targets.h"

#include <cstdio>
#include <cstdlib>

namespace llmjp::tests {

const Target* find_target(std::string_view name) {
  for (const Target* target : {&kFilesTarget, &kSearchTarget, &kDecodeTarget}) {
    if (target->name == name) return target;
  }
  return nullptr;
}

void require(bool holds, const std::string& promise) {
  if (holds) return;
  std::fprintf(stderr, "broken promise: %s\n", promise.c_str());
  std::abort();
}

}  // namespace llmjp::tests
