#include "tokenizer/spans.h"

#include <algorithm>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>

#include "tokenizer/helper_threads.h"
#include "tokenizer/utf8.h"

namespace llmjp::tokenizer {
namespace {

constexpr int64_t utf8_size(char32_t c) {
  return c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
}

size_t characters_of(std::string_view text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(), [](char byte) { return (static_cast<uint8_t>(byte) >> 6) != 2; }));
}

// Walks one text, segment by segment as Tokenizer does, and its ids beside it.
template <class Char, class Id>
class Walk {
 public:
  Walk(const Model& model, const EncodeOptions& options, SpanUnit unit, const Char* text,
       size_t size, const Id* ids, const Id* end, Span* spans)
      : model_(model),
        options_(options),
        unit_(unit),
        text_(text),
        size_(size),
        id_(ids),
        end_(end),
        span_(spans) {}

  // Writes the spans of the text's ids; returns how many there are.
  size_t run() {
    const Id* const first = id_;
    size_t done = 0;
    AddedTokens::Match match;
    for (size_t from = 0; model_.raw_tokens.find(text_, from, size_, match);) {
      from = match.end;
      if (match.special && options_.encode_special_tokens) continue;
      walk_segment(done, match.begin);
      put(match.begin, match.end);
      done = match.end;
    }
    walk_segment(done, size_);
    return static_cast<size_t>(id_ - first);
  }

 private:
  // text[begin, end) between added tokens. Positions in it count the "▁" before it.
  void walk_segment(size_t begin, size_t end) {
    if (begin == end) return;
    begin_ = begin;
    prefix_ = model_.spec.prefix_mark ? 1 : 0;
    const size_t length = end - begin + prefix_;
    if (model_.normalized_tokens.empty()) return walk_pieces(0, length);
    segment_.clear();
    for (size_t i = 0; i < length; ++i) segment_.push_back(at(i));
    size_t done = 0;
    AddedTokens::Match match;
    for (size_t from = 0; model_.normalized_tokens.find(segment_.data(), from, length, match);) {
      from = match.end;
      if (match.special && options_.encode_special_tokens) continue;
      walk_pieces(done, match.begin);
      put(in_text(match.begin), in_text(match.end));
      done = match.end;
    }
    walk_pieces(done, length);
  }

  void walk_pieces(size_t position, size_t end) {
    while (position < end) {
      if (id_ == end_) fail();
      const auto id = static_cast<uint32_t>(*id_);
      if (id >= model_.spec.pieces.size()) fail();
      if (id != model_.spec.unknown_id && spells(id, position, end)) {
        const size_t next = position + characters_of(model_.spec.pieces[id]);
        put(in_text(position), in_text(next));
        position = next;
      } else {
        position = id == model_.spec.unknown_id ? walk_unknown_id(position, end)
                                                : walk_bytes(position, end);
      }
    }
  }

  // A run of unknown characters, as bytes. The unknown piece spelled out may be part of it.
  size_t walk_bytes(size_t position, size_t end) {
    Span* const first = span_;
    const size_t begin = position;
    while (position < end && (position == begin || id_ == end_ || !spells(*id_, position, end))) {
      const size_t count = byte_count(position);
      if (count == 0) break;
      for (size_t i = 1; i < count; ++i) put(in_text(position), in_text(position));
      put(in_text(position), in_text(position + 1));
      ++position;
    }
    if (position == begin) fail();
    if (!model_.spec.decode_bytes_singly) {
      const Span run{first->begin, span_[-1].end};
      std::fill(first, span_, run);
    }
    return position;
  }

  // How many of the next ids are the bytes of the character at `position`: all of them or none.
  size_t byte_count(size_t position) const {
    uint8_t bytes[4];
    const auto length = static_cast<size_t>(encode_utf8(at(position), bytes));
    if (static_cast<size_t>(end_ - id_) < length) return 0;
    for (size_t i = 0; i < length; ++i) {
      if (static_cast<int64_t>(id_[i]) != model_.byte_ids[bytes[i]]) return 0;
    }
    return length;
  }

  // The unknown id stands for a whole run of what is no piece, the unknown piece spelled out
  // included: up to where the next id is spelled.
  size_t walk_unknown_id(size_t position, size_t end) {
    const size_t begin = position;
    const uint32_t unknown = model_.spec.unknown_id;
    const Id* const next = id_ + 1;
    do {
      position += spells(unknown, position, end) ? characters_of(model_.spec.pieces[unknown]) : 1;
    } while (position < end && !(next < end_ && spells(*next, position, end)));
    put(in_text(begin), in_text(position));
    return position;
  }

