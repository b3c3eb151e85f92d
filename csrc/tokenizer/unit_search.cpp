#include "tokenizer/unit_search.h"

#include <bit>
#include <cmath>
#include <limits>

#include "tokenizer/find_character.h"

namespace llmjp::tokenizer {
namespace {

constexpr size_t kLiteral = 6;  // characters of <0x41>

// The first byte piece spelled out at or after `from`, or size.
template <class Char>
size_t find_literal(const Char* text, size_t from, size_t size) {
  const auto is_digit = [](Char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'); };
  for (;; ++from) {
    from = find_character(text, from, size, Char{'<'});
    if (size - from < kLiteral) return size;
    const Char* const at = text + from;
    if (at[1] == '0' && at[2] == 'x' && is_digit(at[3]) && is_digit(at[4]) && at[5] == '>')
      return from;
  }
}

}  // namespace

template <class Char, class Id>
PathSum UnitSearch::run(const Char* text, size_t size, bool prefix, IdBuffer<Id>& out,
                        OpenStretches* open) {
  Segment<Id> segment{out, 0.0, out.size(), open};
  if (size == 0 && !prefix) return {segment.sum, segment.summed};
  single_memo_.allocate<Id>();
  short_memo_.allocate<Id>();
  medium_memo_.allocate<Id>();
  long_memo_.allocate();
  if constexpr (sizeof(Char) == 4) {
    run_wide(text, size, prefix, segment);
  } else {
    run_between_literals(text, size, prefix, segment);
  }
  return {segment.sum, segment.summed};
}

// Characters beyond U+FFFF stand alone; the text between them is copied, in parts of bounded size.
template <class Id>
void UnitSearch::run_wide(const char32_t* text, size_t size, bool prefix, Segment<Id>& segment) {
  if (!rules_.wide_alone()) return search_plainly(text, size, prefix, segment);
  constexpr size_t kPart = size_t{1} << 15;
  for (size_t begin = 0; begin < size || prefix;) {
    narrowed_.clear();
    size_t end = begin;
    for (; end < size && text[end] <= 0xFFFF && end - begin < kPart; ++end)
      narrowed_.push_back(static_cast<char16_t>(text[end]));
    if (end < size && text[end] <= 0xFFFF) {  // neither inside a unit nor inside <0x41>
      const auto cut_at = [&](size_t i) {
        return !rules_.joined(text[i - 1], text[i]) &&
               std::find(text + i - kLiteral, text + i, U'<') == text + i;
      };
      while (end > begin + kLiteral && !cut_at(end)) --end;
      if (end == begin + kLiteral)
        return search_plainly(text + begin, size - begin, prefix, segment);
      narrowed_.resize(end - begin);
    }
    run_between_literals(narrowed_.data(), narrowed_.size(), prefix, segment);
    prefix = false;
    for (begin = end; begin < size && text[begin] > 0xFFFF; ++begin)
      append_unit(text + begin, 1, segment);
  }
}

template <class Char, class Id>
void UnitSearch::run_between_literals(const Char* text, size_t size, bool prefix,
                                      Segment<Id>& segment) {
  size_t done = 0;
  if (rules_.literals_apart()) {
    for (size_t from; (from = find_literal(text, done, size)) < size;) {
      run_units(text + done, from - done, prefix, segment);
      prefix = false;
      done = from + kLiteral;
      while (done < size && rules_.joined(text[done - 1], text[done])) ++done;
      search_plainly(text + from, done - from, false, segment);
    }
  }
  run_units(text + done, size - done, prefix, segment);
}

template <class Char, class Id>
void UnitSearch::run_units(const Char* text, size_t size, bool prefix, Segment<Id>& segment) {
  constexpr size_t kReadable = 16 / sizeof(Char);  // characters that a key is read from
  if (size <= kShortText) {
    // A copy can be read beyond its end, and has the "▁" where any other character is.
    auto& copy = copies_.get<Char>();
    copy[0] = Char{' '};
    const size_t mark = prefix ? 1 : 0;
    std::copy_n(text, size, copy.data() + mark);
    return run_readable(copy.data(), size + mark, 0, size + mark, segment);
  }
  const size_t begin = prefix ? run_first(text, size, segment) : 0;
  run_readable(text, size, begin, size - kReadable, segment);
}

// The units of text[begin, size). Keys may be read where they begin at or before `last_readable`.
template <class Char, class Id>
void UnitSearch::run_readable(const Char* text, size_t size, size_t begin, size_t last_readable,
                              Segment<Id>& segment) {
  constexpr size_t kShortKey = ShortUnitMemo::kKeyBytes / sizeof(Char);
  constexpr size_t kMediumKey = MediumUnitMemo::kKeyBytes / sizeof(Char);
  constexpr size_t kReadable = 16 / sizeof(Char);
  if (begin == size) return;
  IdBuffer<Id>& out = segment.out;
  std::array<Char, 2 * kReadable> tail{};  // a copy of what is not readable in its place
  std::copy_n(text + last_readable, size - last_readable, tail.data());
  const auto readable = [&](size_t from) {
    return from <= last_readable ? text + from : tail.data() + (from - last_readable);
  };
  // The number of ids that a memo has for a unit, written to `ids`; kTied or kTooMany if none.
  const auto remembered = [](const auto* entry, Id* ids) -> uint16_t {
    if (entry == nullptr) return kTooMany;
    entry->copy_ids(ids);
    return entry->count;
  };
  const auto look_up = [&](size_t from, size_t length, Id* ids) -> uint16_t {
    const Char* const unit = readable(from);
    if (length <= kShortKey) {
      return remembered(short_memo_.find<Id>(ShortUnitMemo::Key::read(unit, length)), ids);
    }
    return remembered(medium_memo_.find<Id>(MediumUnitMemo::Key::read(unit, length)), ids);
  };
  for (size_t block = begin + 1;; block += kBlock) {
    const size_t count = std::min(kBlock, size - block);
    uint64_t ends = cuts_.find(text, block, count);
    if (count < kBlock) ends |= uint64_t{1} << count;
    Id* first = out.reserve(kBlockIds);
    Id* ids = first;
    for (; ends != 0; ends &= ends - 1) {
      const size_t end = block + static_cast<size_t>(std::countr_zero(ends));
      const Char* const unit = text + begin;
      const size_t length = end - begin;
      const size_t unit_begin = begin;
      begin = end;
      if (length == 1) {
        const Id found = single_memo_(static_cast<char16_t>(unit[0]), Id{});
        *ids = static_cast<Id>(found - 1);
        if (found != 0) {
          ++ids;
          continue;
        }
      }
      // The order of conditions is that of how well processors guess them.
      if (unit[0] == Char{' '} && length > 2 && unit[1] == Char{' '}) {
        size_t spaces = 2;
        while (spaces < length && unit[spaces] == Char{' '}) ++spaces;
        const size_t left_out = spaces - 2;
        if (spaces < run_ids_.size() && length - left_out <= kMediumKey) {
          if (spaces == length) {
            *ids++ = static_cast<Id>(run_ids_[spaces]);
            continue;
          }
          const uint16_t found = look_up(unit_begin + left_out, length - left_out, ids);
          if (found < kTooMany && static_cast<char32_t>(unit[spaces]) != kSpaceMark) {
            ids[0] = with_spaces(ids[0], left_out);
            ids += found;
            continue;
          }
        }
      } else if (length <= kMediumKey) {
        const uint16_t found = look_up(unit_begin, length, ids);
        if (found < kTooMany) {
          ids += found;
          continue;
        }
      }
      out.commit(static_cast<size_t>(ids - first));
      append_unit(unit, length, segment);
      first = ids = out.reserve(kBlockIds);
    }
    out.commit(static_cast<size_t>(ids - first));
    if (count < kBlock) return;
    const auto within_limit = [&] {
      const auto more = static_cast<double>(out.size() - segment.summed + kBlockIds);
      return std::abs(segment.sum) + more * rules_.largest_score() < rules_.sum_limit();
    };
    if (!within_limit()) {
      fold(segment);
      if (!within_limit() || std::abs(segment.sum) > rules_.sum_limit() / 2) {
        return search_plainly(text + begin, size - begin, false, segment);
      }
    }
  }
}

// The first unit, which begins with the "▁" before the text. Returns how much of the text it takes.
template <class Char, class Id>
size_t UnitSearch::run_first(const Char* text, size_t size, Segment<Id>& segment) {
  size_t end = 0;
  if (size > 0 && rules_.joined(kSpaceMark, static_cast<char32_t>(text[0]))) {
    for (end = 1; end < size && rules_.joined(text[end - 1], text[end]);) ++end;
  }
  if (end >= kLongestUnit) {
    search_plainly(text, end, true, segment);
  } else {
    Char unit[kLongestUnit];
    unit[0] = Char{' '};
    std::copy_n(text, end, unit + 1);
    append_unit(unit, end + 1, segment);
  }
  return end;
}

template <class Char, class Id>
void UnitSearch::append_unit(const Char* unit, size_t length, Segment<Id>& segment) {
  IdBuffer<Id>& out = segment.out;
  const auto c = static_cast<char32_t>(unit[0]);
  if (length == 1 && !is_known(c)) return append_unknown(c, segment);
  size_t spaces = 0;
  while (spaces < length && unit[spaces] == Char{' '}) ++spaces;
  if (spaces > 2 && spaces < run_ids_.size()) {
    if (spaces == length) return out.push(run_ids_[spaces]);
    if (static_cast<char32_t>(unit[spaces]) != kSpaceMark) {
      const size_t at = out.size();
      const size_t left_out = spaces - 2;
      if (!append_exact(unit + left_out, length - left_out, out))
        return append_unsettled(unit, length, segment);
      out[at] = with_spaces(out[at], left_out);
      return;
    }
  }
  if (!append_exact(unit, length, out)) append_unsettled(unit, length, segment);
}

// A unit that integer scores do not settle, or a long one.
template <class Char, class Id>
void UnitSearch::append_unsettled(const Char* unit, size_t length, Segment<Id>& segment) {
  if (segment.open != nullptr) return search_plainly(unit, length, false, segment);
  if constexpr (sizeof(Char) < 4) {
    const auto within_limit = [&] {
      const auto more = static_cast<double>(segment.out.size() - segment.summed);
      return std::abs(segment.sum) + more * rules_.largest_score() < rules_.long_sum_limit();
    };
    if (length <= TiedUnits::kLongest) {
      const TiedUnits::Unit& known = tied_.find(unit, length);
      if (!within_limit()) fold(segment);
      if (!known.edges.empty() && within_limit()) {
        if (known.one_path) {
          for (const TiedUnits::Edge& edge : known.edges) segment.out.push(edge.id);
        } else {
          segment.sum = tied_.append(known, fold(segment), segment.out);
          segment.summed = segment.out.size();
        }
        return;
      }
    }
  }
  search_plainly(unit, length, false, segment);
}

// Appends the ids of a unit, from memory or by a search; false if neither can tell them.
template <class Char, class Id>
bool UnitSearch::append_exact(const Char* unit, size_t length, IdBuffer<Id>& out) {
  if (length > kLongestUnit) return false;
  const size_t bytes = length * sizeof(Char);
  if (length == 1 && sizeof(Char) < 4) {
    Id* const ids = out.reserve(kBlockIds);
    if (solve(unit, length, ids) == kTied) return false;
    single_memo_(static_cast<char16_t>(unit[0]), Id{}) = static_cast<Id>(ids[0] + 1);
    out.commit(1);
    return true;
  }
  uint16_t found = kTooMany;
  if (bytes <= MediumUnitMemo::kKeyBytes) {
    std::array<Char, 16 / sizeof(Char)> text{};
    std::copy_n(unit, length, text.data());
    if (bytes <= ShortUnitMemo::kKeyBytes) {
      const auto key = ShortUnitMemo::Key::read(text.data(), length);
      found = append_through(short_memo_, key, unit, length, out);
    } else {
      const auto key = MediumUnitMemo::Key::read(text.data(), length);
      found = append_through(medium_memo_, key, unit, length, out);
    }
  }
  if (found == kTooMany && bytes <= LongUnitMemo::kKeyBytes)
    found = append_through(long_memo_, LongUnitMemo::key(unit, length), unit, length, out);
  if (found == kTooMany) {
    found = solve(unit, length, out.reserve(kBlockIds));
    if (found != kTied) out.commit(found);
  }
  return found != kTied;
}

// Appends the ids of a unit, from a memo or by a search; returns their number. kTied if neither can
// tell them, kTooMany if the memo only knows that it cannot hold them.
template <class Memo, class Char, class Id>
uint16_t UnitSearch::append_through(Memo& memo, const typename Memo::Key& key, const Char* unit,
                                    size_t length, IdBuffer<Id>& out) {
  Id* const ids = out.reserve(kBlockIds);
  uint16_t count;
  if (const auto* const entry = memo.template find<Id>(key); entry != nullptr) {
    count = entry->count;
    entry->copy_ids(ids);
  } else {
    count = solve(unit, length, ids);
    memo.insert(key, ids, count);
  }
  if (count < kTooMany) out.commit(count);
  return count;
}

template <class Id>
void UnitSearch::append_unknown(char32_t c, Segment<Id>& segment) {
  if (is_surrogate(c)) throw LoneSurrogate();
  if (segment.open == nullptr) {
    segment.sum = fold(segment) + model_.spec.unknown_score;
  } else if (!rules_.literals_apart()) {
    return segment.open->add(&c, 1, segment.out.size());
  }
  uint8_t bytes[4];
  const int length = encode_utf8(model_.normalize(c), bytes);
  for (int i = 0; i < length; ++i)
    segment.out.push(static_cast<uint32_t>(model_.byte_ids[bytes[i]]));
  segment.summed = segment.out.size();
}

// The ids of the best path through a unit, and their number; kTied if another path is as good and
// rounding decides between them, or if the path may need unknown characters.
template <class Char, class Id>
uint16_t UnitSearch::solve(const Char* unit, size_t length, Id* ids) const {
  struct Best {
    int64_t cost;
    int32_t id;
    uint8_t length;  // of the last piece
    bool tied;
  };
  std::array<Best, kLongestUnit + 1> best;
  // A position that no path leads to counts as tied. All units of sound tables have a path.
  constexpr int64_t kUnreached = std::numeric_limits<int64_t>::min() / 2;
  std::array<uint32_t, kLongestUnit> codes;
  for (size_t i = 0; i < length; ++i) {
    codes[i] = model_.codes[static_cast<char32_t>(unit[i])];
    if (codes[i] == CharacterCodes::kNone) return kTied;
    if (!rules_.all_alone() && !is_known(static_cast<char32_t>(unit[i]))) return kTied;
    best[i + 1] = {kUnreached, 0, 1, true};
  }
  best[0] = {0, 0, 0, false};
  const Trie::Node* const nodes = model_.trie.nodes();
  const int32_t* const costs = rules_.costs();
  const bool exact = rules_.exact_scores();
  for (size_t start = 0; start < length; ++start) {
    const int64_t so_far = best[start].cost;
    int32_t node = Trie::kRoot;
    for (size_t i = start; i < length; ++i) {
      const int32_t child = nodes[node].base + static_cast<int32_t>(codes[i]);
      if (nodes[child].parent != node) break;
      node = child;
      const int32_t id = nodes[node].id;
      if (id < 0) continue;
      const int64_t cost = so_far + costs[id];
      Best& end = best[i + 1];
      if (cost > end.cost) {
        end = {cost, id, static_cast<uint8_t>(i + 1 - start), false};
      } else if (cost == end.cost) {
        end.tied = !exact;
      }
    }
  }
  size_t count = 0;
  for (size_t i = length; i > 0; i -= best[i].length, ++count) {
    if (best[i].tied) return kTied;
    ids[count] = static_cast<Id>(best[i].id);
  }
  std::reverse(ids, ids + count);
  return static_cast<uint16_t>(count);
}

template PathSum UnitSearch::run(const uint8_t*, size_t, bool, IdBuffer<uint16_t>&, OpenStretches*);
template PathSum UnitSearch::run(const char16_t*, size_t, bool, IdBuffer<uint16_t>&,
                                 OpenStretches*);
template PathSum UnitSearch::run(const char32_t*, size_t, bool, IdBuffer<uint16_t>&,
                                 OpenStretches*);
template PathSum UnitSearch::run(const uint8_t*, size_t, bool, IdBuffer<uint32_t>&, OpenStretches*);
template PathSum UnitSearch::run(const char16_t*, size_t, bool, IdBuffer<uint32_t>&,
                                 OpenStretches*);
template PathSum UnitSearch::run(const char32_t*, size_t, bool, IdBuffer<uint32_t>&,
                                 OpenStretches*);

}  // namespace llmjp::tokenizer
