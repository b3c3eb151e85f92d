#include "tokenizer/tied_units.h"

#include <algorithm>
#include <limits>

namespace llmjp::tokenizer {

template <class Char>
const TiedUnits::Unit& TiedUnits::find(const Char* characters, size_t length) {
  if (slots_.empty()) slots_.resize(kSlots);
  uint32_t hash = static_cast<uint32_t>(length);
  for (size_t i = 0; i < length; ++i) hash = hash * 31 + characters[i];
  Unit& unit = slots_[hash * 0x9E3779B1U >> 24];
  static_assert(kSlots == 1 << 8);
  if (unit.characters.size() != length ||
      !std::equal(characters, characters + length, unit.characters.begin())) {
    unit.characters.assign(characters, characters + length);
    solve(unit);
  }
  return unit;
}

void TiedUnits::solve(Unit& unit) {
  const size_t length = unit.characters.size();
  constexpr int64_t kUnreached = std::numeric_limits<int64_t>::min() / 2;
  std::array<int64_t, kLongest + 1> greatest;
  std::fill_n(greatest.begin(), length + 1, kUnreached);
  greatest[0] = 0;
  unit.edges.clear();
  std::array<uint32_t, kLongest + 1> codes;
  for (size_t i = 0; i < length; ++i) codes[i] = model_.codes[unit.characters[i]];
  codes[length] = CharacterCodes::kNone;
  // All pieces in the unit, in the order in which the plain search meets them.
  std::vector<Edge>& met = met_;
  met.clear();
  const Trie::Node* const nodes = model_.trie.nodes();
  const int32_t* const costs = rules_.costs();
  for (size_t start = 0; start < length; ++start) {
    int32_t node = Trie::kRoot;
    bool alone = false;
    for (size_t i = start; codes[i] != CharacterCodes::kNone; ++i) {
      const int32_t child = nodes[node].base + static_cast<int32_t>(codes[i]);
      if (nodes[child].parent != node) break;
      node = child;
      const int32_t id = nodes[node].id;
      if (id < 0) continue;
      alone |= i == start;
      greatest[i + 1] = std::max(greatest[i + 1], greatest[start] + costs[id]);
      met.push_back(
          {static_cast<uint16_t>(start), static_cast<uint16_t>(i + 1), static_cast<uint32_t>(id)});
    }
    if (!alone) return;  // an unknown character may be on the path
  }
  // From the end back: which of them are on a path of the greatest sum.
  std::array<bool, kLongest + 1> on_path{};
  on_path[length] = true;
  for (auto edge = met.rbegin(); edge != met.rend(); ++edge) {
    if (!on_path[edge->end] || greatest[edge->start] + costs[edge->id] != greatest[edge->end])
      continue;
    on_path[edge->start] = true;
    unit.edges.push_back(*edge);
  }
  if (unit.edges.size() > kMostEdges) unit.edges.clear();
  unit.edges.shrink_to_fit();
  std::reverse(unit.edges.begin(), unit.edges.end());
  const auto ends =
      static_cast<size_t>(std::count(on_path.begin() + 1, on_path.begin() + length + 1, true));
  unit.one_path = unit.edges.size() == ends;
}

template <class Id>
double TiedUnits::append(const Unit& unit, double sum, IdBuffer<Id>& out) {
  const size_t length = unit.characters.size();
  const double* const scores = model_.spec.scores.data();
  for (size_t i = 0; i <= length; ++i) best_[i].reached = false;
  best_[0] = {sum, 0, true};
  for (size_t i = 0; i < unit.edges.size(); ++i) {
    const Edge& edge = unit.edges[i];
    const double candidate = scores[edge.id] + best_[edge.start].sum;
    Best& end = best_[edge.end];
    if (!end.reached || candidate > end.sum) end = {candidate, static_cast<uint32_t>(i), true};
  }
  Id* const ids = out.reserve(length);
  size_t count = 0;
  for (size_t i = length; i > 0; i = unit.edges[best_[i].edge].start)
    ids[count++] = static_cast<Id>(unit.edges[best_[i].edge].id);
  std::reverse(ids, ids + count);
  out.commit(count);
  return best_[length].sum;
}

template const TiedUnits::Unit& TiedUnits::find(const uint8_t*, size_t);
template const TiedUnits::Unit& TiedUnits::find(const char16_t*, size_t);
template double TiedUnits::append(const Unit&, double, IdBuffer<uint16_t>&);
template double TiedUnits::append(const Unit&, double, IdBuffer<uint32_t>&);

}  // namespace llmjp::tokenizer