  // Whether the text reads as this piece from here on.
  bool spells(uint32_t id, size_t position, size_t end) const {
    if (id >= model_.spec.pieces.size() || model_.spec.searchable[id] == 0) return false;
    const std::string_view piece = model_.spec.pieces[id];
    for (size_t i = 0; i < piece.size(); ++position) {
      char32_t c = static_cast<uint8_t>(piece[i]);
      int length = 1;
      if (c >= 0x80) decode_utf8(piece.data() + i, piece.size() - i, c, length);
      if (position == end || at(position) != c) return false;
      i += static_cast<size_t>(length);
    }
    return !piece.empty();
  }

  char32_t at(size_t position) const {
    if (position < prefix_) return kSpaceMark;
    return model_.normalize(static_cast<char32_t>(text_[begin_ + position - prefix_]));
  }
  size_t in_text(size_t position) const { return begin_ + std::max(position, prefix_) - prefix_; }

  // The span of the next id. Spans begin in rising order.
  void put(size_t begin, size_t end) {
    if (id_ == end_) fail();
    *span_++ = {offset(begin), offset(end)};
    ++id_;
  }
  int64_t offset(size_t position) {
    if (unit_ == SpanUnit::kCharacters) return static_cast<int64_t>(position);
    while (counted_ < position) bytes_ += utf8_size(static_cast<char32_t>(text_[counted_++]));
    while (counted_ > position) bytes_ -= utf8_size(static_cast<char32_t>(text_[--counted_]));
    return bytes_;
  }

  [[noreturn]] static void fail() { throw std::logic_error("the ids are not those of this text"); }

  const Model& model_;
  const EncodeOptions& options_;
  SpanUnit unit_;
  const Char* text_;
  size_t size_;
  const Id* id_;
  const Id* end_;
  Span* span_;
  size_t begin_ = 0;   // of the segment
  size_t prefix_ = 0;  // characters before it that the text does not have
  std::u32string segment_;
  size_t counted_ = 0;  // characters of the text, in
  int64_t bytes_ = 0;   // so many bytes
};

}  // namespace

template <class Id>
void find_spans(const Model& model, const Text& text, const Text* second,
                const EncodeOptions& options, SpanUnit unit, const Id* ids, size_t count,
                Span* spans) {
  const Id* const end = ids + count;
  for (const TemplateItem& item : second == nullptr ? model.spec.single : model.spec.pair) {
    if (item.kind == TemplateItem::Kind::kToken) {
      if (!options.add_special_tokens) continue;
      *spans++ = {0, 0};
      ++ids;
      continue;
    }
    const Text& part = item.kind == TemplateItem::Kind::kFirst ? text : *second;
    const size_t walked = with_characters(part, [&](const auto* characters) {
      return Walk(model, options, unit, characters, part.size, ids, end, spans).run();
    });
    ids += walked;
    spans += walked;
  }
}

template <class Id>
void find_spans_of_batch(const Model& model, const std::vector<Text>& texts,
                         const EncodeOptions& options, SpanUnit unit, size_t num_threads,
                         const Id* ids, const int64_t* offsets, Span* spans) {
  const int64_t total = offsets[texts.size()];
  constexpr int64_t kWorthAThread = 1 << 14;  // ids
  const auto workers = static_cast<size_t>(
      std::clamp<int64_t>(total / kWorthAThread, 1, static_cast<int64_t>(num_threads)));
  const auto text_at = [&](size_t worker) {  // the first text of a worker
    if (worker == workers) return texts.size();
    const int64_t* const found =
        std::lower_bound(offsets, offsets + texts.size(),
                         total / static_cast<int64_t>(workers) * static_cast<int64_t>(worker));
    return static_cast<size_t>(found - offsets);
  };
  std::vector<std::exception_ptr> errors(workers);
  const std::function<void(size_t)> work = [&](size_t worker) {
    try {
      for (size_t i = text_at(worker); i < text_at(worker + 1); ++i) {
        find_spans(model, texts[i], nullptr, options, unit, ids + offsets[i],
                   static_cast<size_t>(offsets[i + 1] - offsets[i]), spans + offsets[i]);
      }
    } catch (...) {
      errors[worker] = std::current_exception();
    }
  };
  {
    const Helpers helpers(workers - 1, work);
    work(0);
    // Where the system has no more threads, this one does their share.
    for (size_t missing = helpers.count() + 1; missing < workers; ++missing) work(missing);
  }
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

template void find_spans(const Model&, const Text&, const Text*, const EncodeOptions&, SpanUnit,
                         const uint16_t*, size_t, Span*);
template void find_spans(const Model&, const Text&, const Text*, const EncodeOptions&, SpanUnit,
                         const uint32_t*, size_t, Span*);
template void find_spans_of_batch(const Model&, const std::vector<Text>&, const EncodeOptions&,
                                  SpanUnit, size_t, const uint16_t*, const int64_t*, Span*);
template void find_spans_of_batch(const Model&, const std::vector<Text>&, const EncodeOptions&,
                                  SpanUnit, size_t, const uint32_t*, const int64_t*, Span*);

}  // namespace llmjp::tokenizer
