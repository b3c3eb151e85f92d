// The decode op: checks, caches as they lie, scratch memory for the parts, and the launches.
#include "attention/attention_decode.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "bindings/attention_operands.h"
#include "bindings/device_scope.h"
#include "bindings/library.h"
#include "bindings/tensor_checks.h"

namespace llmjp::bindings {
namespace {

using attention::AttentionDecode;

constexpr const char* kOp = "attention_decode";

// A cache is written in place, so it is never copied.
Strides strides_of_cache(const Tensor& cache, const char* name) {
  check(cache.sizes()[3] <= 1 || cache.strides()[3] == 1, kOp, ": ", name,
        "'s last dimension must be contiguous on CUDA, got stride ", cache.strides()[3], ".");
  const Strides strides = Operand::strides_of(cache);
  const auto address = reinterpret_cast<uintptr_t>(cache.const_data_ptr());
  check(address % 16 == 0 && strides.batch % kChunk == 0 && strides.token % kChunk == 0 &&
            strides.head % kChunk == 0,
        kOp, ": ", name,
        "'s rows must begin at multiples of 16 bytes on CUDA, got strides "
        "[",
        strides.batch, ", ", strides.token, ", ", strides.head, ", 1] and an address ",
        address % 16, " bytes behind one.");
  return strides;
}

void check_shapes(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, bool paged) {
  check(q.sizes().size() == 4 && k_cache.sizes().size() == 4, kOp,
        ": q and k_cache must have four dimensions, got ", describe(q.sizes()), " and ",
        describe(k_cache.sizes()), ".");
  const auto sizes = q.sizes();
  const int64_t cache[] = {paged ? k_cache.sizes()[0] : sizes[0], k_cache.sizes()[1],
                           k_cache.sizes()[2], sizes[3]};
  check_tensor(k_cache, {cache, 4}, q, kOp, "k_cache");
  check_tensor(v_cache, {cache, 4}, q, kOp, "v_cache");
  check(cache[2] > 0 && sizes[2] % cache[2] == 0, kOp,
        ": q's heads must be a multiple of the caches', got ", sizes[2], " and ", cache[2], ".");
  check(sizes[3] % kChunk == 0 && sizes[3] >= kChunk && sizes[3] <= attention::kLargestHeadDim, kOp,
        ": head_dim must be a multiple of 8 up to ", attention::kLargestHeadDim, " on CUDA, got ",
        sizes[3], ".");
  check(sizes[0] * sizes[1] * sizes[2] <= attention::kLargestLength, kOp,
        ": batch times tokens times heads must be at most ", attention::kLargestLength, ", got ",
        sizes[0], ", ", sizes[1], " and ", sizes[2], ".");
}

std::tuple<Tensor, Tensor> attention_decode(
    const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& cache_seqlens,
    const std::optional<Tensor>& k_new, const std::optional<Tensor>& v_new,
    const std::optional<Tensor>& block_table, const std::optional<Tensor>& alibi_slopes,
    const std::optional<Tensor>& starts_k, std::optional<double> scale, int64_t window_left,
    double softcap) {
  const DeviceScope scope(q);
  check_shapes(q, k_cache, v_cache, block_table.has_value());
  AttentionDecode params{};
  params.type = dtype_of(q, kOp, "q");
  check(params.type != host::DType::kFloat32, kOp,
        ": q must be float16 or bfloat16 on CUDA, got float32.");
  check_dtype(k_cache, params.type, kOp, "k_cache");
  check_dtype(v_cache, params.type, kOp, "v_cache");
  check(softcap >= 0, kOp, ": softcap must not be negative, got ", softcap, ".");
  check(k_new.has_value() == v_new.has_value(), kOp, ": k_new and v_new must be given together.");
  const auto sizes = q.sizes();
  const auto cache_sizes = k_cache.sizes();
  const int64_t width = sizes[3];

  const std::optional<Tensor> seqlens = checked_lengths(cache_seqlens, q, kOp, "cache_seqlens");
  const std::optional<Tensor> starts = checked_lengths(starts_k, q, kOp, "starts_k");
  const std::optional<Tensor> slopes =
      checked_slopes(alibi_slopes, q.sizes()[0], q.sizes()[2], q, kOp);
  std::optional<Tensor> table;
  if (block_table) {
    check(block_table->sizes().size() == 2, kOp, ": block_table must be [batch, pages], got ",
          describe(block_table->sizes()), ".");
    const int64_t table_sizes[] = {sizes[0], block_table->sizes()[1]};
    check_tensor(*block_table, {table_sizes, 2}, q, kOp, "block_table");
    check(block_table->scalar_type() == ScalarType::Int, kOp, ": block_table must be int32, got ",
          torch::headeronly::toString(block_table->scalar_type()), ".");
    table = as_array(*block_table);
  }
  params.batch = checked_length(sizes[0], kOp, "batch");
  params.tokens = checked_length(sizes[1], kOp, "tokens");
  params.heads = checked_length(sizes[2], kOp, "heads");
  params.kv_heads = static_cast<int>(cache_sizes[2]);
  params.head_dim = static_cast<int>(width);
  params.blocks = checked_length(cache_sizes[0], kOp, "blocks");
  params.page = checked_length(cache_sizes[1], kOp, "keys of a block");
  params.pages = table ? checked_length(table->sizes()[1], kOp, "pages") : 1;
  params.window_left = checked_window(window_left, kOp, "window_left");
  params.scale = static_cast<float>(scale.value_or(1.0 / std::sqrt(static_cast<double>(width))));
  params.softcap = static_cast<float>(softcap);
  params.alibi = data_or_null<float>(slopes);
  params.alibi_batch_stride = slopes && slopes->sizes().size() == 2 ? params.heads : 0;
  params.starts_k = data_or_null<int32_t>(starts);
  params.cache_seqlens = data_or_null<int32_t>(seqlens);
  params.block_table = data_or_null<int32_t>(table);

  const Operand queries(q, width);
  params.q = queries.tensor.const_data_ptr();
  params.q_strides = queries.strides;
  params.k_strides = strides_of_cache(k_cache, "k_cache");
  params.v_strides = strides_of_cache(v_cache, "v_cache");
  params.k_cache = k_cache.mutable_data_ptr();
  params.v_cache = v_cache.mutable_data_ptr();
  std::optional<Operand> new_keys, new_values;
  if (k_new) {
    check(k_new->sizes().size() == 4, kOp, ": k_new must have four dimensions, got ",
          describe(k_new->sizes()), ".");
    const int64_t new_sizes[] = {sizes[0], k_new->sizes()[1], cache_sizes[2], width};
    check_tensor(*k_new, {new_sizes, 4}, q, kOp, "k_new");
    check_tensor(*v_new, {new_sizes, 4}, q, kOp, "v_new");
    check_dtype(*k_new, params.type, kOp, "k_new");
    check_dtype(*v_new, params.type, kOp, "v_new");
    new_keys.emplace(*k_new, width);
    new_values.emplace(*v_new, width);
    params.fresh = checked_length(new_sizes[1], kOp, "new keys");
    params.k_new = new_keys->tensor.const_data_ptr();
    params.v_new = new_values->tensor.const_data_ptr();
    params.k_new_strides = new_keys->strides;
    params.v_new_strides = new_values->strides;
  }

  Tensor out = new_output(q, width);
  const int64_t lse_sizes[] = {sizes[0], sizes[2], sizes[1]};
  Tensor lse = torch::stable::new_empty(q, {lse_sizes, 3}, ScalarType::Float);
  params.out = out.mutable_data_ptr();
  params.lse = static_cast<float*>(lse.mutable_data_ptr());
  params.splits = attention::attention_decode_splits(params);
  const int64_t floats = attention::attention_decode_workspace(params);
  std::optional<Tensor> workspace;
  if (floats > 0) {
    workspace = new_vector(q, floats, ScalarType::Float);
    params.workspace = static_cast<float*>(workspace->mutable_data_ptr());
  }
  attention::attention_decode(params, scope.stream());
  return {out, lse};
}

}  // namespace
}  // namespace llmjp::bindings

LLMJP_LIBRARY_IMPL(LLMJP_NAMESPACE, LLMJP_DISPATCH_KEY, library) {
  library.impl("attention_decode", TORCH_BOX(&llmjp::bindings::attention_decode));
}
