// Texts to ids: added tokens, segments, the search, the template around it; one text or a batch
// over threads.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "host/cpu_features.h"
#include "tokenizer/compiled_model.h"
#include "tokenizer/decoder.h"
#include "tokenizer/id_buffer.h"
#include "tokenizer/model.h"
#include "tokenizer/sequential_search.h"
#include "tokenizer/unit_rules.h"
#include "tokenizer/unit_search.h"

namespace llmjp::tokenizer {

// Characters of a Python str in its own representation: 1, 2 or 4 bytes each, whichever the widest
// one needs.
struct Text {
  const void* data = nullptr;
  size_t size = 0;  // characters
  int width = 1;    // bytes per character
};

struct EncodeOptions {
  bool add_special_tokens = true;
  bool encode_special_tokens = false;  // special tokens in the text are plain text
};

// How texts are searched: ids do not depend on it.
struct SearchOptions {
  bool units = true;   // where the vocabulary allows; false: the plain search, for comparison
  int memo_bits = 15;  // 2^15 sets: 2 MB a thread, what a core's caches hold
  host::InstructionSet instructions = host::InstructionSet::kGeneric;  // that the CPU has
};

// What one thread needs besides the model, kept between calls.
struct Workspace {
  Workspace(const Model& model, const UnitRules& rules, const SearchOptions& search)
      : sequential(model), units(model, rules, sequential, search.memo_bits, search.instructions) {}
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  SequentialSearch sequential;
  UnitSearch units;
  std::u32string segment;  // normalised, when added tokens have to be found in it
};

class Tokenizer {
 public:
  explicit Tokenizer(Specification specification, SearchOptions search = {})
      : model_(std::move(specification)), rules_(model_), decoder_(model_), search_(search) {}
  // Of a compiled file, which stays in memory. `note` is what write() was given.
  Tokenizer(std::shared_ptr<CompiledReader> compiled, SearchOptions search);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  const Model& model() const { return model_; }
  const Decoder& decoder() const { return decoder_; }
  std::string_view note() const { return note_; }

  // A compiled file's bytes.
  std::string compile(std::string_view note) const;
  host::InstructionSet instructions() const { return search_.instructions; }

  // Appends the ids of `text`, or of the pair if `second` is not null. Throws LoneSurrogate.
  // `Id` is wide enough for every id of the vocabulary, and the same in all calls.
  template <class Id>
  void encode(const Text& text, const Text* second, const EncodeOptions& options,
              IdBuffer<Id>& out) const;

  // Ids of texts[i] in parts of several texts each, in order; counts[i] of them belong to text i.
  template <class Id>
  std::vector<IdBuffer<Id>> encode_batch(const std::vector<Text>& texts,
                                         const EncodeOptions& options, size_t num_threads,
                                         std::vector<int64_t>& counts) const;

 private:
  class Lease;

  template <class Id>
  void encode_one(const Text& text, const EncodeOptions& options, Workspace& workspace,
                  IdBuffer<Id>& out) const;
  template <class Char, class Id>
  void encode_text(const Char* text, size_t size, const EncodeOptions& options,
                   Workspace& workspace, IdBuffer<Id>& out) const;
  template <class Char, class Id>
  void encode_segment(const Char* text, size_t size, const EncodeOptions& options,
                      Workspace& workspace, IdBuffer<Id>& out) const;
  template <class Char, class Id>
  void search(const Char* text, size_t size, bool prefix, const EncodeOptions& options,
              Workspace& workspace, IdBuffer<Id>& out) const;
  template <class Id>
  void encode_whole(const Text& text, const Text* second, const EncodeOptions& options,
                    Workspace& workspace, IdBuffer<Id>& out) const;

  std::shared_ptr<CompiledReader> compiled_;  // null, or what the tables lie in
  std::string_view note_;
  Model model_;
  UnitRules rules_;
  Decoder decoder_;
  SearchOptions search_;
  // Idle workspaces. Slots instead of a list under a lock: a process forked from a thread's midst
  // must not inherit a lock that nobody will release.
  mutable std::array<std::atomic<Workspace*>, 32> idle_{};
};

}  // namespace llmjp::tokenizer
