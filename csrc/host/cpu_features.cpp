#include "host/cpu_features.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

#ifdef __x86_64__
#include <cpuid.h>
#endif

namespace llmjp::host {
#ifdef __x86_64__
namespace {

// Conversion of float16, which all known processors with AVX2 have; not every compiler's
// __builtin_cpu_supports knows its name.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

}  // namespace
#endif

std::string_view name(InstructionSet set) {
  switch (set) {
    case InstructionSet::kAvx512:
      return "avx512";
    case InstructionSet::kAvx2:
      return "avx2";
    default:
      return "generic";
  }
}

std::vector<InstructionSet> supported_instruction_sets() {
  std::vector<InstructionSet> sets{InstructionSet::kGeneric};
#ifdef __x86_64__
  // These look at what the operating system saves of the registers, too.
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c())
    sets.push_back(InstructionSet::kAvx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    sets.push_back(InstructionSet::kAvx512);
  }
#endif
  return sets;
}

InstructionSet choose_instruction_set(std::string_view asked, const char* variable,
                                      InstructionSet preferred) {
  const std::vector<InstructionSet> sets = supported_instruction_sets();
  std::string source;
  if (asked.empty()) {
    const char* const value = std::getenv(variable);
    if (value == nullptr || *value == '\0') return preferred;
    asked = value;
    source = std::string(variable) + ": ";
  }
  const auto found = std::find_if(sets.begin(), sets.end(),
                                  [&](InstructionSet set) { return name(set) == asked; });
  if (found != sets.end()) return *found;
  std::string supported;
  for (const InstructionSet set : sets)
    supported += (supported.empty() ? "" : ", ") + std::string(name(set));
  const bool known = asked == name(InstructionSet::kAvx2) || asked == name(InstructionSet::kAvx512);
  throw std::invalid_argument(source + (known ? "this CPU does not have" : "unknown") +
                              " instruction set \"" + std::string(asked) +
                              "\"; supported here: " + supported);
}

InstructionSet cpu_instruction_set() {
  static const InstructionSet set =
      choose_instruction_set("", "LLMJP_CPU_ISA", supported_instruction_sets().back());
  return set;
}

}  // namespace llmjp::host
