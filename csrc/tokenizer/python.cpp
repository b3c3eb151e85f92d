// The pybind11 module llmjp_ext._tokenizer.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <cerrno>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <type_traits>

#include "tokenizer/json.h"
#include "tokenizer/python_decode.h"
#include "tokenizer/python_define.h"
#include "tokenizer/python_expectation.h"
#include "tokenizer/python_ids.h"
#include "tokenizer/python_lists.h"
#include "tokenizer/python_lock.h"
#include "tokenizer/python_text.h"
#include "tokenizer/spans.h"
#include "tokenizer/tokenizer.h"

namespace py = pybind11;

namespace llmjp::tokenizer {
namespace {

constexpr int64_t kNarrowVocabulary =
    65500;  // up to it ids are uint16, as Megatron's data files decide too

constexpr size_t kWorthThreads = size_t{1} << 17;  // characters of a single text

size_t usable_cores() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return static_cast<size_t>(CPU_COUNT(&set));
#endif
  return std::max(1U, std::thread::hardware_concurrency());
}

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

class PyTokenizer {
 public:
  PyTokenizer(const py::bytes& data, const std::string& format, bool float32_sums, bool units,
              int memo_bits, const std::string& isa, size_t chunk) {
    const std::string_view bytes = data;
    if (memo_bits < 0 || memo_bits > 24)
      throw py::value_error("memo_bits must be 0 to 24, got " + std::to_string(memo_bits));
    if (float32_sums && format != "sentencepiece") {
      throw py::value_error(
          "float32_sums is for SentencePiece models; a tokenizer.json is searched in double "
          "precision, a compiled file as what it was compiled from");
    }
    if (chunk == 0) throw py::value_error("chunk must be 1 or more, got 0");
    const SearchOptions search{
        units, memo_bits, chunk,
        host::choose_instruction_set(isa, kIsaVariable, UnitCuts::preferred())};
    const py::gil_scoped_release unlocked;
    if (format == "compiled") {
      tokenizer_ = std::make_shared<Tokenizer>(CompiledReader::copy(bytes), search);
    } else if (format == "compiled file") {
      tokenizer_ = std::make_shared<Tokenizer>(CompiledReader::open(std::string(bytes)), search);
    } else if (format == "json") {
      tokenizer_ = std::make_shared<Tokenizer>(parse_tokenizer_json(bytes), search);
    } else if (format == "sentencepiece") {
      tokenizer_ =
          std::make_shared<Tokenizer>(parse_sentencepiece_model(bytes, float32_sums), search);
    } else {
      throw std::invalid_argument(
          "format must be \"json\", \"sentencepiece\", \"compiled\" or \"compiled file\", got \"" +
          format + '"');
    }
    objects_ = std::make_unique<IdObjects>(tokenizer_->model().size());
  }
  PyTokenizer(const PyTokenizer&) = delete;
  PyTokenizer& operator=(const PyTokenizer&) = delete;

  py::list encode(const py::object& text, const py::object& pair, bool add_special,
                  bool encode_special) {
    const Text first = text_of(text.ptr(), "text");
    Text second;
    if (!pair.is_none()) second = text_of(pair.ptr(), "pair");
    const Text* const other = pair.is_none() ? nullptr : &second;
    const EncodeOptions options{add_special, encode_special};
    if (other == nullptr && first.size >= kWorthThreads)
      return located(first, second, [&]() -> py::list {
        return lists_of({first}, first.size, options, usable_cores())[0];
      });
    return with_ids(first, second, [&](auto id) {
      IdBuffer<decltype(id)> ids;
      {
        const Unlocked unlocked(first.size + second.size);
        tokenizer_->encode(first, other, options, ids);
      }
      return objects_->list_of(ids.data(), ids.size(), ids.size());
    });
  }

  py::list encode_batch(const py::object& sequence, bool add_special, bool encode_special,
                        size_t num_threads) {
    const Texts texts(sequence);
    return texts.located([&] {
      return lists_of(texts.views, texts.work, {add_special, encode_special}, num_threads);
    });
  }

  py::tuple encode_ragged(const py::object& sequence, bool add_special, bool encode_special,
                          size_t num_threads) {
    const Texts texts(sequence);
    return with_ids(texts, [&](auto id) -> py::tuple {
      IdBuffer<decltype(id)> ids;
      py::array_t<int64_t> offsets(static_cast<py::ssize_t>(texts.views.size() + 1));
      int64_t* const out = offsets.mutable_data();
      {
        const Unlocked unlocked(texts.work);
        tokenizer_->encode_ragged(texts.views, {add_special, encode_special}, num_threads, ids,
                                  out);
      }
      return py::make_tuple(array_of(std::move(ids)), offsets);
    });
  }

