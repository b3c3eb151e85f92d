#include "tokenizer/tokenizer.h"

#include <algorithm>

#include "tokenizer/ordered_parts.h"

namespace llmjp::tokenizer {

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

WorkspacePool::Lease Tokenizer::lend_workspace() const {
  return workspaces_.lend([this] { return std::make_unique<Workspace>(model_, rules_, search_); });
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
void Tokenizer::encode_whole(const Text& text, const Text* second, const EncodeOptions& options,
                             Workspace& workspace, IdBuffer<Id>& out) const {
  const auto append = [&](const Text& one) {
    with_characters(one, [&](const auto* characters) {
      encode_text(characters, one.size, options, workspace, out);
    });
  };
  for (const TemplateItem& item : second == nullptr ? model_.spec.single : model_.spec.pair) {
    if (item.kind == TemplateItem::Kind::kFirst) {
      append(text);
    } else if (item.kind == TemplateItem::Kind::kSecond) {
      append(*second);
    } else if (options.add_special_tokens) {
      out.push(item.id);
    }
  }
}

template <class Id>
void Tokenizer::encode(const Text& text, const Text* second, const EncodeOptions& options,
                       IdBuffer<Id>& out) const {
  const WorkspacePool::Lease workspace = lend_workspace();
  encode_whole(text, second, options, *workspace, out);
}

namespace {

// Texts [begin, end) that one thread takes at a time.
struct Part {
  size_t begin;
  size_t end;
};

// Parts large enough to be worth the start of a thread and the handing over, some 0.1 ms of work at
// least, and small enough that no thread is left with a long tail.
std::vector<Part> split(const std::vector<Text>& texts, size_t num_threads) {
  constexpr size_t kPerText = 16;  // what a text costs by itself, in characters
  constexpr size_t kLeast = size_t{1} << 14;
  constexpr size_t kMost = size_t{1} << 16;
  size_t total = 0;
  for (const Text& text : texts) total += text.size + kPerText;
  const size_t size = std::clamp(total / (8 * num_threads), kLeast, kMost);
  std::vector<Part> parts;
  parts.reserve(total / size + 1);
  size_t begin = 0;
  size_t characters = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    characters += texts[i].size + kPerText;
    if (characters >= size || i + 1 == texts.size()) {
      parts.push_back({begin, i + 1});
      begin = i + 1;
      characters = 0;
    }
  }
  return parts;
}

}  // namespace

template <class Id>
void Tokenizer::encode_batch(
    const std::vector<Text>& texts, const EncodeOptions& options, size_t num_threads,
    const std::function<void(std::span<const EncodedTexts<Id>>)>& take) const {
  const std::vector<Part> parts = split(texts, num_threads);
  std::vector<WorkspacePool::Lease> workspaces;
  const size_t workers = std::max<size_t>(1, std::min(num_threads, parts.size()));
  workspaces.reserve(workers);
  for (size_t i = 0; i < workers; ++i) workspaces.push_back(lend_workspace());
  std::vector<int64_t> counts(texts.size());
  const auto encode_part = [&](size_t worker, size_t part, IdBuffer<Id>& ids) {
    for (size_t i = parts[part].begin; i < parts[part].end; ++i) {
      const size_t before = ids.size();
      encode_whole(texts[i], nullptr, options, *workspaces[worker], ids);
      counts[i] = static_cast<int64_t>(ids.size() - before);
    }
  };
  std::vector<EncodedTexts<Id>> encoded;
  const auto take_parts = [&](size_t begin, size_t end, const auto& ids_of) {
    encoded.clear();
    for (size_t part = begin; part < end; ++part)
      encoded.push_back({parts[part].begin, parts[part].end, ids_of(part).data(), counts.data()});
    take(encoded);
  };
  OrderedParts<IdBuffer<Id>>(parts.size()).run(workers, encode_part, take_parts);
}

template <class Id>
void Tokenizer::encode_ragged(const std::vector<Text>& texts, const EncodeOptions& options,
                              size_t num_threads, IdBuffer<Id>& out, int64_t* offsets) const {
  offsets[0] = 0;
  if (num_threads <= 1 || split(texts, num_threads).size() <= 1) {
    const WorkspacePool::Lease workspace = lend_workspace();
    for (size_t i = 0; i < texts.size(); ++i) {
      encode_whole(texts[i], nullptr, options, *workspace, out);
      offsets[i + 1] = static_cast<int64_t>(out.size());
    }
    return;
  }
  encode_batch<Id>(texts, options, num_threads, [&](std::span<const EncodedTexts<Id>> encoded) {
    for (const EncodedTexts<Id>& part : encoded) {
      for (size_t i = part.begin; i < part.end; ++i) offsets[i + 1] = offsets[i] + part.counts[i];
      out.append(part.ids, static_cast<size_t>(offsets[part.end] - offsets[part.begin]));
    }
  });
}

template void Tokenizer::encode(const Text&, const Text*, const EncodeOptions&,
                                IdBuffer<uint16_t>&) const;
template void Tokenizer::encode(const Text&, const Text*, const EncodeOptions&,
                                IdBuffer<uint32_t>&) const;
template void Tokenizer::encode_batch(
    const std::vector<Text>&, const EncodeOptions&, size_t,
    const std::function<void(std::span<const EncodedTexts<uint16_t>>)>&) const;
template void Tokenizer::encode_batch(
    const std::vector<Text>&, const EncodeOptions&, size_t,
    const std::function<void(std::span<const EncodedTexts<uint32_t>>)>&) const;
template void Tokenizer::encode_ragged(const std::vector<Text>&, const EncodeOptions&, size_t,
                                       IdBuffer<uint16_t>&, int64_t*) const;
template void Tokenizer::encode_ragged(const std::vector<Text>&, const EncodeOptions&, size_t,
                                       IdBuffer<uint32_t>&, int64_t*) const;

}  // namespace llmjp::tokenizer
