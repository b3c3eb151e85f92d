// Batches of texts over threads: the parts of Tokenizer that have to do with more than one text.
#include <algorithm>
#include <optional>

#include "tokenizer/long_text.h"
#include "tokenizer/ordered_parts.h"
#include "tokenizer/tokenizer.h"

namespace llmjp::tokenizer {
namespace {

// In characters. A batch of fewer is not worth waking a thread, which takes some 20 microseconds;
// the time that the smallest parts take, some 10 microseconds, is what threads may end apart.
constexpr size_t kWorthThreads = size_t{1} << 14;
constexpr size_t kLeastPart = size_t{1} << 11;
constexpr size_t kLargestPart = size_t{1} << 16;
constexpr size_t kPerText = 16;  // what a text costs by itself

// A share of the characters that are left: large parts first, since each has its cost, and ever
// smaller ones, so that no thread is left with a long tail.
size_t part_size(size_t left, size_t num_threads) {
  return std::clamp(left / (8 * num_threads), kLeastPart, kLargestPart);
}

// What one thread takes at a time: texts [begin, end), or one chunk of a long text.
struct Part {
  size_t begin;
  size_t end;
  bool is_chunk = false;
  Chunk chunk{};
};

}  // namespace

// Puts the ids of long texts together, whose chunks arrive in order.
template <class Id>
class Tokenizer::LongText {
 public:
  LongText(const Tokenizer& tokenizer, const EncodeOptions& options, Workspace& workspace,
           IdBuffer<Id>& out)
      : tokenizer_(tokenizer), options_(options), workspace_(workspace), out_(out) {}

  // True if the text is complete.
  bool append(const Text& text, const Chunk& chunk, const ChunkIds<Id>& found) {
    if (chunk.begin == 0) {
      joiner_.emplace(tokenizer_.model_, tokenizer_.rules_);
      add_tokens(true);
    }
    joiner_->append(text, chunk, found, workspace_.sequential, workspace_.units, out_);
    if (chunk.end < text.size) return false;
    add_tokens(false);
    return true;
  }

 private:
  // Of the template, those before or behind the text.
  void add_tokens(bool before) {
    if (!options_.add_special_tokens) return;
    bool here = before;
    for (const TemplateItem& item : tokenizer_.model_.spec.single) {
      if (item.kind == TemplateItem::Kind::kFirst) {
        here = !before;
      } else if (item.kind == TemplateItem::Kind::kToken && here) {
        out_.push(item.id);
      }
    }
  }

  const Tokenizer& tokenizer_;
  const EncodeOptions& options_;
  Workspace& workspace_;
  IdBuffer<Id>& out_;
  std::optional<ChunkJoiner<Id>> joiner_;  // of the text that is being joined
};

namespace {

// `divide(text, later)`: the chunks of a long text that so many characters follow, none of others.
template <class Divide>
std::vector<Part> split(const std::vector<Text>& texts, size_t num_threads, const Divide& divide) {
  size_t left = 0;
  for (const Text& text : texts) left += text.size + kPerText;
  std::vector<Part> parts;
  size_t begin = 0;
  size_t characters = 0;  // of the part
  size_t size = part_size(left, num_threads);
  const auto begin_at = [&](size_t text) {
    begin = text;
    characters = 0;
    size = part_size(left, num_threads);
  };
  for (size_t i = 0; i < texts.size(); ++i) {
    const size_t own = texts[i].size + kPerText;
    left -= own;
    if (const std::vector<Chunk> chunks = divide(texts[i], left); !chunks.empty()) {
      if (begin < i) parts.push_back({begin, i});
      for (const Chunk& chunk : chunks) parts.push_back({i, i + 1, true, chunk});
      begin_at(i + 1);
      continue;
    }
    characters += own;
    if (characters >= size) {
      parts.push_back({begin, i + 1});
      begin_at(i + 1);
    }
  }
  if (begin < texts.size()) parts.push_back({begin, texts.size()});
  return parts;
}

// Into one array.
template <class Id>
class RaggedSink final : public EncodedSink<Id> {
 public:
  RaggedSink(IdBuffer<Id>& ids, int64_t* offsets) : ids_(ids), offsets_(offsets) {}

  void take(std::span<const EncodedTexts<Id>> parts) override {
    for (const EncodedTexts<Id>& part : parts) {
      for (size_t i = part.begin; i < part.end; ++i) offsets_[i + 1] = offsets_[i] + part.counts[i];
      ids_.append(part.ids, static_cast<size_t>(offsets_[part.end] - offsets_[part.begin]));
    }
  }
  IdBuffer<Id>& joined() override { return ids_; }
  void take_joined(size_t text, size_t, bool complete) override {
    if (complete) offsets_[text + 1] = static_cast<int64_t>(ids_.size());
  }

