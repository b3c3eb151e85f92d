// Python strings as texts: read in their own representation, without a copy.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "tokenizer/text.h"

namespace llmjp::tokenizer {

inline Text text_of(PyObject* object, const char* what) {
  if (!PyUnicode_Check(object)) {
    throw pybind11::type_error(std::string(what) + " must be str, got " + Py_TYPE(object)->tp_name);
  }
#if PY_VERSION_HEX < 0x030C0000
  if (PyUnicode_READY(object) != 0) throw pybind11::error_already_set();
#endif
  return {PyUnicode_DATA(object), static_cast<size_t>(PyUnicode_GET_LENGTH(object)),
          static_cast<int>(PyUnicode_KIND(object))};
}

// The texts of an iterable, with references that keep them alive while the lock is released.
struct Texts {
  explicit Texts(pybind11::handle iterable) {
    if (PyUnicode_Check(iterable.ptr()) || PyBytes_Check(iterable.ptr())) {
      throw pybind11::type_error(std::string("texts must be a sequence of str, got one ") +
                                 Py_TYPE(iterable.ptr())->tp_name);
    }
    owner = pybind11::reinterpret_steal<pybind11::tuple>(PySequence_Tuple(iterable.ptr()));
    if (!owner) throw pybind11::error_already_set();
    views.reserve(owner.size());
    for (const pybind11::handle item : owner) {
      views.push_back(text_of(item.ptr(), "every text"));
      work += views.back().size + 1;
    }
  }

  pybind11::tuple owner;
  std::vector<Text> views;
  size_t work = 0;  // what encoding costs, about, in characters
};

inline pybind11::str str_of(const std::string& text) {
  return pybind11::str(text.data(), text.size());
}

}  // namespace llmjp::tokenizer
