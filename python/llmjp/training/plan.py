"""`llmjp train --dry-run`: what a run would be, and whether its GPUs can hold it."""

import os

import torch

from llmjp.config import ModelConfig
from llmjp.errors import UserError
from llmjp.training import engine, launchers
from llmjp.training.memory import GIB, Memory, predict
from llmjp.training.settings import TrainSettings

# Tokens of a document, on average, where documents are isolated: shorter ones take more memory.
_SHORT = 64
_MODES = {False: "kept", True: "recomputed"}


def predicted(
    settings: TrainSettings, config: ModelConfig, length: int, dtype: str, processes: int
) -> Memory:
    """The memory of one process of a run.

    Raises:
        UserError: the batch does not divide, or the DeepSpeed file contradicts a setting.
    """
    batches = engine.Batches.of(settings, processes)
    zero = engine.deepspeed_config(settings, batches, dtype)["zero_optimization"]
    return predict(
        config,
        zero,
        processes=processes,
        micro_batch=settings.micro_batch,
        accumulation=batches.accumulation,
        length=length,
        itemsize=engine.TORCH_DTYPES[dtype].itemsize,
        recompute=settings.recompute,
        fp32_gradients=settings.fp32_gradients and dtype != "fp32",
        documents=settings.micro_batch * length // _SHORT if settings.isolate_documents else None,
    )


def dry_run(settings: TrainSettings) -> int:
    """Prints the plan of a run; returns the exit code, 1 where it cannot fit.

    Raises:
        UserError: the settings do not go together.
    """
    from llmjp.train import choose_model, open_data, sample_length

    config, _, _ = choose_model(settings)
    length = sample_length(settings, config)
    settings = settings.in_steps(length)
    if settings.epochs is not None:
        if not settings.data:
            raise UserError("epochs are a number of steps only with --data; --steps goes without")
        settings = settings.in_epochs(open_data(settings, length)[0].samples)
    started = launchers.place(os.environ)
    processes = settings.gpus or (1 if started is None else started[1])
    cuda = torch.cuda.is_available()
    memory = settings.gpu_memory
    if memory is None and cuda:
        memory = torch.cuda.get_device_properties(0).total_memory / GIB
    # Planning is for GPUs unless a CPU is all that was asked about.
    device = torch.device("cuda" if memory is not None else "cpu")
    dtype = engine.number_format(settings, device)
    batches = engine.Batches.of(settings, processes)
    plan = predicted(settings, config, length, dtype, processes)

    tokens = batches.size * length
    lines = [
        (
            "model",
            f"{settings.model}: {config.parameter_count():,} parameters, {config.n_layer} layers "
            f"of width {config.n_embd}, initial deviation {config.initializer_range}",
        ),
        (
            "batch",
            f"{batches.size} samples = {batches.micro} x {processes} processes x "
            f"{batches.accumulation} accumulated; x {length} = {tokens:,} tokens a step",
        ),
        (
            "length",
            f"{settings.steps:,} steps = {settings.steps * tokens:,} tokens; warm-up "
            f"{settings.warmup:,} steps, decay {settings.decay_steps or settings.steps:,}",
        ),
        (
            "work",
            f"{config.flops_per_token(length) * tokens / processes / 1e12:,.0f} TFLOP a step and "
            f"process, without what is computed again"
            + (", and less in isolated documents" if settings.isolate_documents else ""),
        ),
        (
            "memory",
            f"of each process, {dtype}, ZeRO stage {settings.zero_stage}, offload "
            f"{settings.offload}, activations {_MODES[settings.recompute]}:",
        ),
        *((f"  {name}", f"{size / GIB:8.2f} GiB  {what}") for name, size, what in _parts(plan)),
    ]
    for title, text in lines:
        print(f"{title:<12}{text}")
    print("activations for each way:")
    for recompute, name in _MODES.items():
        other = predicted(
            TrainSettings(**{**vars(settings), "recompute": recompute}),
            config,
            length,
            dtype,
            processes,
        )
        print(
            f"  {name:<10}{(other.kept + other.working) / GIB:8.2f} GiB, "
            f"{other.needed / GIB:.2f} GiB needed in all"
        )
    if settings.kernels == "off":
        print("kernels     off: plain PyTorch takes more than this, for logits and attention")
    if memory is None:
        print("fits        unknown: no GPU here; --gpu-memory GIB tells its memory")
        return 0
    if plan.needed > memory * GIB:
        raise UserError(
            f"{plan.needed / GIB:.1f} GiB are needed and a GPU has {memory:g}: "
            f"{_advice(settings, processes)}"
        )
    print(f"fits        {plan.needed / GIB:.1f} of {memory:g} GiB")
    return 0


def _parts(plan: Memory) -> list[tuple[str, int, str]]:
    parts = [
        ("weights", plan.weights, "in the training's format"),
        ("master", plan.master, "weights in fp32"),
        ("optimizer", plan.optimizer, "AdamW's two means in fp32"),
        ("gradients", plan.gradients, "with the buffers that reduce them"),
        ("step", plan.step, "fp32 gradients while the optimizer works, after the activations"),
        ("kept", plan.kept, "activations that wait for the backward pass"),
        ("working", plan.working, "the block at work, logits, ZeRO-3's gathered weights"),
        ("peak", plan.peak, "the most at any moment"),
        ("needed", plan.needed, "with CUDA's own and what the allocator loses (assumed)"),
    ]
    if plan.host:
        parts.append(("host", plan.host, "in the CPU's memory, for each process"))
    return parts


def _advice(settings: TrainSettings, processes: int) -> str:
    """What would make it less, the cheapest first."""
    ways = []
    if settings.micro_batch > 1:
        ways.append("a smaller --micro-batch")
    if not settings.recompute:
        ways.append("--recompute")
    if settings.zero_stage < 3 and processes > 1:
        ways.append(f"--zero-stage {settings.zero_stage + 1}")
    if settings.offload == "none":
        ways.append("--offload optimizer")
    elif settings.offload == "optimizer":
        ways.append("--zero-stage 3 --offload all")
    return "try " + ", ".join(ways or ["more GPUs"])
