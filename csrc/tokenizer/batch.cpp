// Batches of texts over threads: the parts of Tokenizer that have to do with more than one text.
#include <algorithm>

#include "tokenizer/long_text.h"
#include "tokenizer/ordered_parts.h"
#include "tokenizer/tokenizer.h"

namespace llmjp::tokenizer {
namespace {

// In characters: enough to be worth the start of a thread and the handing over, some 0.1 ms.
constexpr size_t kLeastPart = size_t{1} << 14;

// What one thread takes at a time: texts [begin, end), or one chunk of a long text.
struct Part {
  size_t begin;
  size_t end;
  bool is_chunk = false;
  Chunk chunk{};
};

}  // namespace

// A text whose chunks arrive in order.
template <class Id>
class Tokenizer::LongText {
 public:
  LongText(const Tokenizer& tokenizer, const EncodeOptions& options, Workspace& workspace)
      : tokenizer_(tokenizer),
        options_(options),
        workspace_(workspace),
        joiner_(tokenizer.model_, tokenizer.rules_) {}

  // True if the text is complete.
  bool append(const Text& text, const Chunk& chunk, const ChunkIds<Id>& found) {
    if (chunk.begin == 0) add_tokens(true);
    exact_ = exact_ && joiner_.append(chunk, found, workspace_.sequential, ids_);
    if (chunk.end < text.size) return false;
    if (exact_) {
      add_tokens(false);
    } else {  // beyond what units can do: from the beginning, in one go
      ids_.clear();
      tokenizer_.encode_whole(text, nullptr, options_, workspace_, ids_);
    }
    return true;
  }
  const IdBuffer<Id>& ids() const { return ids_; }
  void clear() {
    ids_ = {};
    exact_ = true;
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
        ids_.push(item.id);
      }
    }
  }

  const Tokenizer& tokenizer_;
  const EncodeOptions& options_;
  Workspace& workspace_;
  ChunkJoiner<Id> joiner_;
  IdBuffer<Id> ids_;
  bool exact_ = true;
};

namespace {

// Parts small enough that no thread is left with a long tail.
template <class Divide>
std::vector<Part> split(const std::vector<Text>& texts, size_t num_threads, const Divide& divide) {
  constexpr size_t kPerText = 16;  // what a text costs by itself, in characters
  constexpr size_t kMost = size_t{1} << 16;
  size_t total = 0;
  for (const Text& text : texts) total += text.size + kPerText;
  const size_t size = std::clamp(total / (8 * num_threads), kLeastPart, kMost);
  std::vector<Part> parts;
  parts.reserve(total / size + 1);
  size_t begin = 0;
  size_t characters = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (const std::vector<Chunk> chunks = divide(texts[i]); !chunks.empty()) {
      if (begin < i) parts.push_back({begin, i});
      for (const Chunk& chunk : chunks) parts.push_back({i, i + 1, true, chunk});
      begin = i + 1;
      characters = 0;
      continue;
    }
    characters += texts[i].size + kPerText;
    if (characters >= size) {
      parts.push_back({begin, i + 1});
      begin = i + 1;
      characters = 0;
    }
  }
  if (begin < texts.size()) parts.push_back({begin, texts.size()});
  return parts;
}

}  // namespace

bool Tokenizer::divisible(const Text& text, const EncodeOptions& options) const {
  using Kind = TemplateItem::Kind;
  const auto& items = model_.spec.single;
  return text.size >= 2 * search_.chunk && search_.units && !options.encode_special_tokens &&
         chunks_possible(search_.chunk, model_, rules_) &&
         std::count_if(items.begin(), items.end(),
                       [](const TemplateItem& item) { return item.kind == Kind::kFirst; }) == 1;
}

template <class Id>
void Tokenizer::encode_batch(
    const std::vector<Text>& texts, const EncodeOptions& options, size_t num_threads,
    const std::function<void(std::span<const EncodedTexts<Id>>)>& take) const {
  const std::vector<Part> parts = split(texts, num_threads, [&](const Text& text) {
    return num_threads > 1 && divisible(text, options)
               ? chunks_of(text, search_.chunk, model_, rules_)
               : std::vector<Chunk>();
  });
  std::vector<WorkspacePool::Lease> workspaces;
  const size_t workers = std::max<size_t>(1, std::min(num_threads, parts.size()));
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

  LongText<Id> long_text(*this, options, *workspaces[0]);
  std::vector<EncodedTexts<Id>> encoded;
  const auto take_encoded = [&] {
    if (!encoded.empty()) take(encoded);
    encoded.clear();
  };
  const auto take_parts = [&](size_t begin, size_t end, const auto& found) {
    for (size_t index = begin; index < end; ++index) {
      const Part& part = parts[index];
      if (!part.is_chunk) {
        encoded.push_back({part.begin, part.end, found(index).ids.data(), counts.data()});
      } else if (long_text.append(texts[part.begin], part.chunk, found(index))) {
        counts[part.begin] = static_cast<int64_t>(long_text.ids().size());
        encoded.push_back({part.begin, part.end, long_text.ids().data(), counts.data()});
        take_encoded();
        long_text.clear();
      }
    }
    take_encoded();
  };
  OrderedParts<ChunkIds<Id>>(parts.size()).run(workers, encode_part, take_parts);
}

template <class Id>
void Tokenizer::encode_ragged(const std::vector<Text>& texts, const EncodeOptions& options,
                              size_t num_threads, IdBuffer<Id>& out, int64_t* offsets) const {
  offsets[0] = 0;
  size_t characters = 0;
  for (const Text& text : texts) characters += text.size;
  if (num_threads <= 1 || characters < std::min(kLeastPart, 2 * search_.chunk)) {
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
