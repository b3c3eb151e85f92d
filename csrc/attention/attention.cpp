#include "attention/attention.h"

#include "attention/attention_launch.h"
#include "attention/backward_tiles.h"
#include "attention/packed_schedule.h"
#include "attention/switches.h"

namespace llmjp::attention {
void attention_forward(const AttentionForward& params, host::Stream stream) {
  if (params.tokens == 0 || params.heads == 0) return;
  if (params.batch == 0 && !is_packed(params)) return;
  with_tile(params.head_dim, [&](auto head_dim) {
    with_type(params.type, [&](auto element) {
      launch_attention_forward<head_dim, typename decltype(element)::type>(params, stream);
    });
  });
}

int64_t attention_forward_workspace(const AttentionProblem& params) {
  return is_packed(params) ? packed_schedule_workspace(params.batch) : 0;
}

void attention_backward(const AttentionBackward& params, host::Stream stream) {
  with_tile(params.head_dim, [&](auto head_dim) {
    with_type(params.type, [&](auto element) {
      launch_attention_backward<head_dim, typename decltype(element)::type>(params, stream);
    });
  });
}

int64_t attention_backward_workspace(const AttentionBackward& params) {
  const int64_t order = is_packed(params) ? packed_schedule_workspace(params.batch) : 0;
  return order + with_tile(params.head_dim, [&](auto head_dim) {
           return BackwardScratch<head_dim>::floats(backward_records(params));
         });
}

}  // namespace llmjp::attention
