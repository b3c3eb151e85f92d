// The pybind11 module llmjp_ext._tokenizer. Python's strings are read in their own representation,
// without a copy, and the interpreter's lock is released while texts are encoded and ids decoded.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <string>
#include <system_error>
#include <type_traits>
#include <vector>

#include "tokenizer/json.h"
#include "tokenizer/tokenizer.h"

namespace py = pybind11;

namespace llmjp::tokenizer {
namespace {

constexpr int64_t kNarrowVocabulary =
    65500;  // up to it ids are uint16, as Megatron's data files decide too

constexpr const char* kIsaVariable = "LLMJP_TOKENIZER_ISA";

py::list supported_isas() {
  py::list names;
  for (const host::InstructionSet set : host::supported_instruction_sets())
    names.append(host::name(set));
  return names;
}

std::string_view default_isa() {
  return host::name(host::choose_instruction_set("", kIsaVariable, UnitCuts::preferred()));
}

Text text_of(py::handle object, const char* what) {
  if (!PyUnicode_Check(object.ptr())) {
    throw py::type_error(std::string(what) + " must be str, got " + Py_TYPE(object.ptr())->tp_name);
  }
#if PY_VERSION_HEX < 0x030C0000
  if (PyUnicode_READY(object.ptr()) != 0) throw py::error_already_set();
#endif
  return {PyUnicode_DATA(object.ptr()), static_cast<size_t>(PyUnicode_GET_LENGTH(object.ptr())),
          static_cast<int>(PyUnicode_KIND(object.ptr()))};
}

// The texts of a sequence, with references that keep them alive while the lock is released.
struct Texts {
  explicit Texts(const py::object& sequence) : owner(make_tuple(sequence)) {
    views.reserve(owner.size());
    for (const py::handle item : owner) views.push_back(text_of(item, "every text"));
  }

  static py::tuple make_tuple(const py::object& sequence) {
    if (PyUnicode_Check(sequence.ptr()) || PyBytes_Check(sequence.ptr())) {
      throw py::type_error(std::string("texts must be a sequence of str, got one ") +
                           Py_TYPE(sequence.ptr())->tp_name);
    }
    return py::reinterpret_steal<py::tuple>(py::handle(check(PySequence_Tuple(sequence.ptr()))));
  }
  static PyObject* check(PyObject* object) {
    if (object == nullptr) throw py::error_already_set();
    return object;
  }

  py::tuple owner;
  std::vector<Text> views;
};

// One id. Integers too large for any vocabulary are ids that nothing has, as all above it are.
int64_t id_of(PyObject* object) {
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
  if (value == -1 && overflow == 0 && PyErr_Occurred() != nullptr) throw py::error_already_set();
  if (overflow > 0) return std::numeric_limits<int64_t>::max();
  if (overflow < 0 || value < 0) {
    throw py::value_error("ids must not be negative, got " +
                          std::string(py::str(py::handle(object))));
  }
  return value;
}

std::vector<int64_t> ids_of_array(const py::array& array) {
  const char kind = array.dtype().kind();
  if (array.ndim() != 1 || (kind != 'i' && kind != 'u')) {
    throw py::type_error("an array of ids must be one-dimensional and of an integer type, got " +
                         std::string(py::str(array.dtype())) + " with " +
                         std::to_string(array.ndim()) + " dimensions");
  }
  std::vector<int64_t> ids(static_cast<size_t>(array.size()));
  constexpr int kFlags = py::array::c_style | py::array::forcecast;
  if (kind == 'u') {
    const auto wide = py::array_t<uint64_t, kFlags>::ensure(array);
    if (!wide) throw py::error_already_set();
    constexpr uint64_t kMost = std::numeric_limits<int64_t>::max();
    for (size_t i = 0; i < ids.size(); ++i)
      ids[i] = static_cast<int64_t>(std::min(wide.data()[i], kMost));
    return ids;
  }
  const auto wide = py::array_t<int64_t, kFlags>::ensure(array);
  if (!wide) throw py::error_already_set();
  std::copy_n(wide.data(), ids.size(), ids.begin());
  for (const int64_t id : ids) {
    if (id < 0) throw py::value_error("ids must not be negative, got " + std::to_string(id));
  }
  return ids;
}

std::vector<int64_t> ids_of(const py::handle& object) {
  if (py::isinstance<py::array>(object))
    return ids_of_array(py::reinterpret_borrow<py::array>(object));
  const auto items = py::reinterpret_steal<py::object>(
      PySequence_Fast(object.ptr(), "ids must be a sequence of int"));
  if (!items) throw py::error_already_set();
  std::vector<int64_t> ids;
  ids.reserve(static_cast<size_t>(PySequence_Fast_GET_SIZE(items.ptr())));
  // The size anew in each step: an item's __index__ may be Python code, and change the list.
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items.ptr()); ++i) {
    const auto item = py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(items.ptr(), i));
    ids.push_back(id_of(item.ptr()));
  }
  return ids;
}

