#include "tokenizer/pieces.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <string>

#include "tokenizer/json.h"
#include "tokenizer/utf8.h"

namespace llmjp::tokenizer {

void Pieces::push_back(std::string_view piece) {
  if (piece.size() >= std::numeric_limits<uint32_t>::max() - texts_.size())
    throw FormatError("the vocabulary's texts are larger than 4 GiB");
  texts_.append(piece.data(), piece.size());
  ends_.push_back(static_cast<uint32_t>(texts_.size()));
}

void Pieces::check() const {
  if (!std::is_sorted(ends_.begin(), ends_.end()) ||
      (ends_.empty() ? 0 : ends_[ends_.size() - 1]) != texts_.size())
    throw FormatError("pieces lie outside of their texts");
  bool whole = is_utf8({texts_.data(), texts_.size()});
  for (const uint32_t end : ends_)
    whole &= end == texts_.size() || !is_utf8_continuation(static_cast<uint8_t>(texts_[end]));
  if (!whole) throw FormatError("pieces that are not valid UTF-8");
}

uint64_t PieceIds::hash(std::string_view text) {
  constexpr uint64_t kOdd = 0x9E3779B97F4A7C15;  // bits without a pattern
  uint64_t sum = text.size() * kOdd;
  for (size_t i = 0; i < text.size(); i += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, text.data() + i, std::min(sizeof word, text.size() - i));
    sum = (std::rotl(sum, 27) ^ word) * kOdd;
  }
  return sum ^ sum >> 32;
}

void PieceIds::build(const Pieces& pieces) {
  std::vector<uint32_t> slots(std::bit_ceil(2 * pieces.size() + 2), kEmpty);
  const size_t mask = slots.size() - 1;
  for (size_t id = 0; id < pieces.size(); ++id) {
    size_t slot = hash(pieces[id]) & mask;
    for (; slots[slot] != kEmpty; slot = (slot + 1) & mask) {
      if (pieces[slots[slot]] == pieces[id]) {
        throw FormatError("piece " + std::to_string(id) + " (\"" + std::string(pieces[id]) +
                          "\") appears twice in the vocabulary");
      }
    }
    slots[slot] = static_cast<uint32_t>(id);
  }
  slots_ = std::move(slots);
}

int64_t PieceIds::find(const Pieces& pieces, std::string_view text) const {
  const size_t mask = slots_.size() - 1;
  for (size_t slot = hash(text) & mask; slots_[slot] != kEmpty; slot = (slot + 1) & mask) {
    if (pieces[slots_[slot]] == text) return slots_[slot];
  }
  return -1;
}

void PieceIds::check(const Pieces& pieces) const {
  const auto size = static_cast<uint32_t>(pieces.size());
  uint32_t empty = 0;
  uint32_t outside = 0;
  for (const uint32_t id : slots_) {  // one pass without a branch
    empty += id == kEmpty ? 1 : 0;
    outside += id >= size ? 1 : 0;
  }
  if (!std::has_single_bit(slots_.size()) || empty == 0 || outside != empty)
    throw FormatError("the table of pieces' ids leads outside of the vocabulary");
}

}  // namespace llmjp::tokenizer
