#include "tokenizer/json.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <utility>

#include "tokenizer/utf8.h"

namespace llmjp::tokenizer {
namespace {

constexpr int kMaxDepth = 64;
constexpr int kMaxPower = 308;
constexpr size_t kMaxMembers = 4096;  // looking a key up is linear; no tokenizer.json comes near

const std::array<double, kMaxPower + 1>& powers_of_ten() {
  static const std::array<double, kMaxPower + 1> table = [] {
    std::array<double, kMaxPower + 1> powers;
    for (int i = 0; i <= kMaxPower; ++i) {
      powers[static_cast<size_t>(i)] = std::strtod(("1e" + std::to_string(i)).c_str(), nullptr);
    }
    return powers;
  }();
  return table;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Collects digits as serde_json does: the integer that holds them stops growing where it would
// overflow.
struct Decimal {
  uint64_t digits = 0;
  int64_t exponent = 0;
  bool full = false;

  bool push(char c) {
    const uint64_t digit = static_cast<uint64_t>(c - '0');
    constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();
    if (full || digits > kMax / 10 || (digits == kMax / 10 && digit > kMax % 10)) {
      full = true;
      return false;
    }
    digits = digits * 10 + digit;
    return true;
  }

  double value() const {
    double result = static_cast<double>(digits);
    int64_t remaining = exponent;
    while (remaining < -kMaxPower && result != 0.0) {
      result /= powers_of_ten()[kMaxPower];
      remaining += kMaxPower;
    }
    if (result == 0.0) return 0.0;
    if (remaining > kMaxPower) return std::numeric_limits<double>::infinity();
    const double power = powers_of_ten()[static_cast<size_t>(std::abs(remaining))];
    return remaining < 0 ? result / power : result * power;
  }
};

}  // namespace

const JsonValue* JsonValue::find(std::string_view key) const {
  for (const auto& [name, value] : members) {
    if (name == key) return &value;
  }
  return nullptr;
}

std::string JsonValue::summary() const {
  switch (type) {
    case Type::kNull:
      return "null";
    case Type::kBool:
      return boolean ? "true" : "false";
    case Type::kNumber:
      return std::to_string(number);
    case Type::kString:
      return string.size() <= 80 ? '"' + string + '"'
                                 : "a string of " + std::to_string(string.size()) + " bytes";
    case Type::kArray:
      return "an array of " + std::to_string(items.size());
    case Type::kObject:
      break;
  }
  std::string keys;
  for (const auto& member : members) {
    if (keys.size() > 60) return "an object with " + keys + ", …";
    keys += (keys.empty() ? "" : ", ") + member.name;
  }
  return "an object with " + (keys.empty() ? "no members" : keys);
}

void JsonReader::fail(const std::string& what) const {
  size_t line = 1;
  size_t line_start = 0;
  for (size_t i = 0; i < position_ && i < text_.size(); ++i) {
    if (text_[i] == '\n') {
      ++line;
      line_start = i + 1;
    }
  }
  throw FormatError("invalid JSON at line " + std::to_string(line) + ", column " +
                    std::to_string(position_ - line_start + 1) + ": " + what);
}

void JsonReader::skip_blanks() {
  while (position_ < text_.size()) {
    const char c = text_[position_];
    if (c != ' ' && c != '\n' && c != '\t' && c != '\r') return;
    ++position_;
  }
}

char JsonReader::peek() {
  skip_blanks();
  return position_ < text_.size() ? text_[position_] : '\0';
}

void JsonReader::open(char bracket) {
  if (peek() != bracket || position_ >= text_.size()) {
    fail(std::string("expected '") + bracket + "'" +
         (position_ >= text_.size() ? ", the text ends here" : ""));
  }
  ++position_;
}

bool JsonReader::next_item(bool& first) {
  const char c = peek();
  if (c == ']') {
    ++position_;
    return false;
  }
  if (!first) {
    if (c != ',') fail(c == '\0' ? "the text ends inside an array" : "expected ',' or ']'");
    ++position_;
    if (peek() == ']') fail("a comma before ']'");
  }
  first = false;
  return true;
}

bool JsonReader::next_member(bool& first, std::string& key) {
  char c = peek();
  if (c == '}') {
    ++position_;
    return false;
  }
  if (!first) {
    if (c != ',') fail(c == '\0' ? "the text ends inside an object" : "expected ',' or '}'");
    ++position_;
    c = peek();
  }
  if (c != '"') fail("expected a member's name in quotes");
  read_string(key);
  if (peek() != ':') fail("expected ':'");
  ++position_;
  first = false;
  return true;
}

char32_t JsonReader::read_hex4() {
  char32_t value = 0;
  for (int i = 0; i < 4; ++i, ++position_) {
    if (position_ >= text_.size()) fail("the text ends inside a \\u escape");
    const char c = text_[position_];
    const int digit = is_digit(c)            ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (digit < 0) fail("a \\u escape takes four hexadecimal digits");
    value = value * 16 + static_cast<char32_t>(digit);
  }
  return value;
}

void JsonReader::read_escape(std::string& out) {
  if (position_ >= text_.size()) fail("the text ends inside a string");
  const char c = text_[position_++];
  constexpr std::string_view kNames = "\"\\/bfnrt";
  constexpr std::string_view kValues = "\"\\/\b\f\n\r\t";
  if (const size_t index = kNames.find(c); index != std::string_view::npos) {
    out.push_back(kValues[index]);
    return;
  }
  if (c != 'u') fail("unknown escape in a string");
  char32_t value = read_hex4();
  if (value >= 0xD800 && value <= 0xDBFF && text_.substr(position_, 2) == "\\u") {
    position_ += 2;
    const char32_t low = read_hex4();
    if (low < 0xDC00 || low > 0xDFFF) fail("a surrogate without its partner in a string");
    value = 0x10000 + ((value - 0xD800) << 10) + (low - 0xDC00);
  }
  if (is_surrogate(value)) fail("a surrogate without its partner in a string");
  append_utf8(out, value);
}

void JsonReader::read_string(std::string& out) {
  out.clear();
  if (peek() != '"') fail("expected a string");
  ++position_;
  while (true) {
    const size_t start = position_;
    while (position_ < text_.size() && text_[position_] != '"' && text_[position_] != '\\' &&
           static_cast<uint8_t>(text_[position_]) >= 0x20) {
      ++position_;
    }
    const std::string_view plain = text_.substr(start, position_ - start);
    if (const size_t bad = find_invalid_utf8(plain); bad != std::string_view::npos) {
      position_ = start + bad;
      fail("a string that is not valid UTF-8");
    }
    out.append(plain);
    if (position_ >= text_.size()) fail("the text ends inside a string");
    const char c = text_[position_];
    if (static_cast<uint8_t>(c) < 0x20) fail("a control character inside a string");
    ++position_;
    if (c == '"') return;
    read_escape(out);
  }
}

double JsonReader::read_number(bool* integral) {
  skip_blanks();
  const auto here = [this] { return position_ < text_.size() ? text_[position_] : '\0'; };
  const bool negative = here() == '-';
  if (negative) ++position_;
  if (!is_digit(here())) fail("expected a number");
  Decimal decimal;
  if (here() == '0') {
    ++position_;
    if (is_digit(here())) fail("a number with a leading zero");
  }
  for (; is_digit(here()); ++position_) {
    if (!decimal.push(here())) ++decimal.exponent;
  }
  bool whole = true;
  if (here() == '.') {
    whole = false;
    ++position_;
    if (!is_digit(here())) fail("expected a digit after '.'");
    for (; is_digit(here()); ++position_) {
      if (decimal.push(here())) --decimal.exponent;
    }
  }
  if (here() == 'e' || here() == 'E') {
    whole = false;
    ++position_;
    const bool down = here() == '-';
    if (here() == '+' || here() == '-') ++position_;
    if (!is_digit(here())) fail("expected a digit in the exponent");
    int64_t exponent = 0;
    for (; is_digit(here()); ++position_)
      exponent = std::min<int64_t>(exponent * 10 + (here() - '0'), 1'000'000'000);
    decimal.exponent += down ? -exponent : exponent;
  }
  const double value = decimal.value();
  if (std::isinf(value)) fail("a number too large for a double");
  if (integral != nullptr) *integral = whole;
  return negative ? -value : value;
}

void JsonReader::expect_word(std::string_view word) {
  if (text_.substr(position_, word.size()) != word) fail("expected a value");
  position_ += word.size();
}

bool JsonReader::read_bool() {
  const bool value = peek() == 't';
  expect_word(value ? "true" : "false");
  return value;
}

JsonValue JsonReader::read_value(int depth) {
  if (depth > kMaxDepth) fail("more than " + std::to_string(kMaxDepth) + " levels of nesting");
  JsonValue value;
  bool first = true;
  switch (peek()) {
    case '{': {
      value.type = JsonValue::Type::kObject;
      open('{');
      for (std::string key; next_member(first, key);) {
        if (value.find(key) != nullptr) fail("member \"" + key + "\" appears twice");
        if (value.members.size() == kMaxMembers) fail("an object with too many members");
        JsonValue member = read_value(depth + 1);
        value.members.push_back({key, std::move(member)});
      }
      break;
    }
    case '[':
      value.type = JsonValue::Type::kArray;
      open('[');
      while (next_item(first)) value.items.push_back(read_value(depth + 1));
      break;
    case '"':
      value.type = JsonValue::Type::kString;
      read_string(value.string);
      break;
    case 'n':
      expect_word("null");
      break;
    case 't':
    case 'f':
      value.type = JsonValue::Type::kBool;
      value.boolean = read_bool();
      break;
    case '\0':
      if (position_ >= text_.size()) fail("the text ends where a value was expected");
      [[fallthrough]];
    default:
      value.type = JsonValue::Type::kNumber;
      value.number = read_number(&value.integral);
  }
  return value;
}

void JsonReader::finish() {
  if (peek() != '\0' || position_ < text_.size()) fail("text after the end of the document");
}

}  // namespace llmjp::tokenizer