py::str str_of(const std::string& text) { return py::str(text.data(), text.size()); }

class PyTokenizer {
 public:
  PyTokenizer(const py::bytes& data, const std::string& format, bool units, int memo_bits,
              const std::string& isa) {
    const std::string_view bytes = data;
    if (memo_bits < 0 || memo_bits > 24)
      throw py::value_error("memo_bits must be 0 to 24, got " + std::to_string(memo_bits));
    const SearchOptions search{
        units, memo_bits, host::choose_instruction_set(isa, kIsaVariable, UnitCuts::preferred())};
    const py::gil_scoped_release unlocked;
    if (format == "compiled") {
      tokenizer_ = std::make_shared<Tokenizer>(CompiledReader::copy(bytes), search);
    } else if (format == "compiled file") {
      tokenizer_ = std::make_shared<Tokenizer>(CompiledReader::open(std::string(bytes)), search);
    } else if (format == "json") {
      tokenizer_ = std::make_shared<Tokenizer>(parse_tokenizer_json(bytes), search);
    } else if (format == "sentencepiece") {
      tokenizer_ = std::make_shared<Tokenizer>(parse_sentencepiece_model(bytes), search);
    } else {
      throw std::invalid_argument(
          "format must be \"json\", \"sentencepiece\", \"compiled\" or \"compiled file\", got \"" +
          format + '"');
    }
    integers_.resize(tokenizer_->model().size(), nullptr);
  }
  ~PyTokenizer() {
    for (PyObject* integer : integers_) Py_XDECREF(integer);
  }
  PyTokenizer(const PyTokenizer&) = delete;
  PyTokenizer& operator=(const PyTokenizer&) = delete;

  py::list encode(const py::object& text, const py::object& pair, bool add_special,
                  bool encode_special) {
    const Text first = text_of(text, "text");
    Text second;
    if (!pair.is_none()) second = text_of(pair, "pair");
    const Text* const other = pair.is_none() ? nullptr : &second;
    return with_ids([&](auto id) {
      IdBuffer<decltype(id)> ids;
      {
        const py::gil_scoped_release unlocked;
        tokenizer_->encode(first, other, {add_special, encode_special}, ids);
      }
      return list_of(ids.data(), ids.size());
    });
  }

  py::list encode_batch(const py::object& sequence, bool add_special, bool encode_special,
                        size_t num_threads) {
    const Texts texts(sequence);
    return with_ids([&](auto id) {
      std::vector<int64_t> counts;
      const auto parts =
          run<decltype(id)>(texts, {add_special, encode_special}, num_threads, counts);
      py::list result(counts.size());
      size_t part = 0;
      size_t used = 0;
      for (size_t i = 0; i < counts.size(); ++i) {
        const auto count = static_cast<size_t>(counts[i]);
        while (used == parts[part].size() && count > 0) {
          ++part;
          used = 0;
        }
        PyList_SET_ITEM(result.ptr(), static_cast<Py_ssize_t>(i),
                        list_of(parts[part].data() + used, count).release().ptr());
        used += count;
      }
      return result;
    });
  }

