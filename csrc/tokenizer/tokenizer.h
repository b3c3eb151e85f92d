// Texts to ids: added tokens, segments, the search, the template around it; one text or a batch
// over threads.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <vector>

#include "tokenizer/decoder.h"
#include "tokenizer/id_buffer.h"
#include "tokenizer/model.h"
#include "tokenizer/sequential_search.h"

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

// What one thread needs besides the model, kept between calls.
struct Workspace {
  explicit Workspace(const Model& model) : sequential(model) {}

  SequentialSearch sequential;
  std::u32string segment;  // normalised, when added tokens have to be found in it
};

class Tokenizer {
 public:
  explicit Tokenizer(Specification specification)
      : model_(std::move(specification)), decoder_(model_) {}
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  const Model& model() const { return model_; }
  const Decoder& decoder() const { return decoder_; }

  // Appends the ids of `text`, or of the pair if `second` is not null. Throws LoneSurrogate.
  void encode(const Text& text, const Text* second, const EncodeOptions& options,
              IdBuffer& out) const;

  // Ids of texts[i] in parts of several texts each, in order; counts[i] of them belong to text i.
  std::vector<IdBuffer> encode_batch(const std::vector<Text>& texts, const EncodeOptions& options,
                                     size_t num_threads, std::vector<int64_t>& counts) const;

 private:
  class Lease;

  void encode_one(const Text& text, const EncodeOptions& options, Workspace& workspace,
                  IdBuffer& out) const;
  template <class Char>
  void encode_text(const Char* text, size_t size, const EncodeOptions& options,
                   Workspace& workspace, IdBuffer& out) const;
  template <class Char>
  void encode_segment(const Char* text, size_t size, const EncodeOptions& options,
                      Workspace& workspace, IdBuffer& out) const;
  void encode_whole(const Text& text, const Text* second, const EncodeOptions& options,
                    Workspace& workspace, IdBuffer& out) const;

  Model model_;
  Decoder decoder_;
  // Idle workspaces. Slots instead of a list under a lock: a process forked from a thread's midst
  // must not inherit a lock that nobody will release.
  mutable std::array<std::atomic<Workspace*>, 32> idle_{};
};

}  // namespace llmjp::tokenizer
