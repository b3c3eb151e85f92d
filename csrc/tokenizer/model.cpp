#include "tokenizer/model.h"

#include <algorithm>
#include <cstdio>

namespace llmjp::tokenizer {
namespace {

std::u32string normalized(const Model& model, std::u32string text) {
  for (char32_t& c : text) c = model.normalize(c);
  if (model.spec.prefix_mark) text.insert(text.begin(), kSpaceMark);
  return text;
}

// Codes by falling frequency: frequent characters share cache lines, and the double array packs
// more tightly.
void assign_codes(const std::vector<std::u32string>& keys, CharacterCodes& codes) {
  std::unordered_map<char32_t, size_t> counts;
  for (const std::u32string& key : keys) {
    for (const char32_t c : key) ++counts[c];
  }
  std::vector<std::pair<char32_t, size_t>> order(counts.begin(), counts.end());
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return a.second != b.second ? a.second > b.second : a.first < b.first;
  });
  uint32_t code = CharacterCodes::kNone;
  for (const auto& entry : order) codes.set(entry.first, ++code);
}

}  // namespace

Model::Model(Specification specification) : spec(std::move(specification)) {
  id_of_token.reserve(spec.pieces.size() * 2);
  std::vector<std::u32string> keys;
  std::vector<int32_t> ids;
  keys.reserve(spec.pieces.size());
  ids.reserve(spec.pieces.size());
  for (size_t id = 0; id < spec.pieces.size(); ++id) {
    const std::string& piece = spec.pieces[id];
    id_of_token.emplace(piece, static_cast<uint32_t>(id));
    // A piece with a real space is never met where spaces become marks.
    const bool reachable = !spec.spaces_to_marks || piece.find(' ') == std::string::npos;
    if (piece.empty() || spec.searchable[id] == 0 || !reachable) continue;
    keys.push_back(to_utf32(piece));
    longest_piece = std::max(longest_piece, keys.back().size());
    ids.push_back(static_cast<int32_t>(id));
  }
  assign_codes(keys, codes);
  for (std::u32string& key : keys) {
    for (char32_t& c : key) c = codes[c];
  }
  trie.build(keys, ids);
  if (spec.spaces_to_marks) codes.set(U' ', codes[kSpaceMark]);

  for (size_t byte = 0; byte < byte_ids.size(); ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned>(byte));
    const auto found = id_of_token.find(name);
    byte_ids[byte] = found == id_of_token.end() ? -1 : static_cast<int32_t>(found->second);
  }

  is_special.assign(spec.total_size(), 0);
  for (const AddedToken& token : spec.added) {
    std::u32string content = to_utf32(token.content);
    if (token.normalized) content = normalized(*this, std::move(content));
    std::string name;
    for (const char32_t c : content) append_utf8(name, c);
    if (token.id >= spec.pieces.size() || name != token.content)
      added_names_.emplace(token.id, std::move(name));
    (token.normalized ? normalized_tokens : raw_tokens)
        .add(std::move(content), token.id, token.special);
    id_of_token.emplace(token.content, token.id);
  }
  for (const uint32_t id : spec.special_ids) is_special[id] = 1;
}

std::string_view Model::token(uint32_t id) const {
  if (const auto found = added_names_.find(id); found != added_names_.end()) return found->second;
  return id < spec.pieces.size() ? std::string_view(spec.pieces[id]) : std::string_view();
}

int32_t Model::find_piece(const std::u32string& text) const {
  int32_t node = Trie::kRoot;
  for (const char32_t c : text) {
    const uint32_t code = codes[c];
    if (code == CharacterCodes::kNone) return -1;
    node = trie.step(node, code);
    if (node < 0) return -1;
  }
  return trie.node(node).id;
}

}  // namespace llmjp::tokenizer
