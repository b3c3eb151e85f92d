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

// Ids of an array whose items are of type `Item`, wherever they lie.
template <class Item>
std::vector<int64_t> ids_of_items(const pybind11::array& array) {
  std::vector<int64_t> ids(static_cast<size_t>(array.size()));
  const char* item = static_cast<const char*>(array.data());
  const pybind11::ssize_t stride = array.strides(0);
  for (int64_t& id : ids) {
    Item value;
    std::memcpy(&value, item, sizeof value);
    item += stride;
    if constexpr (std::is_signed_v<Item>) {
      if (value < 0)
        throw pybind11::value_error("ids must not be negative, got " + std::to_string(value));
      id = value;
    } else {
      id = static_cast<int64_t>(
          std::min<uint64_t>(value, uint64_t{std::numeric_limits<int64_t>::max()}));
    }
  }
  return ids;
}

inline std::vector<int64_t> ids_of_array(const pybind11::array& array) {
  namespace py = pybind11;
  const py::dtype type = array.dtype();
  const char kind = type.kind();
  if (array.ndim() != 1 || (kind != 'i' && kind != 'u')) {
    throw py::type_error("an array of ids must be one-dimensional and of an integer type, got " +
                         std::string(py::str(type)) + " with " + std::to_string(array.ndim()) +
                         " dimensions");
  }
  const bool is_signed = kind == 'i';
  if (type.byteorder() == '=' || type.byteorder() == '|') {
    switch (type.itemsize()) {
      case 1:
        return is_signed ? ids_of_items<int8_t>(array) : ids_of_items<uint8_t>(array);
      case 2:
        return is_signed ? ids_of_items<int16_t>(array) : ids_of_items<uint16_t>(array);
      case 4:
        return is_signed ? ids_of_items<int32_t>(array) : ids_of_items<uint32_t>(array);
      default:
        return is_signed ? ids_of_items<int64_t>(array) : ids_of_items<uint64_t>(array);
    }
  }
  const auto converted = [&](const auto& wide) {
    if (!wide) throw py::error_already_set();
    return ids_of_items<typename std::decay_t<decltype(wide)>::value_type>(wide);
  };
  return is_signed ? converted(py::array_t<int64_t, py::array::forcecast>::ensure(array))
                   : converted(py::array_t<uint64_t, py::array::forcecast>::ensure(array));
}

inline std::vector<int64_t> ids_of(const pybind11::handle& object) {
  namespace py = pybind11;
  if (py::isinstance<py::array>(object))
    return ids_of_array(py::reinterpret_borrow<py::array>(object));
  const auto items = py::reinterpret_steal<py::object>(
      PySequence_Fast(object.ptr(), "ids must be a sequence of int"));
  if (!items) throw py::error_already_set();
  std::vector<int64_t> ids;
  ids.reserve(static_cast<size_t>(PySequence_Fast_GET_SIZE(items.ptr())));
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
  return ids;
}

// Lists of ids that share one integer object per id: making one costs more than finding its token.
class IdLists {
 public:
  explicit IdLists(size_t vocabulary) : integers_(vocabulary, nullptr) {}
  ~IdLists() {
    for (PyObject* integer : integers_) Py_XDECREF(integer);
  }
  IdLists(const IdLists&) = delete;
  IdLists& operator=(const IdLists&) = delete;

  template <class Id>
  pybind11::list list_of(const Id* ids, size_t count) {
    pybind11::list result(count);
    for (size_t i = 0; i < count; ++i) {
      PyObject*& integer = integers_[ids[i]];
      if (integer == nullptr) {
        integer = PyLong_FromUnsignedLong(ids[i]);
        if (integer == nullptr) throw pybind11::error_already_set();
      }
      Py_INCREF(integer);
      PyList_SET_ITEM(result.ptr(), static_cast<Py_ssize_t>(i), integer);
    }
    return result;
  }

 private:
  std::vector<PyObject*> integers_;
};

// Keeps the cyclic garbage collector from running while many lists are made in one go: it would
// look through them again and again, at every 700th new one, and find nothing.
class CollectorPaused {
 public:
  CollectorPaused() : was_enabled_(PyGC_Disable() != 0) {}
  ~CollectorPaused() {
    if (was_enabled_) PyGC_Enable();
  }
  CollectorPaused(const CollectorPaused&) = delete;
  CollectorPaused& operator=(const CollectorPaused&) = delete;

 private:
  bool was_enabled_;
};

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
