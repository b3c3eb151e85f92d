// A strict JSON reader (RFC 8259) for tokenizer.json.
//
// It is our own, because the scores must become the very doubles that Hugging Face `tokenizers`
// sees: that library reads them with serde_json's fast number path, which is not correctly rounded.
// All digits are gathered in one 64-bit integer, converted to double, then multiplied or divided by
// a power of ten. A quarter of the scores of llm-jp v2.1 come out one unit in the last place off,
// and that decides exact ties. No JSON library offers this rounding.
//
// Values are pulled from the text one by one, so that the vocabulary is read without a tree of it
// in memory. Errors name line and column. Nesting is bounded, so that no file exhausts the stack.
#pragma once

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace llmjp::tokenizer {

// A file that is no tokenizer, or one that asks for what this tokenizer does not do.
class FormatError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

struct JsonMember;

// A parsed value. Members keep their order; a repeated key is refused by the reader.
struct JsonValue {
  enum class Type { kNull, kBool, kNumber, kString, kArray, kObject };

  Type type = Type::kNull;
  bool boolean = false;
  bool integral = false;  // written without fraction and exponent
  double number = 0.0;
  std::string string;
  std::vector<JsonValue> items;
  std::vector<JsonMember> members;

  bool is_null() const { return type == Type::kNull; }
  const JsonValue* find(std::string_view key) const;  // null where an object has no such member
  std::string summary() const;                        // for error messages: short, one line
};

struct JsonMember {
  std::string name;
  JsonValue value;
};

class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  // The next non-blank character without taking it; '\0' at the end of the text.
  char peek();

  // Walks an object or array: `first` starts true. Returns false once the closing bracket is taken.
  bool next_member(bool& first, std::string& key);
  bool next_item(bool& first);
  void open(char bracket);

  void read_string(std::string& out);
  double read_number(bool* integral = nullptr);
  bool read_bool();
  JsonValue read_value(int depth = 0);
  void finish();  // nothing but blanks may follow

  [[noreturn]] void fail(const std::string& what) const;

 private:
  void skip_blanks();
  void expect_word(std::string_view word);
  char32_t read_hex4();
  void read_escape(std::string& out);

  std::string_view text_;
  size_t position_ = 0;
};

}  // namespace llmjp::tokenizer
