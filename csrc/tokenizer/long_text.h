// One long text searched in chunks by several threads, with the ids of a search from left to right.
//
// Chunks begin where nothing reaches across: behind an added token, or at a cut within a segment.
// Units in between have the same ids wherever the search begins, but for ties, which the rounding
// of the sum since the segment's first character decides (see unit_search.h). A chunk that begins
// within a segment does not know that sum. It leaves open what depends on it; when the chunks are
// joined in order, the sum is made up for and the open stretches are searched then. Chunks without
// ties, nearly all of most texts, cost no more than their copying there.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "tokenizer/added_tokens.h"
#include "tokenizer/id_buffer.h"
#include "tokenizer/model.h"
#include "tokenizer/sequential_search.h"
#include "tokenizer/text.h"
#include "tokenizer/unit_rules.h"
#include "tokenizer/unit_search.h"

namespace llmjp::tokenizer {

// Characters [begin, end) of a text.
struct Chunk {
  size_t begin;
  size_t end;
  bool inside;  // begins within a segment
};

// Chunks of size_of(characters left) characters, or of as many more as it takes to a place where
// one may end.
std::vector<Chunk> chunks_of(const Text& text, const std::function<size_t(size_t)>& size_of,
                             const Model& model, const UnitRules& rules);

// Whether the vocabulary allows chunks of so many characters.
bool chunks_possible(size_t size, const Model& model, const UnitRules& rules);

// The ids of a chunk.
template <class Id>
struct ChunkIds {
  void clear() {
    ids.clear();
    open.clear();
  }

  IdBuffer<Id> ids;         // what is open left out
  OpenStretches open;       // of the segment that the chunk begins within
  bool all_inside = false;  // the chunk is of this one segment
  PathSum end;              // of the segment that the chunk ends in, unless all_inside
};

template <class Id>
void search_chunk(const Text& text, const Chunk& chunk, const Model& model, UnitSearch& units,
                  ChunkIds<Id>& out);

// Joins the chunks of a text in order.
template <class Id>
class ChunkJoiner {
 public:
  ChunkJoiner(const Model& model, const UnitRules& rules);

  // Appends a chunk's ids.
  void append(const Text& text, const Chunk& chunk, const ChunkIds<Id>& found,
              SequentialSearch& sequential, UnitSearch& units, IdBuffer<Id>& out);

 private:
  bool within_limit(const Chunk& chunk, const IdBuffer<Id>& out);
  void search_plainly(const Text& text, const Chunk& chunk, SequentialSearch& sequential,
                      UnitSearch& units, IdBuffer<Id>& out);
  void fold(const IdBuffer<Id>& ids);
  double score(Id id) const;

  const Model& model_;
  const UnitRules& rules_;
  // Ids of byte pieces that stand for unknown characters lie so far from the first one, at most.
  uint32_t first_byte_ = std::numeric_limits<uint32_t>::max();
  uint32_t byte_span_ = 0;
  PathSum path_;  // of the segment that the text so far ends in
};

}  // namespace llmjp::tokenizer
