// What goes wrong on the host side of a launch. Bindings turn it into a Python exception with the
// same words.
#pragma once

#include <stdexcept>
#include <string>

namespace llmjp::host {

// CUDA refused: a launch, a query, an attribute.
class CudaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The call asks for something that no kernel here does; the message names what was given and what
// is supported.
class Unsupported : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

}  // namespace llmjp::host
