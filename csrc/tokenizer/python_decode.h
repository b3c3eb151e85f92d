// Batches of ids from Python, as lists, arrays and tensors, to lists of str.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "tokenizer/decoder.h"
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
  Ids ids;
  std::vector<int64_t> offsets{0};
  for (const py::handle each : sequences) {
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
