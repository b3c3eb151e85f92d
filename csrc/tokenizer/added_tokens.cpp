#include "tokenizer/added_tokens.h"

#include <algorithm>

namespace llmjp::tokenizer {

void AddedTokens::add(std::u32string content, uint32_t id, bool special) {
  if (first_characters_.find(content.front()) == std::u32string::npos)
    first_characters_ += content.front();
  const auto place = std::find_if(tokens_.begin(), tokens_.end(), [&](const Token& token) {
    return token.content.size() < content.size();
  });
  tokens_.insert(place, {std::move(content), id, special});
}

}  // namespace llmjp::tokenizer
