// Ids on their way to Python as lists of int.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <numeric>
#include <span>
#include <vector>

#include "tokenizer/id_buffer.h"
#include "tokenizer/python_lock.h"
#include "tokenizer/tokenizer.h"

namespace llmjp::tokenizer {

// One integer object per id, which all lists share: making one costs more than finding its token.
class IdObjects {
 public:
  explicit IdObjects(size_t vocabulary) : integers_(vocabulary, nullptr) {}
  ~IdObjects() {
    for (PyObject* integer : integers_) Py_XDECREF(integer);
  }
  IdObjects(const IdObjects&) = delete;
  IdObjects& operator=(const IdObjects&) = delete;

  // Sets items [begin, begin + count) of a list, which are null. `readable` ids, `count` or more,
  // may be looked at: those that come next. Their integers are fetched ahead, since they lie all
  // over the memory.
  template <class Id>
  void fill(pybind11::list& list, size_t begin, const Id* ids, size_t count, size_t readable) {
    constexpr size_t kAhead = 8;
    for (size_t i = 0; i < count; ++i) {
      if (i + 2 * kAhead < readable) {
        __builtin_prefetch(&integers_[ids[i + 2 * kAhead]]);
        if (PyObject* const next = integers_[ids[i + kAhead]]) __builtin_prefetch(next, 1);
      }
      PyObject*& integer = integers_[ids[i]];
      if (integer == nullptr) {
        integer = PyLong_FromUnsignedLong(ids[i]);
        if (integer == nullptr) throw pybind11::error_already_set();
      }
      Py_INCREF(integer);
      PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(begin + i), integer);
    }
  }

  template <class Id>
  pybind11::list list_of(const Id* ids, size_t count, size_t readable) {
    pybind11::list result(count);
    fill(result, 0, ids, count, readable);
    return result;
  }

 private:
  std::vector<PyObject*> integers_;
};

// A list that is half-made while the lock comes and goes: nobody may find it through the cyclic
// collector. With null items, until they are set.
inline pybind11::list hidden_list(size_t size) {
  pybind11::list list(size);
  PyObject_GC_UnTrack(list.ptr());
  return list;
}
inline pybind11::list shown(pybind11::list&& list) {
  PyObject_GC_Track(list.ptr());
  return std::move(list);
}

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

// Lists of a batch, made while other threads search on. It is made and goes with the lock held.
template <class Id>
class ListSink final : public EncodedSink<Id> {
 public:
  // `unlocked` is set before the first call, and lives as long as there are any.
  ListSink(IdObjects& objects, const std::vector<Text>& texts)
      : objects_(objects), texts_(texts), result_(hidden_list(texts.size())) {}

  void unlocked_by(Unlocked& unlocked) { unlocked_ = &unlocked; }

  void take(std::span<const EncodedTexts<Id>> parts) override {
    const Unlocked::Relocked locked(*unlocked_);
    const CollectorPaused paused;
    for (const EncodedTexts<Id>& part : parts) {
      const Id* ids = part.ids;
      auto left = static_cast<size_t>(
          std::accumulate(part.counts + part.begin, part.counts + part.end, int64_t{0}));
      for (size_t i = part.begin; i < part.end; ++i) {
        const auto count = static_cast<size_t>(part.counts[i]);
        set(i, objects_.list_of(ids, count, left));
        ids += count;
        left -= count;
      }
    }
  }

  IdBuffer<Id>& joined() override { return joined_; }

  void take_joined(size_t text, size_t characters, bool complete) override {
    const Unlocked::Relocked locked(*unlocked_);
    const size_t count = joined_.size();
    if (count > capacity_) {
      // As many as the text will have, at the rate so far and a little more.
      const double rate = static_cast<double>(count) / static_cast<double>(characters);
      const double most = 1.0625 * rate * static_cast<double>(texts_[text].size);
      widen(complete ? count : std::max(count, static_cast<size_t>(most)));
    }
    objects_.fill(list_, size_, joined_.data() + size_, count - size_, count - size_);
    size_ = count;
    if (!complete) return;
    if (PyList_SetSlice(list_.ptr(), static_cast<Py_ssize_t>(size_),
                        static_cast<Py_ssize_t>(capacity_), nullptr) != 0)
      throw pybind11::error_already_set();
    set(text, shown(std::move(list_)));
    capacity_ = size_ = 0;
    joined_.clear();
  }

  pybind11::list result() { return shown(std::move(result_)); }

 private:
  void set(size_t text, pybind11::list list) {
    PyList_SET_ITEM(result_.ptr(), static_cast<Py_ssize_t>(text), list.release().ptr());
  }

  // Room for more items of the long text's list: they move to a new one.
  void widen(size_t capacity) {
    pybind11::list wider = hidden_list(capacity);
    for (size_t i = 0; i < size_; ++i) {
      PyObject*& item = reinterpret_cast<PyListObject*>(list_.ptr())->ob_item[i];
      PyList_SET_ITEM(wider.ptr(), static_cast<Py_ssize_t>(i), std::exchange(item, nullptr));
    }
    list_ = std::move(wider);
    capacity_ = capacity;
  }

  IdObjects& objects_;
  const std::vector<Text>& texts_;
  Unlocked* unlocked_ = nullptr;
  pybind11::list result_;
  IdBuffer<Id> joined_;
  pybind11::list list_{0};  // of the long text that is being joined
  size_t size_ = 0;
  size_t capacity_ = 0;
};

}  // namespace llmjp::tokenizer
