// Python strings as texts: read in their own representation, without a copy.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdio>
#include <string>
#include <vector>

#include "tokenizer/model.h"
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

// Throws what a lone surrogate in `text` is worth, if it has one: its name and place.
inline void refuse_surrogate(const Text& text, const std::string& name) {
  with_characters(text, [&](const auto* characters) {
    for (size_t i = 0; i < text.size; ++i) {
      if (!is_surrogate(characters[i])) continue;
      char code[8];
      std::snprintf(code, sizeof code, "%04X", static_cast<unsigned>(characters[i]));
      throw pybind11::type_error(name + " has the lone surrogate U+" + code + " at character " +
                                 std::to_string(i) + ", which cannot be encoded");
    }
  });
}

// What `encode` returns; an error about a lone surrogate says in which of the two it is, and where.
template <class Encode>
auto located(const Text& text, const Text& pair, const Encode& encode) {
  try {
    return encode();
  } catch (const LoneSurrogate&) {
    refuse_surrogate(text, "text");
    refuse_surrogate(pair, "pair");
    throw;
  }
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
      if (!PyUnicode_Check(item.ptr())) text_of(item.ptr(), name(views.size()).c_str());
      views.push_back(text_of(item.ptr(), "text"));
      work += views.back().size + 1;
    }
  }

  static std::string name(size_t i) { return "text " + std::to_string(i); }

  // The same for these texts.
  template <class Encode>
  auto located(const Encode& encode) const {
    try {
      return encode();
    } catch (const LoneSurrogate&) {
      for (size_t i = 0; i < views.size(); ++i) refuse_surrogate(views[i], name(i));
      throw;
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