 private:
  IdBuffer<Id>& ids_;
  int64_t* offsets_;
};

}  // namespace

size_t Tokenizer::threads_worth(const std::vector<Text>& texts, size_t num_threads) const {
  const size_t least = std::min(kWorthThreads, 2 * search_.chunk);
  size_t characters = 0;
  for (const Text& text : texts) characters += text.size;
  return characters < least ? 1 : std::max<size_t>(1, num_threads);
}

bool Tokenizer::divisible(const Text& text, const EncodeOptions& options) const {
  using Kind = TemplateItem::Kind;
  const auto& items = model_.spec.single;
  return text.size >= 2 * search_.chunk && search_.units && !options.encode_special_tokens &&
         chunks_possible(search_.chunk, model_, rules_) &&
         std::count_if(items.begin(), items.end(),
                       [](const TemplateItem& item) { return item.kind == Kind::kFirst; }) == 1;
}

template <class Id>
void Tokenizer::encode_batch(const std::vector<Text>& texts, const EncodeOptions& options,
                             size_t num_threads, EncodedSink<Id>& sink) const {
  num_threads = threads_worth(texts, num_threads);
  const std::vector<Part> parts = split(texts, num_threads, [&](const Text& text, size_t later) {
    if (num_threads == 1 || !divisible(text, options)) return std::vector<Chunk>();
    const auto size_of = [&](size_t left) {
      return std::min(part_size(left + later, num_threads), search_.chunk);
    };
    return chunks_of(text, size_of, model_, rules_);
  });
  std::vector<WorkspacePool::Lease> workspaces;
  const size_t workers = std::clamp<size_t>(parts.size(), 1, num_threads);
  workspaces.reserve(workers);
  for (size_t i = 0; i < workers; ++i) workspaces.push_back(lend_workspace());

  std::vector<int64_t> counts(texts.size());
  const auto encode_part = [&](size_t worker, size_t index, ChunkIds<Id>& found) {
    const Part& part = parts[index];
    Workspace& workspace = *workspaces[worker];
    if (part.is_chunk)
      return search_chunk(texts[part.begin], part.chunk, model_, workspace.units, found);
    for (size_t i = part.begin; i < part.end; ++i) {
      const size_t before = found.ids.size();
      encode_whole(texts[i], nullptr, options, workspace, found.ids);
      counts[i] = static_cast<int64_t>(found.ids.size() - before);
    }
  };

  LongText<Id> long_text(*this, options, *workspaces[0], sink.joined());
  std::vector<EncodedTexts<Id>> encoded;
  const auto take_encoded = [&] {
    if (!encoded.empty()) sink.take(encoded);
    encoded.clear();
  };
  const auto take_parts = [&](size_t begin, size_t end, const auto& found) {
    for (size_t index = begin; index < end; ++index) {
      const Part& part = parts[index];
      if (!part.is_chunk) {
        encoded.push_back({part.begin, part.end, found(index).ids.data(), counts.data()});
        continue;
      }
      take_encoded();
      const bool complete = long_text.append(texts[part.begin], part.chunk, found(index));
      if (complete || index + 1 == end) sink.take_joined(part.begin, part.chunk.end, complete);
    }
    take_encoded();
  };
  OrderedParts<ChunkIds<Id>>(parts.size()).run(workers, encode_part, take_parts);
}

template <class Id>
void Tokenizer::encode_ragged(const std::vector<Text>& texts, const EncodeOptions& options,
                              size_t num_threads, IdBuffer<Id>& out, int64_t* offsets) const {
  offsets[0] = 0;
  if (threads_worth(texts, num_threads) == 1) {
    const WorkspacePool::Lease workspace = lend_workspace();
    for (size_t i = 0; i < texts.size(); ++i) {
      encode_whole(texts[i], nullptr, options, *workspace, out);
      offsets[i + 1] = static_cast<int64_t>(out.size());
    }
    return;
  }
  RaggedSink<Id> sink(out, offsets);
  encode_batch(texts, options, num_threads, sink);
}

template void Tokenizer::encode_batch(const std::vector<Text>&, const EncodeOptions&, size_t,
                                      EncodedSink<uint16_t>&) const;
template void Tokenizer::encode_batch(const std::vector<Text>&, const EncodeOptions&, size_t,
                                      EncodedSink<uint32_t>&) const;
template void Tokenizer::encode_ragged(const std::vector<Text>&, const EncodeOptions&, size_t,
                                       IdBuffer<uint16_t>&, int64_t*) const;
template void Tokenizer::encode_ragged(const std::vector<Text>&, const EncodeOptions&, size_t,
                                       IdBuffer<uint32_t>&, int64_t*) const;

}  // namespace llmjp::tokenizer
