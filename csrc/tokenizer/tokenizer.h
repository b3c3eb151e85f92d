// Texts to ids: added tokens, segments, the search, the template around it; one text or a batch
// over threads.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "host/cpu_features.h"
#include "tokenizer/compiled_model.h"
#include "tokenizer/decoder.h"
#include "tokenizer/id_buffer.h"
#include "tokenizer/model.h"
#include "tokenizer/text.h"
#include "tokenizer/unit_rules.h"
#include "tokenizer/workspace.h"

namespace llmjp::tokenizer {

struct EncodeOptions {
  bool add_special_tokens = true;
  bool encode_special_tokens = false;  // special tokens in the text are plain text
};

// Ids of texts [begin, end) one after another; counts[i] of them belong to text i.
template <class Id>
struct EncodedTexts {
  size_t begin;
  size_t end;
  const Id* ids;
  const int64_t* counts;
};

// Takes the ids of a batch, on the calling thread and in the order of the texts, while other
// threads go on with those that follow.
template <class Id>
class EncodedSink {
 public:
  EncodedSink() = default;
  virtual ~EncodedSink() = default;
  EncodedSink(const EncodedSink&) = delete;
  EncodedSink& operator=(const EncodedSink&) = delete;

  // Those of many whole texts at a time.
  virtual void take(std::span<const EncodedTexts<Id>> parts) = 0;
  // Where those of a long text are put together, behind what is there already.
  virtual IdBuffer<Id>& joined() = 0;
  // There are more of them now: those of so many characters of it. All, and it is complete.
  virtual void take_joined(size_t text, size_t characters, bool complete) = 0;
};

class Tokenizer {
 public:
  explicit Tokenizer(Specification specification, SearchOptions search = {})
      : model_(std::move(specification)), rules_(model_), decoder_(model_), search_(search) {}
  // Of a compiled file, which stays in memory. `note` is what write() was given.
  Tokenizer(std::shared_ptr<CompiledReader> compiled, SearchOptions search);
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

  template <class Id>
  void encode_batch(const std::vector<Text>& texts, const EncodeOptions& options,
                    size_t num_threads, EncodedSink<Id>& sink) const;

  // Appends the ids of all texts to `out`; those of text i are [offsets[i], offsets[i + 1]), for
  // which there is room. One thread writes nowhere else. With several, ids take memory besides
  // `out` while they are searched or wait for their turn.
  template <class Id>
  void encode_ragged(const std::vector<Text>& texts, const EncodeOptions& options,
                     size_t num_threads, IdBuffer<Id>& out, int64_t* offsets) const;

 private:
  template <class Id>
  class LongText;

  WorkspacePool::Lease lend_workspace() const;
  // So many of the threads as the work is worth.
  size_t threads_worth(const std::vector<Text>& texts, size_t num_threads) const;
  // Whether the ids of a text may be put together from chunks.
  bool divisible(const Text& text, const EncodeOptions& options) const;

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
  mutable WorkspacePool workspaces_;
};

}  // namespace llmjp::tokenizer
