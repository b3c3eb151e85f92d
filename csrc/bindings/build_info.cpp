// The op build_info: what this library was built with, for `python -m llmjp_ext` and for tests.
#include <string>

#include "bindings/library.h"
#include "build_info.h"

namespace llmjp::bindings {
namespace {

std::string build_info() { return kBuildInfo; }

}  // namespace
}  // namespace llmjp::bindings

LLMJP_LIBRARY_IMPL(LLMJP_NAMESPACE, CompositeExplicitAutograd, library) {
  library.impl("build_info", TORCH_BOX(&llmjp::bindings::build_info));
}
