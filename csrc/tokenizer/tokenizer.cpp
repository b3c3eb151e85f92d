#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <exception>
#include <functional>
#include <system_error>
#include <thread>

namespace llmjp::tokenizer {

// A workspace for the time of one call.
class Tokenizer::Lease {
 public:
  explicit Lease(const Tokenizer& owner) : owner_(owner) {
    for (auto& slot : owner_.idle_) {
      workspace_.reset(slot.exchange(nullptr));
      if (workspace_) return;
    }
    workspace_ = std::make_unique<Workspace>(owner_.model_, owner_.rules_, owner_.search_);
  }
  ~Lease() {
    for (auto& slot : owner_.idle_) {
      Workspace* empty = nullptr;
      if (slot.compare_exchange_strong(empty, workspace_.get())) {
        workspace_.release();
        return;
      }
    }
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  Workspace& operator*() const { return *workspace_; }

 private:
  const Tokenizer& owner_;
  std::unique_ptr<Workspace> workspace_;
};

namespace {

std::string_view read_note(CompiledReader& reader) {
  std::string_view note;
  reader(note);
  return note;
}

}  // namespace

Tokenizer::Tokenizer(std::shared_ptr<CompiledReader> compiled, SearchOptions search)
    : compiled_(std::move(compiled)),
      note_(read_note(*compiled_)),
      model_(*compiled_),
      rules_(model_, *compiled_),
      decoder_(model_),
      search_(search) {
  compiled_->finish();
}

std::string Tokenizer::compile(std::string_view note) const {
  CompiledWriter writer;
  writer(note);
  model_.write(writer);
  rules_.write(writer);
  return writer.finish();
}

Tokenizer::~Tokenizer() {
  for (auto& slot : idle_) delete slot.load();
}

// Special tokens that stay in the text are pieces which the unit search takes for absent.
template <class Char, class Id>
void Tokenizer::search(const Char* text, size_t size, bool prefix, const EncodeOptions& options,
                       Workspace& workspace, IdBuffer<Id>& out) const {
  if (search_.units && rules_.usable() && !options.encode_special_tokens) {
    workspace.units.run(text, size, prefix, out);
  } else {
    workspace.sequential.run(text, size, prefix, 0.0, out);
  }
}

template <class Char, class Id>
void Tokenizer::encode_segment(const Char* text, size_t size, const EncodeOptions& options,
                               Workspace& workspace, IdBuffer<Id>& out) const {
  if (size == 0) return;
  if (model_.normalized_tokens.empty()) {
    search(text, size, model_.spec.prefix_mark, options, workspace, out);
    return;
  }
  std::u32string& segment = workspace.segment;
  segment.clear();
  if (model_.spec.prefix_mark) segment.push_back(kSpaceMark);
  for (size_t i = 0; i < size; ++i)
    segment.push_back(model_.normalize(static_cast<char32_t>(text[i])));
  size_t done = 0;
  AddedTokens::Match match;
  for (size_t from = 0;
       model_.normalized_tokens.find(segment.data(), from, segment.size(), match);) {
    from = match.end;
    if (match.special && options.encode_special_tokens) continue;
    search(segment.data() + done, match.begin - done, false, options, workspace, out);
    out.push(match.id);
    done = match.end;
  }
  search(segment.data() + done, segment.size() - done, false, options, workspace, out);
}

template <class Char, class Id>
void Tokenizer::encode_text(const Char* text, size_t size, const EncodeOptions& options,
                            Workspace& workspace, IdBuffer<Id>& out) const {
  size_t done = 0;
  if (!model_.raw_tokens.empty()) {
    AddedTokens::Match match;
    for (size_t from = 0; model_.raw_tokens.find(text, from, size, match);) {
      from = match.end;
      if (match.special && options.encode_special_tokens) continue;
      encode_segment(text + done, match.begin - done, options, workspace, out);
      out.push(match.id);
      done = match.end;
    }
  }
  encode_segment(text + done, size - done, options, workspace, out);
}

template <class Id>
void Tokenizer::encode_one(const Text& text, const EncodeOptions& options, Workspace& workspace,
                           IdBuffer<Id>& out) const {
  if (text.width == 1) {
    encode_text(static_cast<const uint8_t*>(text.data), text.size, options, workspace, out);
  } else if (text.width == 2) {
    encode_text(static_cast<const char16_t*>(text.data), text.size, options, workspace, out);
  } else {
    encode_text(static_cast<const char32_t*>(text.data), text.size, options, workspace, out);
  }
}

template <class Id>
void Tokenizer::encode_whole(const Text& text, const Text* second, const EncodeOptions& options,
                             Workspace& workspace, IdBuffer<Id>& out) const {
  for (const TemplateItem& item : second == nullptr ? model_.spec.single : model_.spec.pair) {
    if (item.kind == TemplateItem::Kind::kFirst) {
      encode_one(text, options, workspace, out);
    } else if (item.kind == TemplateItem::Kind::kSecond) {
      encode_one(*second, options, workspace, out);
    } else if (options.add_special_tokens) {
      out.push(item.id);
    }
  }
}

template <class Id>
void Tokenizer::encode(const Text& text, const Text* second, const EncodeOptions& options,
                       IdBuffer<Id>& out) const {
  const Lease workspace(*this);
  encode_whole(text, second, options, *workspace, out);
}

namespace {

// Texts [begin, end) that one thread takes at a time: enough to be worth a step of the shared
// counter, few enough that no thread is left with a long tail.
struct Part {
  size_t begin;
  size_t end;
};

std::vector<Part> split(const std::vector<Text>& texts) {
  constexpr size_t kCharactersPerPart = size_t{1} << 16;
  std::vector<Part> parts;
  size_t begin = 0;
  size_t characters = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    characters += texts[i].size + 16;
    if (characters >= kCharactersPerPart || i + 1 == texts.size()) {
      parts.push_back({begin, i + 1});
      begin = i + 1;
      characters = 0;
    }
  }
  return parts;
}

}  // namespace

template <class Id>
std::vector<IdBuffer<Id>> Tokenizer::encode_batch(const std::vector<Text>& texts,
                                                  const EncodeOptions& options, size_t num_threads,
                                                  std::vector<int64_t>& counts) const {
  const std::vector<Part> parts = split(texts);
  std::vector<IdBuffer<Id>> results(parts.size());
  std::vector<std::exception_ptr> errors(parts.size());
  counts.assign(texts.size(), 0);
  std::atomic<size_t> next{0};
  const size_t workers = std::max<size_t>(1, std::min(num_threads, parts.size()));
  std::vector<std::unique_ptr<Lease>>
      leases;  // taken here, where running out of memory is an ordinary exception
  for (size_t i = 0; i < workers; ++i) leases.push_back(std::make_unique<Lease>(*this));
  const auto work = [&](Workspace& workspace) {
    for (size_t index; (index = next.fetch_add(1)) < parts.size();) {
      try {
        IdBuffer<Id>& out = results[index];
        for (size_t i = parts[index].begin; i < parts[index].end; ++i) {
          const size_t before = out.size();
          encode_whole(texts[i], nullptr, options, workspace, out);
          counts[i] = static_cast<int64_t>(out.size() - before);
        }
      } catch (...) {
        errors[index] = std::current_exception();
      }
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(workers);
  try {
    for (size_t i = 1; i < workers; ++i) threads.emplace_back(work, std::ref(**leases[i]));
  } catch (const std::system_error&) {
    // No more threads to be had: those that run, this one at least, do all of the work.
  }
  work(**leases[0]);
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
  return results;
}

template void Tokenizer::encode(const Text&, const Text*, const EncodeOptions&,
                                IdBuffer<uint16_t>&) const;
template void Tokenizer::encode(const Text&, const Text*, const EncodeOptions&,
                                IdBuffer<uint32_t>&) const;
template std::vector<IdBuffer<uint16_t>> Tokenizer::encode_batch(const std::vector<Text>&,
                                                                 const EncodeOptions&, size_t,
                                                                 std::vector<int64_t>&) const;
template std::vector<IdBuffer<uint32_t>> Tokenizer::encode_batch(const std::vector<Text>&,
                                                                 const EncodeOptions&, size_t,
                                                                 std::vector<int64_t>&) const;

}  // namespace llmjp::tokenizer
