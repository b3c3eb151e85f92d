// Batches of ids from Python, as lists, arrays and tensors, to lists of str.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "tokenizer/decoder.h"
#include "tokenizer/helper_threads.h"
#include "tokenizer/id_buffer.h"
#include "tokenizer/python_ids.h"
#include "tokenizer/python_lock.h"

namespace llmjp::tokenizer {

// How a batch is decoded.
struct BatchDecoding {
  const Decoder& decoder;
  bool skip_special;
  size_t num_threads;

  // Texts of ids[offsets[i], offsets[i + 1]), of which there are `count`. The lock is released;
  // what holds the ids is the caller's.
  template <class Id>
  pybind11::list texts(const Id* ids, const int64_t* offsets, size_t count) const {
    namespace py = pybind11;
    py::list result(count);
    // Half-made, and the lock comes and goes: nobody may find it through the collector.
    PyObject_GC_UnTrack(result.ptr());
    {
      Unlocked unlocked(static_cast<size_t>(offsets[count] - offsets[0]) + count);
      decoder.decode_batch(ids, offsets, count, skip_special, num_threads,
                           [&](const DecodedTexts& texts) {
                             const Unlocked::Relocked locked(unlocked);
                             size_t begin = 0;
                             auto i = static_cast<Py_ssize_t>(texts.begin);
                             for (const size_t end : texts.ends) {
                               py::str text(texts.text.data() + begin, end - begin);
                               PyList_SET_ITEM(result.ptr(), i++, text.release().ptr());
                               begin = end;
                             }
                           });
    }
    PyObject_GC_Track(result.ptr());
    return result;
  }

  // The same of ids in an array, which are read where they lie if they are of a common type.
  pybind11::list texts_of_array(const pybind11::array& array, const int64_t* offsets,
                                size_t count) const {
    namespace py = pybind11;
    const auto in_place = [&](auto id) {
      using Id = decltype(id);
      const auto* const ids = static_cast<const Id*>(array.data());
      if constexpr (std::is_signed_v<Id>) {
        const Id* const least = std::min_element(ids, ids + array.size());
        if (array.size() > 0 && *least < 0)
          throw py::value_error("ids must not be negative, got " + std::to_string(*least));
      }
      return texts(ids, offsets, count);
    };
    constexpr int kInPlace = int{py::array::c_style} | int{py::detail::npy_api::NPY_ARRAY_ALIGNED_};
    if (in_native_order(array) && (array.flags() & kInPlace) == kInPlace) {
      const bool is_signed = array.dtype().kind() == 'i';
      if (array.itemsize() == 2 && !is_signed) return in_place(uint16_t{});
      if (array.itemsize() == 4) return is_signed ? in_place(int32_t{}) : in_place(uint32_t{});
      if (array.itemsize() == 8 && is_signed) return in_place(int64_t{});
    }
    Ids ids;
    append_ids_of_array(array.attr("reshape")(-1), ids);
    return texts(ids.data(), offsets, count);
  }
};

// Ids of lists and tuples of int, read by several threads. The calling one keeps the lock, so that
// nothing changes meanwhile; the others look at memory and do nothing else: they count no
// references, set no errors and run no code of Python's.
class PlainIds {
 public:
  // False if there is anything else among them, which needs more than a look.
  bool read(const pybind11::tuple& sequences, size_t num_threads) {
    offsets_.reserve(sequences.size() + 1);
    for (const pybind11::handle each : sequences) {
      if (!PyList_Check(each.ptr()) && !PyTuple_Check(each.ptr())) return false;
      offsets_.push_back(offsets_.back() + PySequence_Fast_GET_SIZE(each.ptr()));
    }
    const auto total = static_cast<size_t>(offsets_.back());
    const size_t parts = total / kPart + 1;
    uint32_t* const out = ids_.reserve(total);
    std::atomic<size_t> next = 0;
    std::atomic<bool> plain = true;
    const std::function<void(size_t)> work = [&](size_t) {
      for (size_t part; (part = next++) < parts && plain;) {
        for (size_t i = first_of(part); i < first_of(part + 1); ++i) {
          PyObject* const ids = PyTuple_GET_ITEM(sequences.ptr(), static_cast<Py_ssize_t>(i));
          if (!copy(ids, out + offsets_[i])) plain = false;
        }
      }
    };
    Helpers helpers(std::min(std::max<size_t>(1, num_threads), parts) - 1, work);
    work(0);
    helpers.wait();
    ids_.commit(total);
    return plain;
  }

