// Ids on their way from and to Python: lists of integers and NumPy arrays.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "tokenizer/id_buffer.h"

namespace llmjp::tokenizer {

// One id. Integers too large for any vocabulary are ids that nothing has, as all above it are.
inline int64_t id_of(PyObject* object) {
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
  if (value == -1 && overflow == 0 && PyErr_Occurred() != nullptr)
    throw pybind11::error_already_set();
  if (overflow > 0) return std::numeric_limits<int64_t>::max();
  if (overflow < 0 || value < 0) {
    throw pybind11::value_error("ids must not be negative, got " +
                                std::string(pybind11::str(pybind11::handle(object))));
  }
  return value;
}

using Ids = std::vector<int64_t>;

// Appends the ids of an array whose items are of type `Item`, wherever they lie.
template <class Item>
void append_items(const pybind11::array& array, Ids& ids) {
  const size_t before = ids.size();
  ids.resize(before + static_cast<size_t>(array.size()));
  const char* item = static_cast<const char*>(array.data());
  const pybind11::ssize_t stride = array.strides(0);
  for (size_t i = before; i < ids.size(); ++i) {
    Item value;
    std::memcpy(&value, item, sizeof value);
    item += stride;
    if constexpr (std::is_signed_v<Item>) {
      if (value < 0)
        throw pybind11::value_error("ids must not be negative, got " + std::to_string(value));
      ids[i] = value;
    } else {
      ids[i] = static_cast<int64_t>(
          std::min<uint64_t>(value, uint64_t{std::numeric_limits<int64_t>::max()}));
    }
  }
}

inline void require_ids(const pybind11::array& array, pybind11::ssize_t dimensions) {
  namespace py = pybind11;
  const char kind = array.dtype().kind();
  if (array.ndim() == dimensions && (kind == 'i' || kind == 'u')) return;
  throw py::type_error("an array of ids must be " + std::string(dimensions == 1 ? "one" : "two") +
                       "-dimensional and of an integer type, got " +
                       std::string(py::str(array.dtype())) + " with " +
                       std::to_string(array.ndim()) + " dimensions");
}

inline bool in_native_order(const pybind11::array& array) {
  const char order = array.dtype().byteorder();
  return order == '=' || order == '|';
}

inline void append_ids_of_array(const pybind11::array& array, Ids& ids) {
  namespace py = pybind11;
  require_ids(array, 1);
  const bool is_signed = array.dtype().kind() == 'i';
  if (in_native_order(array)) {
    switch (array.itemsize()) {
      case 1:
        return is_signed ? append_items<int8_t>(array, ids) : append_items<uint8_t>(array, ids);
      case 2:
        return is_signed ? append_items<int16_t>(array, ids) : append_items<uint16_t>(array, ids);
      case 4:
        return is_signed ? append_items<int32_t>(array, ids) : append_items<uint32_t>(array, ids);
      default:
        return is_signed ? append_items<int64_t>(array, ids) : append_items<uint64_t>(array, ids);
    }
  }
  const auto converted = [&](const auto& wide) {
    if (!wide) throw py::error_already_set();
    append_items<typename std::decay_t<decltype(wide)>::value_type>(wide, ids);
  };
  is_signed ? converted(py::array_t<int64_t, py::array::forcecast>::ensure(array))
            : converted(py::array_t<uint64_t, py::array::forcecast>::ensure(array));
}

// What an array library's object holds as NumPy's array, of a PyTorch tensor in memory the tensor
// itself; null for all else.
inline pybind11::array array_in(const pybind11::handle& object) {
  namespace py = pybind11;
  if (py::isinstance<py::array>(object)) return py::reinterpret_borrow<py::array>(object);
  if (PyList_Check(object.ptr()) || PyTuple_Check(object.ptr()) ||
      !py::hasattr(object, "__array__"))
    return py::reinterpret_steal<py::array>(nullptr);
  return py::module_::import("numpy").attr("asarray")(object);
}

inline void append_ids(const pybind11::handle& object, Ids& ids) {
  namespace py = pybind11;
  if (const py::array array = array_in(object)) return append_ids_of_array(array, ids);
  const auto items = py::reinterpret_steal<py::object>(
      PySequence_Fast(object.ptr(), "ids must be a sequence of int"));
  if (!items) throw py::error_already_set();
  // At least twice as much: reserve() alone would move all ids again for every sequence.
  const size_t needed = ids.size() + static_cast<size_t>(PySequence_Fast_GET_SIZE(items.ptr()));
  if (needed > ids.capacity()) ids.reserve(std::max(needed, 2 * ids.capacity()));
  // The size anew in each step: an item's __index__ may be Python code, and change the list. An int
  // has none, and needs no reference of its own.
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items.ptr()); ++i) {
    PyObject* const item = PySequence_Fast_GET_ITEM(items.ptr(), i);
    if (PyLong_CheckExact(item)) {
      ids.push_back(id_of(item));
    } else {
      ids.push_back(id_of(py::reinterpret_borrow<py::object>(item).ptr()));
    }
  }
}

inline Ids ids_of(const pybind11::handle& object) {
  Ids ids;
  append_ids(object, ids);
  return ids;
}

// An array that takes over the buffer's memory.
template <class Id>
pybind11::array_t<Id> array_of(IdBuffer<Id>&& ids) {
  const auto count = static_cast<pybind11::ssize_t>(ids.size());
  auto memory = ids.release();
  if (!memory) return pybind11::array_t<Id>(0);
  pybind11::capsule owner(memory.get(), [](void* data) { FreeMemory{}(data); });
  return pybind11::array_t<Id>(count, memory.release(), std::move(owner));
}

}  // namespace llmjp::tokenizer
