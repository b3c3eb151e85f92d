#include "tests/tokenizer/models.h"

#include <bit>
#include <cstdint>
#include <cstdio>

namespace llmjp::tests {
namespace {

std::string format(const char* pattern, double value) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

std::vector<Piece> base() {
  std::vector<Piece> pieces = {{"<unk>", 0.0F, Piece::kUnknown}};
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned>(byte));
    pieces.push_back({name, 0.0F, Piece::kByte});
  }
  pieces.push_back({"<EOD>", 0.0F, Piece::kControl});
  return pieces;
}

void add(std::vector<Piece>& pieces, const std::vector<Piece>& more) {
  pieces.insert(pieces.end(), more.begin(), more.end());
}

std::string repeated(const std::string& text, int count) {
  std::string result;
  for (int i = 0; i < count; ++i) result += text;
  return result;
}

std::string varint(uint64_t value) {
  std::string out;
  for (; value > 0x7F; value >>= 7) out.push_back(static_cast<char>((value & 0x7F) | 0x80));
  out.push_back(static_cast<char>(value));
  return out;
}

std::string field(int number, uint64_t value) {
  return varint(static_cast<uint64_t>(number) << 3) + varint(value);
}

std::string field(int number, const std::string& bytes) {
  return varint(static_cast<uint64_t>(number) << 3 | 2) + varint(bytes.size()) + bytes;
}

std::string field(int number, float value) {
  std::string out = varint(static_cast<uint64_t>(number) << 3 | 5);
  for (int shift = 0; shift < 32; shift += 8)
    out.push_back(static_cast<char>(std::bit_cast<uint32_t>(value) >> shift));
  return out;
}

std::string json_string(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c == '\n' ? "\\n" : std::string(1, c);
  }
  return out + '"';
}

}  // namespace

Vocabulary ordinary_vocabulary() {
  std::vector<Piece> pieces = base();
  for (int n = 6; n >= 1; --n) pieces.push_back({repeated("▁", n), -1.0F});
  pieces.push_back({"\n", 0.0F});
  for (const char* c : {"a", "b", "c", "e",  "h",  "l",  "o",  "r",  "t",  "x",  "<",  ">",
                        "0", "4", "1", "ー", "あ", "い", "本", "を", "読", "む", "。", "é"})
    pieces.push_back({c, -7.250031F});
  for (int n = 2; n <= 5; ++n) {
    for (const char* c : {"ー", "あ", "a"})  // the same sum however a run is cut
      pieces.push_back({repeated(c, n), -3.1000061F * static_cast<float>(n)});
  }
  add(pieces, {{"▁a", -5.5000114F},
               {"▁the", -4.125F},
               {"the", -6.75F},
               {"ele", -8.0000019F},
               {"hell", -8.5F},
               {"▁hello", -9.25F},
               {"本を", -9.0F},
               {"を読", -9.0F},
               {"読む", -8.5F},
               {"本を読む", -11.75003F},
               {"あい", -7.75F},
               {"いあ", -7.75F},
               {"ab", -9.0F},
               {"ba", -9.0F},
               {"abab", -18.0F},
               {"😍", -12.0F},
               {"▁<", -9.5F},
               {"oooooooooooooooo", -40.0F}});
  return {pieces, true};
}

Vocabulary odd_vocabulary() {
  std::vector<Piece> pieces = base();
  add(pieces, {{"▁", -2.0F},
               {"▁▁", -3.0F},
               {"a", -4.0F},
               {"<", -4.5F},
               {"0", -4.5F},
               {"あ", -5.0F},
               {"a<", -6.0F},
               {"<0", -6.0F},
               {"x>", -6.5F},
               {"あ本", -9.0F},
               {"本読", -9.5F},
               {"▁本", -7.0F},
               {"😍🙏", -6.0F},
               {"a😍", -6.5F},
               {"いい", -5.0F},
               {"▁▁a", -6.25F},
               {"a▁", -5.0F},
               {"▁a▁", -6.0F},
               {"lo", -5.5F},
               {"el", -5.5F},
               {"h", -4.0F, Piece::kUnused},
               {"the", -3.0F, Piece::kUnused}});
  return {pieces, false};
}

Vocabulary extreme_vocabulary() {
  std::vector<Piece> pieces = base();
  add(pieces, {{"▁", -20000.3F},
               {"a", -33000.7F},
               {"aa", -66001.3F},
               {"b", -1.1F},
               {"あ", -0.1F},
               {"ああ", -0.2F},
               {"ab", -33001.8F},
               {"ba", -33001.75F},
               {"x", -99999.9F},
               {"本を読む", -5.0F, Piece::kUserDefined},
               {"を読", -5.0F, Piece::kUserDefined},
               {"ーー", 0.0F, Piece::kUserDefined},
               {"ー", 0.0F, Piece::kUserDefined},
               {"l", -40.0F, Piece::kUserDefined}});
  return {pieces, false};
}

std::string compose_json(const Vocabulary& vocabulary) {
  std::string vocab;
  for (const Piece& piece : vocabulary.pieces) {
    vocab += (vocab.empty() ? "[" : ",[") + json_string(piece.text) + ',' +
             format("%.17g", piece.score) + ']';
  }
  std::string added;
  if (vocabulary.added_tokens) {
    const auto token = [](size_t id, const char* content, bool special, bool normalized) {
      return "{\"id\":" + std::to_string(id) + ",\"content\":\"" + content +
             "\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":" +
             (normalized ? "true" : "false") + ",\"special\":" + (special ? "true" : "false") + '}';
    };
    const size_t size = vocabulary.pieces.size();
    added = token(257, "<EOD>", true, false) + ',' + token(size, "<EO", true, false) + ',' +
            token(size + 1, "bab", false, false) + ',' + token(size + 2, "hello x", false, true);
  }
  const std::string text = R"({"type":"Sequence","normalizers":[)"
                           R"({"type":"Replace","pattern":{"Regex":"(?<!\\n)^"},"content":"▁"},)"
                           R"({"type":"Replace","pattern":{"String":" "},"content":"▁"}]})";
  const std::string decoder =
      R"({"type":"Sequence","decoders":[{"type":"ByteFallback"},)"
      R"({"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"Fuse"},)"
      R"({"type":"Strip","content":" ","start":1,"stop":0}]})";
  const std::string ending =
      R"({"type":"TemplateProcessing","single":[{"Sequence":{"id":"A","type_id":0}},)"
      R"({"SpecialToken":{"id":"<EOD>","type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}},)"
      R"({"Sequence":{"id":"B","type_id":1}}],"special_tokens":{"<EOD>":)"
      R"({"id":"<EOD>","ids":[257],"tokens":["<EOD>"]}}})";
  return "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[" + added +
         "],\"normalizer\":" + text + ",\"pre_tokenizer\":null,\"post_processor\":" + ending +
         ",\"decoder\":" + decoder +
         ",\"model\":{\"type\":\"Unigram\",\"unk_id\":0,\"byte_fallback\":true,\"vocab\":[" +
         vocab + "]}}";
}

std::string compose_sentencepiece(const Vocabulary& vocabulary) {
  std::string model;
  for (const Piece& piece : vocabulary.pieces) {
    model += field(1, field(1, piece.text) + field(2, piece.score) +
                          field(3, static_cast<uint64_t>(piece.type)));
  }
  const auto one = uint64_t{1};
  return model + field(2, field(3, one) + field(35, one)) +
         field(3, field(3, one) + field(4, uint64_t{0}) + field(5, one));
}

}  // namespace llmjp::tests