  py::tuple encode_ragged(const py::object& sequence, bool add_special, bool encode_special,
                          size_t num_threads) {
    const Texts texts(sequence);
    return with_ids([&](auto id) -> py::tuple {
      std::vector<int64_t> counts;
      const auto parts =
          run<decltype(id)>(texts, {add_special, encode_special}, num_threads, counts);
      py::array_t<int64_t> offsets(static_cast<py::ssize_t>(counts.size() + 1));
      int64_t* const offset = offsets.mutable_data();
      offset[0] = 0;
      for (size_t i = 0; i < counts.size(); ++i) offset[i + 1] = offset[i] + counts[i];
      return py::make_tuple(joined(parts, offset[counts.size()]), offsets);
    });
  }

  py::str decode(const py::object& ids, bool skip_special) const {
    const std::vector<int64_t> values = ids_of(ids);
    std::string text;
    {
      const py::gil_scoped_release unlocked;
      text = tokenizer_->decoder().decode(values.data(), values.size(), skip_special);
    }
    return str_of(text);
  }

  py::list decode_batch(const py::object& sequences, bool skip_special) const {
    py::list result;
    for (const py::handle ids : sequences) {
      result.append(decode(py::reinterpret_borrow<py::object>(ids), skip_special));
    }
    return result;
  }

  int64_t vocab_size() const { return static_cast<int64_t>(tokenizer_->model().size()); }

  py::object token_to_id(const py::str& token) const {
    Py_ssize_t size = 0;
    const char* const bytes = PyUnicode_AsUTF8AndSize(token.ptr(), &size);
    if (bytes == nullptr) {  // a lone surrogate: no token has one
      PyErr_Clear();
      return py::none();
    }
    const int64_t id =
        tokenizer_->model().find_token(std::string_view(bytes, static_cast<size_t>(size)));
    return id < 0 ? py::object(py::none()) : py::object(py::int_(id));
  }

  py::object id_to_token(const py::int_& number) const {
    int overflow = 0;
    const long long id = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
    if (overflow != 0 || id < 0 || id >= vocab_size()) return py::none();
    const std::string_view token = tokenizer_->model().token(static_cast<uint32_t>(id));
    return py::str(token.data(), token.size());
  }

  std::string_view isa() const { return host::name(tokenizer_->instructions()); }

  double score(int64_t id) const {
    const auto& scores = tokenizer_->model().spec.scores;
    if (id < 0 || static_cast<size_t>(id) >= scores.size()) {
      throw py::value_error("no piece has id " + std::to_string(id));
    }
    return scores[static_cast<size_t>(id)];
  }

  py::list special_ids() const {
    py::list ids;
    for (const uint32_t id : tokenizer_->model().spec.special_ids) ids.append(id);
    return ids;
  }

  uint32_t unknown_id() const { return tokenizer_->model().spec.unknown_id; }

  // Ids that the template puts after a single text.
  py::list appended_ids() const {
    py::list ids;
    for (const TemplateItem& item : tokenizer_->model().spec.single) {
      if (item.kind == TemplateItem::Kind::kToken) {
        ids.append(item.id);
      } else {
        ids = py::list();
      }
    }
    return ids;
  }

  py::bytes compile(const py::bytes& note) const {
    const std::string_view text = note;
    std::string bytes;
    {
      const py::gil_scoped_release unlocked;
      bytes = tokenizer_->compile(text);
    }
    return py::bytes(bytes);
  }
  py::bytes note() const { return py::bytes(std::string(tokenizer_->note())); }

  std::shared_ptr<Tokenizer> shared() const { return tokenizer_; }

 private:
  // Calls `action` with a value of the type that ids have here.
  template <class Action>
  std::invoke_result_t<Action, uint16_t> with_ids(const Action& action) const {
    return vocab_size() < kNarrowVocabulary ? action(uint16_t{}) : action(uint32_t{});
  }

  template <class Id>
  std::vector<IdBuffer<Id>> run(const Texts& texts, const EncodeOptions& options,
                                size_t num_threads, std::vector<int64_t>& counts) const {
    const py::gil_scoped_release unlocked;
    return tokenizer_->encode_batch<Id>(texts.views, options, num_threads, counts);
  }

  // Python integers are made once per id and shared: making one costs more than finding its token.
  template <class Id>
  py::list list_of(const Id* ids, size_t count) {
    py::list result(count);
    for (size_t i = 0; i < count; ++i) {
      PyObject*& integer = integers_[ids[i]];
      if (integer == nullptr) integer = Texts::check(PyLong_FromUnsignedLong(ids[i]));
      Py_INCREF(integer);
      PyList_SET_ITEM(result.ptr(), static_cast<Py_ssize_t>(i), integer);
    }
    return result;
  }

