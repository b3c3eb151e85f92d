// simt_tests --list | simt_tests NAME…: exit status 0 when all named cases pass.
#include <cstdio>
#include <cstring>
#include <exception>
#include <string_view>

#include "tests/check.h"

#if defined(__SANITIZE_ADDRESS__)
// A fault abandons its fiber, and with it the text of its message: a leak by design.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() {
  return "detect_leaks=0";
}
#endif

int main(int count, char** arguments) {
  using llmjp::tests::cases;
  if (count == 2 && std::string_view(arguments[1]) == "--list") {
    for (const auto& test : cases()) std::puts(test.name);
    return 0;
  }
  int failed = 0;
  for (int i = 1; i < count; ++i) {
    bool found = false;
    for (const auto& test : cases()) {
      if (std::string_view(test.name) != arguments[i]) continue;
      found = true;
      try {
        test.run();
        std::printf("ok %s\n", test.name);
      } catch (const std::exception& error) {
        std::printf("FAILED %s: %s\n", test.name, error.what());
        ++failed;
      }
    }
    if (!found) {
      std::printf("FAILED: no test named %s\n", arguments[i]);
      ++failed;
    }
  }
  return failed == 0 && count > 1 ? 0 : 1;
}
