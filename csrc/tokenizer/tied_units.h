// Units that integer scores do not settle, because several paths have the greatest sum, and units
// that are too long for the ordinary memory: rulers such as "-----", for the most part.
//
// Rounding decides between paths of equal sums, and it depends on all that stands before. But which
// paths have the greatest integer sum depends on the unit alone, and no other path can win in
// doubles either. So the pieces on such paths ("edges") are remembered, and doubles are compared
// over these few alone, in the order of the plain search.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "tokenizer/id_buffer.h"
#include "tokenizer/model.h"
#include "tokenizer/unit_rules.h"

namespace llmjp::tokenizer {

class TiedUnits {
 public:
  static constexpr size_t kLongest = UnitRules::kLongestTied;  // in characters

  TiedUnits(const Model& model, const UnitRules& rules) : model_(model), rules_(rules) {}

  // A unit's edges, by rising start; valid until the next call.
  struct Edge {
    uint16_t start;
    uint16_t end;
    uint32_t id;
  };
  struct Unit {
    std::u16string characters;
    std::vector<Edge> edges;  // empty where the plain search has to do it
    bool one_path = false;
  };

  // kLongest characters at most.
  template <class Char>
  const Unit& find(const Char* characters, size_t length);

  // Appends the ids of a unit's best path from a place where the sum of doubles is `sum`; returns
  // the sum at its end.
  template <class Id>
  double append(const Unit& unit, double sum, IdBuffer<Id>& out);

 private:
  static constexpr size_t kSlots = 256;      // what collides replaces what is there
  static constexpr size_t kMostEdges = 512;  // 4 KB of memory a unit

  void solve(Unit& unit);

  const Model& model_;
  const UnitRules& rules_;
  std::vector<Unit> slots_;
  std::vector<Edge> met_;
  struct Best {
    double sum;
    uint32_t edge;
    bool reached;
  };
  std::array<Best, kLongest + 1> best_;
};

}  // namespace llmjp::tokenizer
