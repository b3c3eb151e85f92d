#include <cmath>
#include <map>
#include <memory>
#include <optional>

#include "host/cpu_features.h"
#include "tests/tokenizer/models.h"
#include "tests/tokenizer/texts.h"
#include "tokenizer/utf8.h"

namespace llmjp::tests {
namespace {

using namespace llmjp::tokenizer;

// The search in its most literal form: over the whole text, with the pieces in a map.
class LiteralSearch {
 public:
  explicit LiteralSearch(const Model& model) : model_(model) {
    for (size_t id = 0; id < model.spec.pieces.size(); ++id) {
      if (model.spec.searchable[id] == 0) continue;
      const std::u32string text = to_utf32(model.spec.pieces[id]);
      longest_ = std::max(longest_, text.size());
      ids_.emplace(text, static_cast<uint32_t>(id));
    }
  }

  Ids run(std::u32string text) const {
    if (text.empty()) return {};
    if (model_.spec.prefix_mark) text.insert(text.begin(), kSpaceMark);
    for (char32_t& c : text) c = c == U' ' ? kSpaceMark : c;
    std::vector<Best> best(text.size() + 1);
    best[0].reached = true;
    for (size_t start = 0; start < text.size(); ++start) {
      if (model_.spec.single_precision_sums && std::abs(best[start].sum) > 100000.0) {
        const double offset = best[start].sum;
        for (size_t i = start; i < best.size() && i <= start + longest_; ++i)
          best[i].sum = static_cast<float>(best[i].sum - offset);
      }
      const auto relax = [&](size_t end, std::optional<uint32_t> id, double score) {
        double sum = best[start].sum + score;
        if (model_.spec.single_precision_sums) sum = static_cast<float>(sum);
        if (!best[end].reached || sum > best[end].sum) best[end] = {sum, start, id, true};
      };
      bool single = false;
      for (size_t end = start + 1; end <= std::min(text.size(), start + longest_); ++end) {
        const auto found = ids_.find(text.substr(start, end - start));
        if (found == ids_.end()) continue;
        single |= end == start + 1;
        relax(end, found->second, model_.spec.scores[found->second]);
      }
      if (!single) relax(start + 1, std::nullopt, model_.spec.unknown_score);
    }
    Ids ids;
    for (size_t end = text.size(); end > 0; end = best[end].start) {
      if (best[end].id) {
        ids.push_back(*best[end].id);
      } else {
        uint8_t bytes[4];
        for (int i = encode_utf8(text[end - 1], bytes); i > 0; --i)
          ids.push_back(static_cast<uint32_t>(model_.byte_ids[bytes[i - 1]]));
      }
    }
    return {ids.rbegin(), ids.rend()};
  }

 private:
  struct Best {
    double sum = 0.0;
    size_t start = 0;
    std::optional<uint32_t> id;  // none: an unknown character
    bool reached = false;
  };

  const Model& model_;
  std::map<std::u32string, uint32_t> ids_;
  size_t longest_ = 1;
};

// A model with all the searches that have to agree on it. What units remember lasts from text to
// text, as in a process that tokenizes a corpus.
struct Subject {
  Subject(std::string name, auto parse, bool literal) : name(std::move(name)) {
    plain = std::make_unique<Tokenizer>(parse(), SearchOptions{.units = false, .memo_bits = 0});
    for (const host::InstructionSet set : host::supported_instruction_sets()) {
      for (const int memo_bits : {0, 10})
        units.push_back(std::make_unique<Tokenizer>(
            parse(), SearchOptions{.memo_bits = memo_bits, .instructions = set}));
    }
    if (literal) literal_search.emplace(plain->model());
  }

  std::string name;
  std::unique_ptr<Tokenizer> plain;
  std::vector<std::unique_ptr<Tokenizer>> units;
  std::optional<LiteralSearch> literal_search;  // not where added tokens cut the text first
};

std::vector<std::unique_ptr<Subject>> make_subjects() {
  std::vector<std::unique_ptr<Subject>> subjects;
  const auto json = [&](const char* name, const Vocabulary& vocabulary) {
    const std::string file = compose_json(vocabulary);
    subjects.push_back(
        std::make_unique<Subject>(name, [&] { return parse_tokenizer_json(file); }, false));
  };
  const auto model = [&](const char* name, const Vocabulary& vocabulary, bool single) {
    const std::string file = compose_sentencepiece(vocabulary);
    subjects.push_back(std::make_unique<Subject>(
        name, [&] { return parse_sentencepiece_model(file, single); }, true));
  };
  json("ordinary json", ordinary_vocabulary());
  json("odd json", odd_vocabulary());
  model("ordinary model", ordinary_vocabulary(), false);
  model("odd model", odd_vocabulary(), false);
  model("extreme model", extreme_vocabulary(), false);
  model("ordinary model in single precision", ordinary_vocabulary(), true);
  model("extreme model in single precision", extreme_vocabulary(), true);
  return subjects;
}

// None where the text is refused for half of a surrogate pair.
std::optional<Ids> ids_of(const Tokenizer& tokenizer, const std::u32string& text, int width) {
  try {
    return encode(tokenizer, text, width);
  } catch (const LoneSurrogate&) {
    return std::nullopt;
  }
}

void run(const uint8_t* data, size_t size) {
  static const std::vector<std::unique_ptr<Subject>> subjects = make_subjects();
  if (size == 0) return;
  const Subject& subject = *subjects[data[0] % subjects.size()];
  const std::u32string text = text_of_bytes(data + 1, size - 1);
  const bool whole = text.find(char32_t{0xD800}) == std::u32string::npos;
  const std::vector<int> widths = widths_of(text);
  const std::optional<Ids> plain = ids_of(*subject.plain, text, widths[0]);
  require(plain.has_value() == whole, subject.name + ": surrogates are refused, all else is not");
  for (const int width : widths) {
    require(ids_of(*subject.plain, text, width) == plain, subject.name + ": plain search, widths");
    for (const auto& units : subject.units) {
      require(ids_of(*units, text, width) == plain,
              subject.name + ": units, instructions " +
                  std::string(host::name(units->instructions())) + ", width " +
                  std::to_string(width));
    }
  }
  if (subject.literal_search && whole)
    require(subject.literal_search->run(text) == *plain, subject.name + ": the literal search");
}

std::vector<std::string> seeds() {
  std::vector<std::string> seeds;
  for (char subject = 0; subject < 7; ++subject) {
    for (const char* text :
         {"hello the abab a b\n\n    aa", "\x80\xE7\x81\x81\xE5\x82", "a\xE6\x80\xE6 \xE4x\xE5",
          "\xF0\xF1\xF2 \xF4\xF5\x91\x92\x93", "\x83\x84\x85\x86\x87<0x41\xF3\x80", "x x x a\xFF"})
      seeds.push_back(subject + std::string(text));
  }
  return seeds;
}

}  // namespace

const Target kSearchTarget = {"search", run, seeds};

}  // namespace llmjp::tests
