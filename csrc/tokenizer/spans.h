// Where in the text each id comes from, found from the ids afterwards: pieces have known lengths,
// added tokens are found again, and bytes name the unknown characters that they are of. So the
// search does nothing for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace llmjp::tokenizer {

enum class SpanUnit { kCharacters, kBytes };  // bytes: of the text as UTF-8

// Half open, in the text that the id is from. An id that the template adds has the span 0, 0; the
// "▁" before a segment has no characters; a "▁" of the text has those of its space.
struct Span {
  int64_t begin;
  int64_t end;
};
static_assert(sizeof(Span) == 2 * sizeof(int64_t));

// Writes the spans of ids[0, count), which are what encode() gave for the text or the pair.
// Hugging Face `tokenizers` gives each byte of a run of unknown characters the whole run;
// SentencePiece gives the last byte of each character that character, and the others nothing.
template <class Id>
void find_spans(const Model& model, const Text& text, const Text* second,
                const EncodeOptions& options, SpanUnit unit, const Id* ids, size_t count,
                Span* spans);

// The same of texts over threads: ids[offsets[i], offsets[i + 1]) belong to texts[i].
template <class Id>
void find_spans_of_batch(const Model& model, const std::vector<Text>& texts,
                         const EncodeOptions& options, SpanUnit unit, size_t num_threads,
                         const Id* ids, const int64_t* offsets, Span* spans);

}  // namespace llmjp::tokenizer