  const uint32_t* ids() const { return ids_.data(); }
  const int64_t* offsets() const { return offsets_.data(); }

 private:
  static constexpr size_t kPart = size_t{1} << 13;  // ids that a thread reads at a time, or more

  // The first sequence that begins in a part.
  size_t first_of(size_t part) const {
    const auto begin = static_cast<int64_t>(part * kPart);
    return static_cast<size_t>(std::lower_bound(offsets_.begin(), offsets_.end() - 1, begin) -
                               offsets_.begin());
  }

  // An int that is not negative and has one digit of Python's (30 bits), as every id; else -1.
  static int64_t plain_id(PyObject* object) {
    if (!PyLong_CheckExact(object)) return -1;
    auto* const number = reinterpret_cast<PyLongObject*>(object);
#if PY_VERSION_HEX >= 0x030C0000
    return PyUnstable_Long_IsCompact(number) != 0 ? PyUnstable_Long_CompactValue(number) : -1;
#else
    const Py_ssize_t digits = Py_SIZE(number);
    return digits == 0 ? 0 : digits == 1 ? int64_t{number->ob_digit[0]} : -1;
#endif
  }

  static bool copy(PyObject* sequence, uint32_t* out) {
    constexpr Py_ssize_t kAhead = 16;  // ints lie all over the memory
    PyObject* const* const items = PySequence_Fast_ITEMS(sequence);
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(sequence);
    for (Py_ssize_t i = 0; i < count; ++i) {
      if (i + kAhead < count) __builtin_prefetch(items[i + kAhead]);
      const int64_t id = plain_id(items[i]);
      if (id < 0) return false;
      out[i] = static_cast<uint32_t>(id);
    }
    return true;
  }

  IdBuffer<uint32_t> ids_;
  std::vector<int64_t> offsets_{0};
};

// `sequences`: an iterable of sequences of ids, or a two-dimensional array of them.
inline pybind11::list decode_batch(const BatchDecoding& decoding,
                                   const pybind11::object& sequences) {
  namespace py = pybind11;
  const py::array array = array_in(sequences);
  if (array && array.dtype().kind() != 'O') {
    require_ids(array, 2);
    std::vector<int64_t> offsets(static_cast<size_t>(array.shape(0)) + 1);
    for (size_t i = 0; i < offsets.size(); ++i)
      offsets[i] = static_cast<int64_t>(i) * array.shape(1);
    return decoding.texts_of_array(array, offsets.data(), offsets.size() - 1);
  }
  const auto items = py::reinterpret_steal<py::tuple>(PySequence_Tuple(sequences.ptr()));
  if (!items) throw py::error_already_set();
  if (PlainIds plain; plain.read(items, decoding.num_threads))
    return decoding.texts(plain.ids(), plain.offsets(), items.size());
  Ids ids;
  std::vector<int64_t> offsets{0};
  for (const py::handle each : items) {
    append_ids(each, ids);
    offsets.push_back(static_cast<int64_t>(ids.size()));
  }
  return decoding.texts(ids.data(), offsets.data(), offsets.size() - 1);
}

// `ids`: those of all sequences; sequence i has ids[offsets[i], offsets[i + 1]).
inline pybind11::list decode_ragged(const BatchDecoding& decoding, const pybind11::object& ids,
                                    const pybind11::object& offsets) {
  namespace py = pybind11;
  const std::vector<int64_t> ends = ids_of(offsets);
  if (ends.empty()) throw py::value_error("offsets must begin with that of the first sequence");
  const auto decoded = [&](int64_t size, const auto& decode) {
    for (size_t i = 1; i < ends.size(); ++i) {
      if (ends[i] < ends[i - 1])
        throw py::value_error("offsets must not fall, got " + std::to_string(ends[i - 1]) + ", " +
                              std::to_string(ends[i]) + " at " + std::to_string(i - 1));
    }
    if (ends.back() > size)
      throw py::value_error("offsets must end within the ids, got " + std::to_string(ends.back()) +
                            " with " + std::to_string(size) + " ids");
    return decode();
  };
  if (const py::array array = array_in(ids)) {
    require_ids(array, 1);
    return decoded(array.size(),
                   [&] { return decoding.texts_of_array(array, ends.data(), ends.size() - 1); });
  }
  const Ids values = ids_of(ids);
  return decoded(static_cast<int64_t>(values.size()),
                 [&] { return decoding.texts(values.data(), ends.data(), ends.size() - 1); });
}

}  // namespace llmjp::tokenizer
