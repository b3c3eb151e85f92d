#include <exception>
#include <memory>
#include <optional>

#include "tests/tokenizer/models.h"
#include "tests/tokenizer/texts.h"
#include "tokenizer/compiled_model.h"
#include "tokenizer/json.h"
#include "tokenizer/utf8.h"

namespace llmjp::tests {
namespace {

using namespace llmjp::tokenizer;

enum Format { kJson, kSentencePiece, kSinglePrecision, kCompiled, kFormats };

std::unique_ptr<Tokenizer> load(Format format, const std::string& file, bool units) {
  const SearchOptions search{units, 4};
  if (format == kJson) return std::make_unique<Tokenizer>(parse_tokenizer_json(file), search);
  if (format == kCompiled) return std::make_unique<Tokenizer>(CompiledReader::copy(file), search);
  return std::make_unique<Tokenizer>(parse_sentencepiece_model(file, format == kSinglePrecision),
                                     search);
}

const std::vector<std::u32string>& texts() {
  static const std::vector<std::u32string> texts = [] {
    std::vector<std::u32string> texts = {U"", U" ",
                                         U"aaaaaaaa あああああ\n    x <0x41><EOD>hello x"};
    for (const std::string& seed : kSearchTarget.seeds()) {
      std::string bytes = seed.substr(1);
      while (!bytes.empty() && bytes.back() == '\xFF') bytes.pop_back();
      texts.push_back(text_of_bytes(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()));
      if (texts.size() == 9) break;  // the others are the same
    }
    return texts;
  }();
  return texts;
}

void use(const Tokenizer& tokenizer) {
  std::vector<int64_t> ids;
  for (size_t id = 0; id <= tokenizer.model().size(); ++id) ids.push_back(static_cast<int64_t>(id));
  for (const bool skip_special : {false, true})
    tokenizer.decoder().decode(ids.data(), ids.size(), skip_special);
}

void run(const uint8_t* data, size_t size) {
  if (size == 0) return;
  const auto format = static_cast<Format>(data[0] % kFormats);
  std::string file(reinterpret_cast<const char*>(data + 1), size - 1);
  // A random change would never get past the checksum, which is no defence.
  if (format == kCompiled) CompiledWriter::seal(file);
  std::unique_ptr<Tokenizer> units;
  try {
    units = load(format, file, true);
  } catch (const FormatError& error) {
    const std::string_view message = error.what();
    require(!message.empty() && message.size() < 1000, "an error's message has a bounded length");
    return;
  }
  use(*units);
  if (format == kCompiled) {  // tables that lie give other ids, but lead nowhere else
    for (const std::u32string& text : texts()) encode(*units, text, widths_of(text)[0]);
    return;
  }
  const std::unique_ptr<Tokenizer> plain = load(format, file, false);
  const std::unique_ptr<Tokenizer> compiled = load(kCompiled, units->compile("note"), true);
  require(compiled->note() == "note", "a compiled file keeps its note");
  for (const std::u32string& text : texts()) {
    for (const bool encode_special_tokens : {false, true}) {
      const Ids want = encode(*plain, text, widths_of(text)[0], encode_special_tokens);
      for (const uint32_t id : want) require(id < plain->model().size(), "ids are in range");
      require(encode(*units, text, 4, encode_special_tokens) == want, "units and plain search");
      require(encode(*compiled, text, 4, encode_special_tokens) == want, "a compiled file's ids");
    }
  }
}

std::vector<std::string> seeds() {
  std::vector<std::string> seeds;
  Vocabulary few = odd_vocabulary();  // a tokenizer.json may lack the pieces of bytes
  few.pieces.erase(few.pieces.begin() + 1, few.pieces.begin() + 257);
  seeds.push_back(std::string(1, kJson) + compose_json(few));
  for (const Vocabulary& vocabulary :
       {ordinary_vocabulary(), odd_vocabulary(), extreme_vocabulary()}) {
    seeds.push_back(std::string(1, kJson) + compose_json(vocabulary));
    seeds.push_back(std::string(1, kSentencePiece) + compose_sentencepiece(vocabulary));
    seeds.push_back(std::string(1, kSinglePrecision) + compose_sentencepiece(vocabulary));
  }
  const Tokenizer tokenizer(
      parse_sentencepiece_model(compose_sentencepiece(odd_vocabulary()), false));
  seeds.push_back(std::string(1, kCompiled) + tokenizer.compile("note"));
  return seeds;
}

}  // namespace

const Target kFilesTarget = {"files", run, seeds};

}  // namespace llmjp::tests
