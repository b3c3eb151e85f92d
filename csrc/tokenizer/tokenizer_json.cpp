// Reads tokenizer.json. Whatever the file asks for that is not done here is refused by name: a
// tokenizer that silently gave other ids than Hugging Face's would be worse than none.
#include <algorithm>
#include <cmath>
#include <optional>
#include <unordered_map>

#include "tokenizer/json.h"
#include "tokenizer/specification.h"
#include "tokenizer/utf8.h"

namespace llmjp::tokenizer {
namespace {

using Type = JsonValue::Type;

[[noreturn]] void refuse(const std::string& where, const std::string& what,
                         const std::string& supported) {
  throw FormatError("tokenizer.json: " + where + " is " + what +
                    ", which is not supported (supported: " + supported + ")");
}

const JsonValue& member(const JsonValue& object, std::string_view key, Type type,
                        const std::string& where) {
  static constexpr const char* kNames[] = {"null",     "a boolean", "a number",
                                           "a string", "an array",  "an object"};
  const JsonValue* value = object.type == Type::kObject ? object.find(key) : nullptr;
  if (value == nullptr)
    throw FormatError("tokenizer.json: " + where + " has no \"" + std::string(key) + '"');
  if (value->type != type) {
    throw FormatError("tokenizer.json: \"" + std::string(key) + "\" of " + where + " must be " +
                      kNames[static_cast<int>(type)] + ", found " + value->summary());
  }
  return *value;
}

const std::string& string_of(const JsonValue& object, std::string_view key,
                             const std::string& where) {
  return member(object, key, Type::kString, where).string;
}

uint32_t id_value(const JsonValue& value, const std::string& where) {
  if (value.type != Type::kNumber || !value.integral || value.number < 0 ||
      value.number > 0xFFFFFFF) {
    throw FormatError("tokenizer.json: " + where + " must be an id, found " + value.summary());
  }
  return static_cast<uint32_t>(value.number);
}

// The steps of a component that may be one step or a Sequence of them.
std::vector<const JsonValue*> steps_of(const JsonValue& component, std::string_view list_key,
                                       const std::string& where) {
  std::vector<const JsonValue*> steps;
  if (component.is_null()) return steps;
  if (string_of(component, "type", where) != "Sequence") return {&component};
  for (const JsonValue& step : member(component, list_key, Type::kArray, where).items)
    steps.push_back(&step);
  return steps;
}

struct Replacement {
  std::string pattern;
  std::string content;
};

Replacement replacement_of(const JsonValue& step, const std::string& where) {
  const JsonValue& pattern = member(step, "pattern", Type::kObject, where);
  const JsonValue* text = pattern.find("Regex");
  if (text == nullptr) text = pattern.find("String");
  if (text == nullptr || text->type != Type::kString)
    refuse(where, pattern.summary(), "Regex or String patterns");
  return {text->string, string_of(step, "content", where)};
}

constexpr std::string_view kStartPattern =
    "(?<!\\n)^";  // the start of the segment alone: rules in docs/tokenizer.md

void read_normalizer(const JsonValue& component, Specification& spec) {
  const std::string where = "normalizer";
  for (const JsonValue* step : steps_of(component, "normalizers", where)) {
    const std::string& type = string_of(*step, "type", where);
    const std::string supported =
        "Replace of \"(?<!\\n)^\" or \" \" by \"▁\", and Prepend of \"▁\"";
    if (type == "Prepend") {
      const std::string& prefix = string_of(*step, "prepend", where);
      if (prefix != kSpaceMarkUtf8) refuse(where, "Prepend of \"" + prefix + '"', supported);
      if (spec.prefix_mark) refuse(where, "a second prefix", supported);
      spec.prefix_mark = true;
    } else if (type == "Replace") {
      const Replacement replacement = replacement_of(*step, where);
      const bool start = replacement.pattern == kStartPattern && !spec.prefix_mark;
      const bool space = replacement.pattern == " ";
      if (replacement.content != kSpaceMarkUtf8 || !(start || space)) {
        refuse(where,
               "Replace of \"" + replacement.pattern + "\" by \"" + replacement.content + '"',
               supported);
      }
      (start ? spec.prefix_mark : spec.spaces_to_marks) = true;
    } else {
      refuse(where, type, supported);
    }
  }
}

void read_decoder(const JsonValue& component, Specification& spec) {
  const std::string where = "decoder";
  const std::string supported =
      "ByteFallback, Replace of \"▁\" by \" \", Fuse, then Strip of one leading space";
  bool fused = false;
  bool marks = false;
  for (const JsonValue* step : steps_of(component, "decoders", where)) {
    const std::string& type = string_of(*step, "type", where);
    if (type == "ByteFallback" && !fused && !spec.decode_bytes) {
      spec.decode_bytes = true;
    } else if (type == "Fuse" && !fused) {
      fused = true;
    } else if (type == "Replace") {
      const Replacement replacement = replacement_of(*step, where);
      const bool mark =
          replacement.pattern == kSpaceMarkUtf8 && replacement.content == " " && !marks;
      const bool strip = replacement.pattern == std::string(kStartPattern) + ' ' &&
                         replacement.content.empty() && fused && marks && !spec.strip_leading_space;
      if (!mark && !strip) {
        refuse(where,
               "Replace of \"" + replacement.pattern + "\" by \"" + replacement.content + "\" here",
               supported);
      }
      if (mark) {
        marks = true;
        spec.decode_byte_marks = spec.decode_bytes;
      }
      spec.strip_leading_space |= strip;
    } else if (type == "Strip" && fused && marks && !spec.strip_leading_space) {
      const double start = member(*step, "start", Type::kNumber, where).number;
      const double stop = member(*step, "stop", Type::kNumber, where).number;
      if (string_of(*step, "content", where) != " " || start != 1 || stop != 0) {
        refuse(where, "Strip of something else than one leading space", supported);
      }
      spec.strip_leading_space = true;
    } else {
      refuse(where, type + " at this place", supported);
    }
  }
  if (!fused || !marks || !spec.decode_bytes)
    refuse(where, component.is_null() ? "null" : "incomplete", supported);
}

std::vector<TemplateItem> read_template(const JsonValue& component, std::string_view key,
                                        size_t sequences) {
  const std::string where = "post_processor";
  std::vector<TemplateItem> items;
  size_t seen[2] = {0, 0};
  for (const JsonValue& item : member(component, key, Type::kArray, where).items) {
    if (item.type == Type::kObject && item.find("Sequence") != nullptr) {
      const std::string& id = string_of(*item.find("Sequence"), "id", where);
      if (id != "A" && id != "B")
        refuse(where, "a template with sequence \"" + id + '"', "A and B");
      ++seen[id == "B"];
      items.push_back({id == "A" ? TemplateItem::Kind::kFirst : TemplateItem::Kind::kSecond, 0});
    } else {
      const std::string& name =
          string_of(member(item, "SpecialToken", Type::kObject, where), "id", where);
      const JsonValue& token = member(member(component, "special_tokens", Type::kObject, where),
                                      name, Type::kObject, where);
      for (const JsonValue& id : member(token, "ids", Type::kArray, where).items) {
        items.push_back({TemplateItem::Kind::kToken, id_value(id, where)});
      }
    }
  }
  if (seen[0] != 1 || seen[1] != sequences - 1) {
    refuse(where, "a template that does not hold each text once", "each text once");
  }
  return items;
}

void read_post_processor(const JsonValue& component, Specification& spec) {
  if (component.is_null()) {
    spec.single = {{TemplateItem::Kind::kFirst, 0}};
    spec.pair = {{TemplateItem::Kind::kFirst, 0}, {TemplateItem::Kind::kSecond, 0}};
    return;
  }
  const std::string& type = string_of(component, "type", "post_processor");
  if (type != "TemplateProcessing") refuse("post_processor", type, "TemplateProcessing");
  spec.single = read_template(component, "single", 1);
  spec.pair = read_template(component, "pair", 2);
}

void read_added_tokens(const JsonValue& list, Specification& spec) {
  const std::string where = "added_tokens";
  if (list.type != Type::kArray) throw FormatError("tokenizer.json: added_tokens must be an array");
  for (const JsonValue& entry : list.items) {
    AddedToken token;
    token.content = string_of(entry, "content", where);
    token.id = id_value(member(entry, "id", Type::kNumber, where), where);
    token.special = member(entry, "special", Type::kBool, where).boolean;
    token.normalized = member(entry, "normalized", Type::kBool, where).boolean;
    for (const std::string_view flag : {"single_word", "lstrip", "rstrip"}) {
      if (member(entry, flag, Type::kBool, where).boolean) {
        refuse(where, '"' + token.content + "\" with " + std::string(flag),
               "tokens without single_word, lstrip, rstrip");
      }
    }
    if (token.special) spec.special_ids.push_back(token.id);
    spec.added.push_back(std::move(token));
  }
}

void read_vocabulary(JsonReader& reader, Specification& spec) {
  std::string piece;
  reader.open('[');
  for (bool first = true; reader.next_item(first);) {
    if (spec.pieces.size() == Specification::kMaxPieces) reader.fail("a vocabulary of absurd size");
    reader.open('[');
    bool first_part = true;
    if (!reader.next_item(first_part)) reader.fail("expected a piece and its score");
    reader.read_string(piece);
    spec.pieces.push_back(piece);
    if (!reader.next_item(first_part)) reader.fail("a piece without a score");
    spec.scores.push_back(reader.read_number());
    if (reader.next_item(first_part)) reader.fail("more than a piece and its score");
  }
}

void read_model(JsonReader& reader, Specification& spec) {
  std::optional<JsonValue> type;
  std::optional<JsonValue> unknown;
  std::optional<JsonValue> fallback;
  bool vocabulary = false;
  bool first = true;
  reader.open('{');
  for (std::string key; reader.next_member(first, key);) {
    const auto once = [&](std::optional<JsonValue>& field) {
      if (field) reader.fail("member \"" + key + "\" appears twice");
      field = reader.read_value();
    };
    if (key == "vocab") {
      if (vocabulary) reader.fail("member \"vocab\" appears twice");
      if (type && type->string != "Unigram") refuse("model", type->summary(), "Unigram");
      read_vocabulary(reader, spec);
      vocabulary = true;
    } else if (key == "type") {
      once(type);
      if (type->string != "Unigram") refuse("model", type->summary(), "Unigram");
    } else if (key == "unk_id") {
      once(unknown);
    } else if (key == "byte_fallback") {
      once(fallback);
    } else {
      refuse("a member of model", '"' + key + '"', "type, unk_id, byte_fallback, vocab");
    }
  }
  if (!type) throw FormatError("tokenizer.json: model has no \"type\"");
  if (!vocabulary) throw FormatError("tokenizer.json: model has no \"vocab\"");
  if (!unknown || unknown->is_null()) refuse("model", "without unk_id", "a model with unk_id");
  if (!fallback || fallback->type != Type::kBool || !fallback->boolean) {
    refuse("model", "without byte_fallback", "byte_fallback: true");
  }
  spec.unknown_id = id_value(*unknown, "unk_id");
  spec.byte_fallback = true;
}

}  // namespace

Specification parse_tokenizer_json(std::string_view text) {
  Specification spec;
  std::unordered_map<std::string, JsonValue> parts;
  bool model = false;
  bool first = true;
  JsonReader reader(text);
  reader.open('{');
  for (std::string key; reader.next_member(first, key);) {
    if (key == "model" ? model : parts.contains(key))
      reader.fail("member \"" + key + "\" appears twice");
    if (key == "model") {
      read_model(reader, spec);
      model = true;
    } else {
      static constexpr std::string_view kKnown[] = {
          "version",    "truncation",    "padding", "added_tokens",
          "normalizer", "pre_tokenizer", "decoder", "post_processor"};
      if (std::find(std::begin(kKnown), std::end(kKnown), key) == std::end(kKnown)) {
        refuse("a top-level member", '"' + key + '"', "those of tokenizers 0.20 and later");
      }
      parts.emplace(key, reader.read_value());
    }
  }
  reader.finish();
  if (!model) throw FormatError("tokenizer.json: there is no \"model\"");
  for (const char* key : {"truncation", "padding"}) {  // Transformers saves those of its last call
    if (parts[key].is_null()) continue;
    refuse(key, parts[key].summary(),
           "null; in Transformers call backend_tokenizer.no_" + std::string(key) +
               "() before save_pretrained()");
  }
  if (!parts["pre_tokenizer"].is_null())
    refuse("pre_tokenizer", parts["pre_tokenizer"].summary(), "null");
  if (parts.contains("added_tokens")) read_added_tokens(parts["added_tokens"], spec);
  read_normalizer(parts["normalizer"], spec);
  read_post_processor(parts["post_processor"], spec);
  read_decoder(parts["decoder"], spec);
  spec.searchable = std::vector<uint8_t>(spec.pieces.size(), 1);
  if (!spec.scores.empty()) {
    spec.unknown_score =
        *std::min_element(spec.scores.begin(), spec.scores.end()) - Specification::kUnknownPenalty;
  }
  spec.finish();
  return spec;
}

}  // namespace llmjp::tokenizer
