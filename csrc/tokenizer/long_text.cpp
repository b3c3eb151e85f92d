#include "tokenizer/long_text.h"

namespace llmjp::tokenizer {
namespace {

constexpr size_t kLiteral = 6;  // characters of <0x41>, which nothing may divide

// The first place in (from, end) where the search may begin anew, or `end`.
template <class Char>
size_t find_cut(const Char* text, size_t from, size_t end, const UnitRules& rules) {
  for (size_t i = from; i < end; ++i) {
    if (rules.joined(text[i - 1], text[i])) continue;
    const size_t literal = i - std::min(i, kLiteral - 1);
    if (std::find(text + literal, text + i, Char{'<'}) == text + i) return i;
  }
  return end;
}

template <class Char>
std::vector<Chunk> find_chunks(const Char* text, size_t length,
                               const std::function<size_t(size_t)>& size_of, const Model& model,
                               const UnitRules& rules) {
  std::vector<Chunk> chunks;
  size_t begin = 0;
  size_t size = size_of(length);
  bool inside = false;
  const auto end_at = [&](size_t end, bool next_inside) {
    chunks.push_back({begin, end, inside});
    begin = end;
    size = size_of(length - end);
    inside = next_inside;
  };
  AddedTokens::Match match;
  for (size_t done = 0; done < length; done = match.end) {
    if (!model.raw_tokens.find(text, done, length, match)) match.begin = match.end = length;
    while (match.begin > begin + size) {
      const size_t from = std::max(begin + size, done + 1);
      const size_t cut = find_cut(text, from, match.begin, rules);
      if (cut == match.begin) break;
      end_at(cut, true);
    }
    if (match.end >= begin + size || match.end == length) end_at(match.end, false);
  }
  return chunks;
}

}  // namespace

std::vector<Chunk> chunks_of(const Text& text, const std::function<size_t(size_t)>& size_of,
                             const Model& model, const UnitRules& rules) {
  return with_characters(text, [&](const auto* characters) {
    return find_chunks(characters, text.size, size_of, model, rules);
  });
}

// A chunk's own sums must stay in the range where units are exact.
bool chunks_possible(size_t size, const Model& model, const UnitRules& rules) {
  return rules.usable() && model.normalized_tokens.empty() &&
         4.0 * static_cast<double>(size) * rules.largest_score() < rules.sum_limit();
}

template <class Id>
void search_chunk(const Text& text, const Chunk& chunk, const Model& model, UnitSearch& units,
                  ChunkIds<Id>& out) {
  with_characters(text, [&](const auto* characters) {
    bool inside = chunk.inside;
    out.all_inside = inside;
    const auto search = [&](size_t begin, size_t end) {
      if (inside) {
        units.run(characters + begin, end - begin, false, out.ids, &out.open);
      } else {
        const bool prefix = begin < end && model.spec.prefix_mark;
        out.end = units.run(characters + begin, end - begin, prefix, out.ids);
      }
    };
    size_t done = chunk.begin;
    AddedTokens::Match match;
    while (model.raw_tokens.find(characters, done, chunk.end, match)) {
      search(done, match.begin);
      out.ids.push(match.id);
      inside = out.all_inside = false;
      done = match.end;
    }
    search(done, chunk.end);
  });
}

template <class Id>
ChunkJoiner<Id>::ChunkJoiner(const Model& model, const UnitRules& rules)
    : model_(model), rules_(rules) {
  if (!rules.literals_apart()) return;  // byte ids are pieces that stand for themselves
  const auto [low, high] = std::minmax_element(model.byte_ids.begin(), model.byte_ids.end());
  first_byte_ = static_cast<uint32_t>(*low);
  byte_span_ = static_cast<uint32_t>(*high) - first_byte_;
}

// The score that an id adds to a sum. An unknown character's comes with the first of its bytes.
template <class Id>
double ChunkJoiner<Id>::score(Id id) const {
  const auto byte =
      std::find(model_.byte_ids.begin(), model_.byte_ids.end(), static_cast<int32_t>(id));
  if (byte == model_.byte_ids.end()) return model_.spec.scores[id];
  const bool continues = ((byte - model_.byte_ids.begin()) & 0xC0) == 0x80;
  return continues ? 0.0 : model_.spec.unknown_score;
}

template <class Id>
void ChunkJoiner<Id>::fold(const IdBuffer<Id>& ids) {
  const double* const scores = model_.spec.scores.data();
  double sum = path_.sum;
  for (size_t i = path_.summed; i < ids.size(); ++i) {
    const Id id = ids[i];
    sum += uint32_t{id} - first_byte_ > byte_span_ ? scores[id] : score(id);
  }
  path_ = {sum, ids.size()};
}

// Whether a chunk within a segment ends before its sum may have grown so large that a search by
// units is not exact any more.
template <class Id>
bool ChunkJoiner<Id>::within_limit(const Chunk& chunk, const IdBuffer<Id>& out) {
  const auto characters = static_cast<double>(chunk.end - chunk.begin);
  const auto within = [&] {
    const auto more = static_cast<double>(out.size() - path_.summed) + characters;
    return std::abs(path_.sum) + more * rules_.largest_score() < rules_.sum_limit();
  };
  if (within()) return true;
  fold(out);
  return within();
}

// A chunk beyond that limit: the plain search goes on with the sum to the segment's end.
template <class Id>
void ChunkJoiner<Id>::search_plainly(const Text& text, const Chunk& chunk,
                                     SequentialSearch& sequential, UnitSearch& units,
                                     IdBuffer<Id>& out) {
  AddedTokens::Match match;
  const bool ends = with_characters(text, [&](const auto* characters) {
    const bool found = model_.raw_tokens.find(characters, chunk.begin, chunk.end, match);
    const size_t length = (found ? match.begin : chunk.end) - chunk.begin;
    path_.sum = sequential.run(characters + chunk.begin, length, false, path_.sum, out);
    path_.summed = out.size();
    return found;
  });
  if (!ends) return;
  out.push(match.id);
  const Chunk rest{match.end, chunk.end, false};
  ChunkIds<Id> found;
  search_chunk(text, rest, model_, units, found);
  append(text, rest, found, sequential, units, out);
}

template <class Id>
void ChunkJoiner<Id>::append(const Text& text, const Chunk& chunk, const ChunkIds<Id>& found,
                             SequentialSearch& sequential, UnitSearch& units, IdBuffer<Id>& out) {
  if (chunk.inside) {
    if (!within_limit(chunk, out)) return search_plainly(text, chunk, sequential, units, out);
    size_t taken = 0;
    const char32_t* open = found.open.characters.data();
    for (const OpenStretches::Stretch& stretch : found.open.stretches) {
      out.append(found.ids.data() + taken, stretch.at - taken);
      taken = stretch.at;
      fold(out);
      path_.sum = sequential.run(open, stretch.length, false, path_.sum, out);
      path_.summed = out.size();
      open += stretch.length;
    }
    out.append(found.ids.data() + taken, found.ids.size() - taken);
    if (found.all_inside) return;
  } else {
    out.append(found.ids.data(), found.ids.size());
  }
  path_ = {found.end.sum, out.size() - found.ids.size() + found.end.summed};
}

template void search_chunk(const Text&, const Chunk&, const Model&, UnitSearch&,
                           ChunkIds<uint16_t>&);
template void search_chunk(const Text&, const Chunk&, const Model&, UnitSearch&,
                           ChunkIds<uint32_t>&);
template class ChunkJoiner<uint16_t>;
template class ChunkJoiner<uint32_t>;

}  // namespace llmjp::tokenizer