  template <class Id>
  static py::array_t<Id> joined(const std::vector<IdBuffer<Id>>& parts, int64_t total) {
    py::array_t<Id> result(static_cast<py::ssize_t>(total));
    Id* out = result.mutable_data();
    for (const IdBuffer<Id>& part : parts) out = std::copy_n(part.data(), part.size(), out);
    return result;
  }

  std::shared_ptr<Tokenizer> tokenizer_;
  std::vector<PyObject*> integers_;
};

class PyDecodeStream {
 public:
  PyDecodeStream(const PyTokenizer& owner, bool skip_special)
      : tokenizer_(owner.shared()), stream_(tokenizer_->decoder(), skip_special) {}

  py::str step(const py::object& id) { return str_of(stream_.step(id_of(id.ptr()))); }
  py::str finish() { return str_of(stream_.finish()); }

 private:
  std::shared_ptr<Tokenizer> tokenizer_;
  DecodeStream stream_;
};

}  // namespace
}  // namespace llmjp::tokenizer

PYBIND11_MODULE(_tokenizer, m) {
  using llmjp::tokenizer::PyDecodeStream;
  using llmjp::tokenizer::PyTokenizer;
  m.doc() = "Unigram tokenizer: the compiled part of llmjp_ext.tokenizer.";
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const llmjp::tokenizer::LoneSurrogate& e) {
      PyErr_SetString(PyExc_TypeError, e.what());
    } catch (const std::system_error& e) {
      errno = e.code().value();
      PyErr_SetFromErrno(PyExc_OSError);
    }
  });
  m.def("supported_isas", &llmjp::tokenizer::supported_isas);
  m.def("default_isa", &llmjp::tokenizer::default_isa);
  py::class_<PyTokenizer>(m, "Tokenizer")
      .def(py::init<const py::bytes&, const std::string&, bool, int, const std::string&>(),
           py::arg("data"), py::arg("format"), py::kw_only(), py::arg("units") = true,
           py::arg("memo_bits") = 15, py::arg("isa") = "")
      .def("encode", &PyTokenizer::encode, py::arg("text"), py::arg("pair"),
           py::arg("add_special_tokens"), py::arg("encode_special_tokens"))
      .def("encode_batch", &PyTokenizer::encode_batch, py::arg("texts"),
           py::arg("add_special_tokens"), py::arg("encode_special_tokens"), py::arg("num_threads"))
      .def("encode_ragged", &PyTokenizer::encode_ragged, py::arg("texts"),
           py::arg("add_special_tokens"), py::arg("encode_special_tokens"), py::arg("num_threads"))
      .def("decode", &PyTokenizer::decode, py::arg("ids"), py::arg("skip_special_tokens"))
      .def("decode_batch", &PyTokenizer::decode_batch, py::arg("sequences"),
           py::arg("skip_special_tokens"))
      .def("token_to_id", &PyTokenizer::token_to_id, py::arg("token"))
      .def("id_to_token", &PyTokenizer::id_to_token, py::arg("id"))
      .def("compile", &PyTokenizer::compile, py::arg("note"))
      .def_property_readonly("note", &PyTokenizer::note)
      .def("score", &PyTokenizer::score, py::arg("id"))
      .def_property_readonly("isa", &PyTokenizer::isa)
      .def_property_readonly("vocab_size", &PyTokenizer::vocab_size)
      .def_property_readonly("special_ids", &PyTokenizer::special_ids)
      .def_property_readonly("unknown_id", &PyTokenizer::unknown_id)
      .def_property_readonly("appended_ids", &PyTokenizer::appended_ids);
  py::class_<PyDecodeStream>(m, "DecodeStream")
      .def(py::init<const PyTokenizer&, bool>(), py::arg("tokenizer"),
           py::arg("skip_special_tokens"))
      .def("step", &PyDecodeStream::step, py::arg("id"))
      .def("finish", &PyDecodeStream::finish);
}
