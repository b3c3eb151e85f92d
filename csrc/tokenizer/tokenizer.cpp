#include "tokenizer/tokenizer.h"

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
      decoder_(model_, *compiled_),
      search_(search) {
  compiled_->finish();
}

std::string Tokenizer::compile(std::string_view note) const {
  CompiledWriter writer;
  writer(note);
  model_.write(writer);
  rules_.write(writer);
  decoder_.write(writer);
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

template void Tokenizer::encode(const Text&, const Text*, const EncodeOptions&,
                                IdBuffer<uint16_t>&) const;
template void Tokenizer::encode(const Text&, const Text*, const EncodeOptions&,
                                IdBuffer<uint32_t>&) const;
template void Tokenizer::encode_whole(const Text&, const Text*, const EncodeOptions&, Workspace&,
                                      IdBuffer<uint16_t>&) const;
template void Tokenizer::encode_whole(const Text&, const Text*, const EncodeOptions&, Workspace&,
                                      IdBuffer<uint32_t>&) const;

}  // namespace llmjp::tokenizer
