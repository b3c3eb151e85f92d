// Which torch library the bindings register: llmjp_ext with CUDA kernels, or, in the simt build
// that only tests load, llmjp_ext_simt, whose CPU implementations are the same kernels run as CPU
// code.
#pragma once

#include <torch/csrc/stable/library.h>

#ifdef LLMJP_SIMT
#define LLMJP_NAMESPACE llmjp_ext_simt
#define LLMJP_DISPATCH_KEY CPU
#else
#define LLMJP_NAMESPACE llmjp_ext
#define LLMJP_DISPATCH_KEY CUDA
#endif

// One more expansion, since torch's macros paste their arguments unexpanded.
#define LLMJP_LIBRARY(ns, library) STABLE_TORCH_LIBRARY(ns, library)
#define LLMJP_LIBRARY_IMPL(ns, key, library) STABLE_TORCH_LIBRARY_IMPL(ns, key, library)
