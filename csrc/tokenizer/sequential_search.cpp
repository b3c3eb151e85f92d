#include "tokenizer/sequential_search.h"

namespace llmjp::tokenizer {

// A run of unknown characters is one token to Hugging Face: its id if it happens to be a piece (the
// unknown piece spelled out, for one), else its bytes if all of them have pieces, else the unknown
// id once.
template <class Id>
void SequentialSearch::append_unknown(IdBuffer<Id>& out) {
  for (const char32_t c : unknown_run_) {
    if (is_surrogate(c)) throw LoneSurrogate();
  }
  if (const int32_t id = model_.find_piece(unknown_run_); id >= 0) {
    out.push(static_cast<uint32_t>(id));
  } else {
    Id* ids = out.reserve(4 * unknown_run_.size());
    size_t count = 0;
    bool complete = model_.spec.byte_fallback;
    for (const char32_t c : unknown_run_) {
      uint8_t bytes[4];
      const int length = encode_utf8(c, bytes);
      for (int i = 0; i < length; ++i) {
        const int32_t byte_id = model_.byte_ids[bytes[i]];
        complete &= byte_id >= 0;
        ids[count++] = static_cast<Id>(byte_id);
      }
    }
    if (!complete) {
      ids[0] = static_cast<Id>(model_.spec.unknown_id);
      count = 1;
    }
    out.commit(count);
  }
  unknown_run_.clear();
}

template void SequentialSearch::append_unknown(IdBuffer<uint16_t>& out);
template void SequentialSearch::append_unknown(IdBuffer<uint32_t>& out);

}  // namespace llmjp::tokenizer
