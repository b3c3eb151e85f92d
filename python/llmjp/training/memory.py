"""The memory of a training step on one GPU, predicted from sizes alone."""

from dataclasses import dataclass
from typing import Any

from llmjp.config import ModelConfig

GIB = 1 << 30
FP32 = 4
# Bytes of logits that linear_cross_entropy makes at a time on a GPU; their gradient takes their
# place, and the gradient of the hidden states stands beside them.
_LOGITS = 1 << 28
_TILE = 64  # queries that attention's backward pass takes at a time
# DeepSpeed's defaults, in elements.
_BUCKET, _LIVE, _PREFETCH = 500_000_000, 1_000_000_000, 50_000_000
# What CUDA, cuBLAS and NCCL take for themselves, and what the allocator loses between blocks: an
# assumption, not measured here.
_CONTEXT, _FRAGMENTATION = 1.5 * GIB, 0.05


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, by what they hold.

    Attributes:
        weights: of the model in the training's number format; under ZeRO-3 a share.
        master: fp32 weights behind them.
        optimizer: AdamW's two means.
        gradients: accumulated until the step, and DeepSpeed's buffers that reduce them.
        step: copies of gradients while the optimizer works; the activations are gone by then.
        kept: activations that wait for the backward pass.
        working: the block that is being computed, the loss, and the embedding's gradient; under
            ZeRO-1 and 2 the gradients of a micro-batch beside those accumulated, under ZeRO-3 the
            weights that are gathered at a time.
        host: bytes in the CPU's memory instead, for each process, because of offloading.
    """

    weights: int
    master: int
    optimizer: int
    gradients: int
    step: int
    kept: int
    working: int
    host: int

    @property
    def states(self) -> int:
        """What is there all the time."""
        return self.weights + self.master + self.optimizer + self.gradients

    @property
    def peak(self) -> int:
        """The most at any moment, without CUDA's own and without what the allocator loses."""
        return self.states + max(self.step, self.kept + self.working)

    @property
    def needed(self) -> int:
        """Bytes that a GPU should have."""
        return int(self.peak * (1 + _FRAGMENTATION) + _CONTEXT)


def predict(
    config: ModelConfig,
    zero: dict[str, Any],
    *,
    processes: int,
    micro_batch: int,
    accumulation: int,
    length: int,
    itemsize: int,
    recompute: bool,
    fp32_gradients: bool = False,
    documents: int | None = None,
) -> Memory:
    """The memory of one process.

    Args:
        config: the model's shape.
        zero: DeepSpeed's `zero_optimization`.
        processes: over which ZeRO shards.
        micro_batch: samples at a time.
        accumulation: micro-batches of a step.
        length: tokens of a sample.
        itemsize: bytes of a number of the training's format.
        recompute: whether the blocks' insides are computed again in the backward pass.
        fp32_gradients: whether micro-batches' gradients are added up in fp32.
        documents: kept apart in a micro-batch; None: samples are not divided.
    """
    stage = zero.get("stage", 0)
    count = config.parameter_count()
    shard = -(-count // processes)
    weights = count * itemsize
    gradients = count * itemsize
    # In stage 0 only fp16 has fp32 weights behind it: bf16 is refused there.
    master = shard * FP32 if stage else (count * FP32 if itemsize < FP32 else 0)
    optimizer = 2 * FP32 * (shard if stage else count)
    # The share's gradients flattened, in fp32, and once more: what was measured on a CPU.
    step = shard * (2 * FP32 + itemsize) if stage in (1, 2) else 0
    added = beside = 0
    if stage:
        # DeepSpeed takes a bucket at its full size, however small the model is.
        buffers = 2 if zero.get("overlap_comm", stage == 3) else 1
        bucket = buffers * itemsize * int(zero.get("reduce_bucket_size", _BUCKET))
        own = count if stage == 1 else shard
        # ZeRO 1 holds on to a micro-batch's gradients when it has added them up in fp32.
        added = (FP32 + itemsize * (stage == 1)) if fp32_gradients else itemsize
        gradients = bucket + added * own
        beside = itemsize * own if accumulation > 1 else 0
    if stage == 3:
        live = int(zero.get("stage3_max_live_parameters", _LIVE))
        prefetch = int(zero.get("stage3_prefetch_bucket_size", _PREFETCH))
        weights = itemsize * shard
        beside = itemsize * min(live + prefetch, count)
        step = FP32 * min(shard, int(zero.get("sub_group_size", 1_000_000_000)))
    host = 0
    if zero.get("offload_optimizer", {}).get("device", "none") != "none":
        # Gradients follow the optimizer's state; the buffers stay.
        host += master + optimizer + shard * FP32
        gradients -= added * shard if stage > 1 else 0
        master = optimizer = step = 0
    if zero.get("offload_param", {}).get("device", "none") != "none":
        host += weights
        weights = 0
    tokens = micro_batch * length
    kept, working = activations(config, tokens, itemsize, recompute, documents or micro_batch)
    return Memory(weights, master, optimizer, gradients, step, kept, working + beside, host)


def block_activations(config: ModelConfig, tokens: int, itemsize: int) -> int:
    """Bytes that one block keeps for its backward pass.

    Eight widths: two residual streams, the inputs of c_attn and c_fc, q, k, v and the attention's
    output; two of the MLP's: GELU's input and output. fp32: the norms' mean and 1/deviation, and a
    log-sum-exp a head.
    """
    numbers = 8 * config.n_embd + 2 * config.inner_width
    return tokens * (numbers * itemsize + (4 + config.n_head) * FP32)


def activations(
    config: ModelConfig, tokens: int, itemsize: int, recompute: bool, sequences: int
) -> tuple[int, int]:
    """Bytes that wait for the backward pass, and the most that a moment adds to them.

    Args:
        config: the model's shape.
        tokens: of a micro-batch.
        itemsize: bytes of a number.
        recompute: whether blocks' insides are computed again.
        sequences: that attention keeps apart among the tokens.
    """
    width = config.n_embd
    block = block_activations(config, tokens, itemsize)
    # Of each block only its two inputs, where its inside is computed again.
    blocks = config.n_layer * (2 * width * tokens * itemsize if recompute else block)
    # The embeddings' dropout mask; the last norm's stream and output.
    rest = tokens * width * (2 * itemsize + 1)
    loss = tokens * width * itemsize + config.vocab_size * width * FP32
    logits = min(_LOGITS, tokens * config.vocab_size * itemsize)
    mlp = tokens * (2 * config.inner_width + 3 * width) * itemsize
    # dq, dk, dv, the output's gradient, the stream's two; and dq once more in fp32 for whole tiles
    # of queries, the last of each sequence partly empty, with two numbers a query and head.
    queries = tokens + sequences * _TILE
    attention = 6 * tokens * width * itemsize + queries * (width + 2 * config.n_head) * FP32
    gradient = max(mlp, attention)
    again = block if recompute else 0
    return blocks + rest, max(loss + logits, loss + again + gradient)
