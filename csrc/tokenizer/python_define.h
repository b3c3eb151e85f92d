// Functions and constructors for Python whose wrong arguments are an error of one line.
//
// pybind11's own error quotes the arguments, and one of them may be a whole model or corpus. So
// each function gets a second overload, which takes what the first does not, and names types.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <utility>

namespace llmjp::tokenizer {

inline std::string types_of(const pybind11::args& arguments, size_t first,
                            const pybind11::kwargs& named) {
  namespace py = pybind11;
  std::string types;
  for (size_t i = first; i < arguments.size(); ++i)
    types += std::string(types.empty() ? "" : ", ") + Py_TYPE(arguments[i].ptr())->tp_name;
  for (const auto& [name, value] : named) {
    types += (types.empty() ? "" : ", ") + std::string(py::str(name)) + "=" +
             Py_TYPE(value.ptr())->tp_name;
  }
  return types;
}

// Of what is defined under `name`, in one line.
template <class Class>
std::string signature_of(const Class& owner, const char* name) {
  return pybind11::str(owner.attr(name).attr("__doc__").attr("strip")());
}

// `first`: of the arguments that are worth mention, after self.
[[noreturn]] inline void refuse(const std::string& signature, const pybind11::args& arguments,
                                size_t first, const pybind11::kwargs& named) {
  throw pybind11::type_error(signature + ": got (" + types_of(arguments, first, named) + ")");
}

// Defines the method `name` of a class, as def() does.
template <class Class, class Function, class... Extra>
void define(Class& owner, const char* name, Function&& function, const Extra&... extra) {
  namespace py = pybind11;
  owner.def(name, std::forward<Function>(function), extra...);
  const std::string signature = signature_of(owner, name);
  py::options options;
  options.disable_function_signatures();
  const auto other = [signature](const py::args& arguments, const py::kwargs& named) {
    refuse(signature, arguments, 1, named);
  };
  owner.def(name, other, signature.c_str());
}

// Defines the constructor from `Arguments`.
template <class... Arguments, class Class, class... Extra>
void define_constructor(Class& owner, const Extra&... extra) {
  namespace py = pybind11;
  owner.def(py::init<Arguments...>(), extra...);
  const std::string signature = signature_of(owner, "__init__");
  py::options options;
  options.disable_function_signatures();
  const auto other = [signature](const py::args& arguments,
                                 const py::kwargs& named) -> std::unique_ptr<typename Class::type> {
    refuse(signature, arguments, 0, named);
  };
  owner.def(py::init(other), signature.c_str());
}

}  // namespace llmjp::tokenizer
