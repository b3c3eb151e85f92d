// Instruction sets that code of this library may be compiled for besides the architecture's
// baseline, and which of them the processor has. Found at run time: one build runs everywhere.
#pragma once

#include <string_view>
#include <vector>

namespace llmjp::host {

enum class InstructionSet {
  kGeneric,  // what every processor of the architecture has
  kAvx2,     // x86: AVX2, FMA and F16C
  kAvx512,   // x86: AVX-512 F, BW, DQ and VL
};

std::string_view name(InstructionSet set);

// Those that this processor and its operating system can run, kGeneric first.
std::vector<InstructionSet> supported_instruction_sets();

// The set called `asked`; if that is empty, what the environment variable `variable` names; if that
// is empty or unset, `preferred`. Throws std::invalid_argument on names that are unknown or not
// supported here.
InstructionSet choose_instruction_set(std::string_view asked, const char* variable,
                                      InstructionSet preferred);

// What native code of CPU tensors runs with: the best there is, or what $LLMJP_CPU_ISA names.
// Looked up once.
InstructionSet cpu_instruction_set();

}  // namespace llmjp::host
