#include "tokenizer/added_tokens.h"

namespace llmjp::tokenizer {

void AddedTokens::add(std::u32string content, uint32_t id, bool special) {
  const char32_t first = content.front();
  if (first_characters_.find(first) == std::u32string::npos) first_characters_ += first;
  may_begin_[first % may_begin_.size()] = true;
  const auto place = std::partition_point(
      tokens_.begin(), tokens_.end(), [&](const Token& token) { return token.content <= content; });
  tokens_.insert(place, {std::move(content), id, special});
}

}  // namespace llmjp::tokenizer
