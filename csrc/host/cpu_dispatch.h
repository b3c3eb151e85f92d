// Runs native code of CPU tensors with the vectors of the processor that is there.
#pragma once

#include "host/cpu_features.h"
#include "host/cpu_vector.h"
#include "host/dtype.h"

namespace llmjp::host {

// Code is a struct whose static member `template <class V> run(arguments…)`, V being a CpuVector,
// is LLMJP_CPU_INLINE like all that it calls.
template <class Code, class... Arguments>
void run_with_four_lanes(const Arguments&... arguments) {
  Code::template run<CpuVector<4>>(arguments...);
}
#ifdef __x86_64__
template <class Code, class... Arguments>
LLMJP_CPU_AVX2 void run_with_avx2(const Arguments&... arguments) {
  Code::template run<CpuVector<8>>(arguments...);
}
template <class Code, class... Arguments>
LLMJP_CPU_AVX512 void run_with_avx512(const Arguments&... arguments) {
  Code::template run<CpuVector<16>>(arguments...);
}
#endif

template <class Code, class... Arguments>
void run_vectorised(const Arguments&... arguments) {
#ifdef __x86_64__
  switch (cpu_instruction_set()) {
    case InstructionSet::kAvx512:
      return run_with_avx512<Code>(arguments...);
    case InstructionSet::kAvx2:
      return run_with_avx2<Code>(arguments...);
    case InstructionSet::kGeneric:
      break;
  }
#endif
  run_with_four_lanes<Code>(arguments...);
}

// Calls visit(X{}) for the storage type of CPU tensors of this element type.
template <class Visit>
LLMJP_CPU_INLINE void visit_cpu_type(DType type, Visit visit) {
  switch (type) {
    case DType::kFloat32:
      return visit(float{});
    case DType::kFloat16:
      return visit(CpuFloat16{});
    case DType::kBFloat16:
      return visit(CpuBFloat16{});
  }
}

// Calls visit(X{}, R{}) for x and its row: both of one type, or the row float32.
template <class Visit>
LLMJP_CPU_INLINE void visit_cpu_types(DType x_type, DType row_type, Visit visit) {
  visit_cpu_type(x_type, [&](auto x) __attribute__((always_inline)) {
    if (row_type == x_type) {
      visit(x, x);
    } else {
      visit(x, float{});
    }
  });
}

}  // namespace llmjp::host