  py::tuple encode_with_spans(const py::object& text, const py::object& pair, bool add_special,
                              bool encode_special, bool in_bytes) {
    const Text first = text_of(text.ptr(), "text");
    Text second;
    if (!pair.is_none()) second = text_of(pair.ptr(), "pair");
    const Text* const other = pair.is_none() ? nullptr : &second;
    return with_ids(first, second, [&](auto id) -> py::tuple {
      IdBuffer<decltype(id)> ids;
      std::vector<Span> spans;
      {
        const Unlocked unlocked(first.size + second.size);
        const EncodeOptions options{add_special, encode_special};
        tokenizer_->encode(first, other, options, ids);
        spans.resize(ids.size());
        find_spans(tokenizer_->model(), first, other, options, unit_of(in_bytes), ids.data(),
                   ids.size(), spans.data());
      }
      py::list pairs(spans.size());
      for (size_t i = 0; i < spans.size(); ++i) {
        PyList_SET_ITEM(pairs.ptr(), static_cast<Py_ssize_t>(i),
                        py::make_tuple(spans[i].begin, spans[i].end).release().ptr());
      }
      return py::make_tuple(objects_->list_of(ids.data(), ids.size(), ids.size()), pairs);
    });
  }

  py::tuple encode_ragged_with_spans(const py::object& sequence, bool add_special,
                                     bool encode_special, size_t num_threads, bool in_bytes) {
    const Texts texts(sequence);  // the same str objects for both steps, whatever `sequence` is
    const py::tuple encoded = encode_ragged(texts.owner, add_special, encode_special, num_threads);
    return with_ids([&](auto id) -> py::tuple {
      const auto ids = encoded[0].cast<py::array_t<decltype(id)>>();
      const auto offsets = encoded[1].cast<py::array_t<int64_t>>();
      py::array_t<int64_t> spans({ids.size(), py::ssize_t{2}});
      auto* const out = reinterpret_cast<Span*>(spans.mutable_data());
      {
        const Unlocked unlocked(texts.work);
        find_spans_of_batch(tokenizer_->model(), texts.views, {add_special, encode_special},
                            unit_of(in_bytes), num_threads, ids.data(), offsets.data(), out);
      }
      return py::make_tuple(ids, offsets, spans);
    });
  }

  py::str decode(const py::object& ids, bool skip_special) const {
    const std::vector<int64_t> values = ids_of(ids);
    std::string text;
    {
      const Unlocked unlocked(values.size());
      text = tokenizer_->decoder().decode(values.data(), values.size(), skip_special);
    }
    return str_of(text);
  }

  py::list decode_batch(const py::object& sequences, bool skip_special, size_t num_threads) const {
    return tokenizer::decode_batch({tokenizer_->decoder(), skip_special, num_threads}, sequences);
  }

  py::list decode_ragged(const py::object& ids, const py::object& offsets, bool skip_special,
                         size_t num_threads) const {
    return tokenizer::decode_ragged({tokenizer_->decoder(), skip_special, num_threads}, ids,
                                    offsets);
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

  py::object id_to_token(const py::object& number) const {
    int overflow = 0;
    const long long id = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
    if (id == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
    if (overflow != 0 || id < 0 || id >= vocab_size()) return py::none();
    const std::string_view token = tokenizer_->model().token(static_cast<uint32_t>(id));
    return py::str(token.data(), token.size());
  }

  py::dict get_vocab() const {
    const Specification& spec = tokenizer_->model().spec;
    py::dict ids;
    for (size_t id = 0; id < spec.pieces.size(); ++id)
      ids[py::str(spec.pieces[id].data(), spec.pieces[id].size())] = id;
    for (const AddedToken& token : spec.added) ids[str_of(token.content)] = token.id;
    return ids;
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

  bool float32_sums() const { return tokenizer_->model().spec.single_precision_sums; }

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

  py::tuple expected(const py::object& texts, const py::object& scores) const {
    return expected_counts(tokenizer_->model(), texts, scores);
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
  static SpanUnit unit_of(bool in_bytes) {
    return in_bytes ? SpanUnit::kBytes : SpanUnit::kCharacters;
  }

  py::list lists_of(const std::vector<Text>& texts, size_t work, const EncodeOptions& options,
                    size_t num_threads) {
    return with_ids([&](auto id) {
      ListSink<decltype(id)> sink(*objects_, texts);
      {
        Unlocked unlocked(work);
        sink.unlocked_by(unlocked);
        tokenizer_->encode_batch<decltype(id)>(texts, options, num_threads, sink);
      }
      return sink.result();
    });
  }

  // Calls `action` with a value of the type that ids have here.
  template <class Action>
  std::invoke_result_t<Action, uint16_t> with_ids(const Action& action) const {
    return vocab_size() < kNarrowVocabulary ? action(uint16_t{}) : action(uint32_t{});
  }

  // The same, with the place of a lone surrogate in errors.
  template <class Action>
  std::invoke_result_t<Action, uint16_t> with_ids(const Texts& texts, const Action& action) const {
    return texts.located([&] { return with_ids(action); });
  }
  template <class Action>
  std::invoke_result_t<Action, uint16_t> with_ids(const Text& text, const Text& pair,
                                                  const Action& action) const {
    return located(text, pair, [&] { return with_ids(action); });
  }

  std::shared_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<IdObjects> objects_;
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
  // NumPy's interface is looked up now: pybind11 releases the lock meanwhile, and a thread that did
  // so in a call while the interpreter ends would bring the process down (see restore()).
  static_cast<void>(py::dtype::of<int64_t>());
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
  using llmjp::tokenizer::define;
  using llmjp::tokenizer::define_constructor;
  py::class_<PyTokenizer> tokenizer(m, "Tokenizer");
  define_constructor<const py::bytes&, const std::string&, bool, bool, int, const std::string&,
                     size_t>(tokenizer, py::arg("data"), py::arg("format"), py::kw_only(),
                             py::arg("float32_sums") = false, py::arg("units") = true,
                             py::arg("memo_bits") = 15, py::arg("isa") = "",
                             py::arg("chunk") = size_t{1} << 16);
  define(tokenizer, "encode", &PyTokenizer::encode, py::arg("text"), py::arg("pair"),
         py::arg("add_special_tokens"), py::arg("encode_special_tokens"));
  define(tokenizer, "encode_batch", &PyTokenizer::encode_batch, py::arg("texts"),
         py::arg("add_special_tokens"), py::arg("encode_special_tokens"), py::arg("num_threads"));
  define(tokenizer, "encode_ragged", &PyTokenizer::encode_ragged, py::arg("texts"),
         py::arg("add_special_tokens"), py::arg("encode_special_tokens"), py::arg("num_threads"));
  define(tokenizer, "encode_with_spans", &PyTokenizer::encode_with_spans, py::arg("text"),
         py::arg("pair"), py::arg("add_special_tokens"), py::arg("encode_special_tokens"),
         py::arg("in_bytes"));
  define(tokenizer, "encode_ragged_with_spans", &PyTokenizer::encode_ragged_with_spans,
         py::arg("texts"), py::arg("add_special_tokens"), py::arg("encode_special_tokens"),
         py::arg("num_threads"), py::arg("in_bytes"));
  define(tokenizer, "decode", &PyTokenizer::decode, py::arg("ids"), py::arg("skip_special_tokens"));
  define(tokenizer, "decode_batch", &PyTokenizer::decode_batch, py::arg("sequences"),
         py::arg("skip_special_tokens"), py::arg("num_threads"));
  define(tokenizer, "decode_ragged", &PyTokenizer::decode_ragged, py::arg("ids"),
         py::arg("offsets"), py::arg("skip_special_tokens"), py::arg("num_threads"));
  define(tokenizer, "token_to_id", &PyTokenizer::token_to_id, py::arg("token"));
  define(tokenizer, "id_to_token", &PyTokenizer::id_to_token, py::arg("id"));
  define(tokenizer, "expected_counts", &PyTokenizer::expected, py::arg("texts"), py::arg("scores"));
  define(tokenizer, "compile", &PyTokenizer::compile, py::arg("note"));
  define(tokenizer, "score", &PyTokenizer::score, py::arg("id"));
  tokenizer.def("get_vocab", &PyTokenizer::get_vocab)
      .def_property_readonly("note", &PyTokenizer::note)
      .def_property_readonly("isa", &PyTokenizer::isa)
      .def_property_readonly("vocab_size", &PyTokenizer::vocab_size)
      .def_property_readonly("special_ids", &PyTokenizer::special_ids)
      .def_property_readonly("float32_sums", &PyTokenizer::float32_sums)
      .def_property_readonly("unknown_id", &PyTokenizer::unknown_id)
      .def_property_readonly("appended_ids", &PyTokenizer::appended_ids);
  py::class_<PyDecodeStream> stream(m, "DecodeStream");
  define_constructor<const PyTokenizer&, bool>(stream, py::arg("tokenizer"),
                                               py::arg("skip_special_tokens"));
  define(stream, "step", &PyDecodeStream::step, py::arg("id"));
  stream.def("finish", &PyDecodeStream::finish);
}
