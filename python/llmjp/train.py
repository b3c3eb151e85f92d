"""`llmjp train`: trains or continues a model on indexed datasets, through DeepSpeed.

`python -m llmjp.train` is the same command, for `torchrun -m llmjp.train` and `deepspeed --module
llmjp.train`, which put their own arguments first.
"""

import argparse
import dataclasses
import fcntl
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from llmjp.errors import UserError
from llmjp.training import settings as settings_module
from llmjp.training.settings import TrainSettings

if TYPE_CHECKING:
    from llmjp.config import ModelConfig
    from llmjp.data.blend import Course, Validation
    from llmjp.training.engine import Batches
    from llmjp.training.processes import Processes

HELP = "Trains a model, or continues one, from token files; see docs/training.md."
INTERRUPTED = 130

# What a checkpoint may be continued under without a word: where and how often things are written,
# and how the work is dealt out.
_FREE = {
    *(
        "data",
        "final_data",
        "valid_data",
        "epochs",
        "seq_length",
        "steps",
        "output",
        "resume",
        "tokenizer",
        "model",
        "model_set",
        "dropout",
    ),
    *("save_interval", "keep_last", "async_save", "save_hf_every", "log_interval"),
    "valid_interval",
    *("valid_samples", "micro_batch", "recompute", "deepspeed_config", "decay_steps", "dtype"),
    *("gpus", "gpu_memory", "dry_run", "init_std", "peak_tflops", "tensorboard", "wandb"),
    *("kernels", "max_skipped", "spike"),
    *settings_module.IN_TOKENS,
}
# What no checkpoint can be continued under in another way.
_FIXED = ("zero_stage", "dtype", "model")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    settings_module.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command in this process; returns its exit code."""
    import torch

    from llmjp.training.processes import SharedError, launched_rank, start_processes, stop_processes

    rank = launched_rank()
    try:
        settings = settings_module.from_arguments(arguments)
    except UserError:
        if rank == 0:
            raise
        return 1  # every process was given the same
    if settings.dry_run:
        from llmjp.training.plan import dry_run

        return dry_run(settings) if rank == 0 else 0
    try:
        started = not torch.distributed.is_initialized()
        processes = start_processes()
        code = train(settings, processes)
        # Not after an error: others may be waiting in the group, and leaving would wait for them.
        if started and processes.world > 1:
            stop_processes()
        return code
    except (UserError, OSError) as error:
        if rank == 0:
            raise
        if isinstance(error, SharedError):
            return 1
        raise UserError(f"process {rank}: {error}") from error


def train(settings: TrainSettings, processes: "Processes") -> int:
    """Trains in this process, one of those of the run; returns the exit code.

    Raises:
        UserError: settings, data, checkpoint or model do not fit each other or cannot be read.
    """
    from llmjp.training import checkpoints, engine
    from llmjp.training.data_checks import check_ids
    from llmjp.training.guard import LossGuard
    from llmjp.training.trainer import Trainer

    batches, dtype = processes.together(lambda: _agree(settings, processes))
    config, source, tokenizer = processes.together(lambda: choose_model(settings))
    length = processes.together(lambda: sample_length(settings, config))
    settings = settings.in_steps(length)
    data, valid = processes.together(lambda: open_data(settings, length))
    check_ids(settings, data, valid, config, processes)
    settings = settings.in_epochs(data.samples)
    ds_config = processes.together(lambda: engine.deepspeed_config(settings, batches, dtype))
    record = describe(settings, config, data, dtype, processes.world)

    lock = processes.first_alone(lambda: _own(Path(settings.output)))
    folder = checkpoints.Checkpoints(
        Path(settings.output) / "checkpoints", settings.keep_last, settings.saves_in_background
    )
    # One process looks for all: machines may see a shared folder's last changes at other times.
    found = processes.first_alone(lambda: find_start(settings, folder, record))
    start = processes.shared(found)[0]
    source = None if start is not None else source
    world = processes.world if start is None else checkpoints.processes_of(start)
    dealt_anew = start is not None and world != processes.world and settings.zero_stage > 0
    if dealt_anew:
        ds_config["checkpoint"] = {**ds_config.get("checkpoint", {}), "load_universal": True}
    ds_engine = engine.build_engine(settings, config, ds_config, processes, source)
    before: dict[str, Any] = {"step": 0, "samples": 0}
    if start is not None:
        if dealt_anew:
            checkpoints.load_anew(ds_engine, start, processes)
        else:
            processes.together(lambda: checkpoints.load(ds_engine, start))
        before = checkpoints.read_record(start)
    guard = LossGuard(settings.spike, settings.max_skipped, before.get("guard", ((), 0)))
    if processes.first:
        report(settings, config, data, valid, batches, dtype, processes, start)
    trainer = Trainer(
        settings,
        config,
        ds_engine,
        processes,
        batches,
        data,
        valid,
        folder,
        record,
        before["step"],
        before["samples"],
        tokenizer,
        guard,
    )
    finished = trainer.run()
    engine.close_engine(ds_engine)
    if processes.first:
        assert lock is not None
        lock.close()
        if finished:
            print(f"done: {settings.output}/hf holds the model", flush=True)
        else:
            print(
                f"stopped after step {trainer.done}, which is saved; the same command continues",
                flush=True,
            )
    return INTERRUPTED if trainer.interrupted and not finished else 0


def _agree(settings: TrainSettings, processes: "Processes") -> "tuple[Batches, str]":
    """How batches are made, and the number format.

    Raises:
        UserError: the settings do not suit the processes or the device.
    """
    from llmjp.training import engine

    if settings.gpus not in (None, processes.world):
        raise UserError(
            f"the settings are for {settings.gpus} processes (gpus), but {processes.world} were "
            f"started: --gpus {processes.world} if that is meant"
        )
    dtype = engine.number_format(settings, processes.device)
    return engine.Batches.of(settings, processes.world), dtype


def sample_length(settings: TrainSettings, config: "ModelConfig") -> int:
    """Tokens of a sample.

    Raises:
        UserError: the model has fewer positions.
    """
    length = settings.seq_length or config.n_positions
    if length > config.n_positions:
        raise UserError(
            f"seq_length {length} is more than the model's {config.n_positions} positions"
        )
    return length


def choose_model(settings: TrainSettings) -> "tuple[ModelConfig, Path | None, Path | None]":
    """The model's shape, the folder of its weights if it has any, and that of its tokenizer.

    Raises:
        UserError: there is no such model or tokenizer, or they do not fit.
    """
    from llmjp.checkpoint.huggingface import load_config
    from llmjp.config import PRESETS, preset
    from llmjp.data.tokenize import end_token_id, load_tokenizer

    fields = settings.model_fields()
    tokenizer = None if settings.tokenizer is None else Path(settings.tokenizer)
    source = None
    if settings.model in PRESETS:
        config = preset(settings.model, **fields)
    else:
        source = Path(settings.model)
        if not source.is_dir():
            raise UserError(f"model {source} is no folder and none of {', '.join(PRESETS)}")
        if settings.model_set:
            raise UserError("model_set changes a preset; a model folder has its own shape")
        config = dataclasses.replace(load_config(source), **fields)
        if tokenizer is None and (source / "tokenizer.json").exists():
            tokenizer = source
    if tokenizer is not None:
        if not tokenizer.is_dir():
            raise UserError(f"tokenizer {tokenizer} is not a folder")
        loaded = load_tokenizer(tokenizer)
        if loaded.vocab_size > config.vocab_size:
            raise UserError(
                f"the tokenizer has {loaded.vocab_size} ids, the model {config.vocab_size}: "
                f"--model-set vocab_size={loaded.vocab_size} or more makes room"
            )
        if source is None:
            end = end_token_id(loaded)
            config = dataclasses.replace(config, bos_token_id=end, eos_token_id=end)
    return config, source, tokenizer


def open_data(settings: TrainSettings, length: int) -> "tuple[Course, list[Validation]]":
    """Training samples, and validation samples of each source that has enough for it.

    Raises:
        UserError: data is missing, damaged or too little to train on.
    """
    from llmjp.data.blend import Blend, Course, open_sources, validation_data
    from llmjp.data.sources import parse_sources

    split = (1.0,) if settings.valid_data else settings.split_weights()
    sources = open_sources(parse_sources(settings.data))
    how: dict[str, Any] = {"split": split, "folds": settings.folds, "chosen": settings.fold}
    blends = [Blend(sources, length, settings.seed, **how)]
    if settings.final_data:
        final = open_sources(parse_sources(settings.final_data))
        blends.append(Blend(final, length, settings.seed))
    if settings.valid_interval == 0:
        return Course(blends), []
    if settings.valid_data:
        others = open_sources(parse_sources(settings.valid_data))
        return Course(blends), validation_data(others, length, settings.seed, None)
    if split[1] == 0:
        return Course(blends), []
    return Course(blends), validation_data(sources, length, settings.seed, split)


def describe(
    settings: TrainSettings,
    config: "ModelConfig",
    data: "Course",
    dtype: str,
    world: int,
) -> dict[str, Any]:
    """What a checkpoint must agree with to be continued, as it stands in its record."""
    from llmjp.training.engine import read_deepspeed_file

    path = settings.deepspeed_config
    decisive: dict[str, Any] = {
        name: value for name, value in dataclasses.asdict(settings).items() if name not in _FREE
    }
    return {
        "settings": {
            **decisive,
            "decay_steps": settings.decay_steps or settings.steps,
            "seq_length": data.seq_length,
            "split": "1 (valid_data is given)" if settings.valid_data else settings.split,
            "dtype": dtype,
            "processes": world,
            "model": config.to_dict(),
            **dict(zip(("data", "final_data"), [*data.describe(), {}], strict=False)),
            "deepspeed_config": None if path is None else read_deepspeed_file(Path(path)),
        }
    }


def find_start(settings: TrainSettings, folder: Any, record: dict[str, Any]) -> Path | None:
    """The checkpoint to continue from, or None to start from the beginning.

    Raises:
        UserError: there is one that the settings forbid to continue.
    """
    from llmjp.training.checkpoints import check_whole, read_record

    start: Path | None = folder.latest()
    if start is None:
        return None
    if settings.resume == "never":
        raise UserError(f"{start} exists, and resume is 'never': name another output")
    before, now = read_record(start).get("settings", {}), record["settings"]
    # Shards are dealt out anew where the number of processes is another.
    changed = [name for name in now if before.get(name) != now[name] and name != "processes"]
    fixed = [name for name in _FIXED if name in changed]
    if fixed or (changed and settings.resume != "changed"):
        name = (fixed or changed)[0]
        old, new = before.get(name), now[name]
        if isinstance(old, dict) and isinstance(new, dict):
            name, old, new = next(
                (f"{name}.{key}", old.get(key), new.get(key))
                for key in [*new, *old]
                if old.get(key) != new.get(key)
            )
        more = f" ({len(changed)} settings differ: {', '.join(changed)})" if changed[1:] else ""
        advice = (
            "start from OUTPUT/hf with --model and another output"
            if fixed
            else "set it back, continue with --resume changed, or name another output"
        )
        raise UserError(f"{start} was written with {name} = {old!r}, now {new!r}{more}: {advice}")
    check_whole(start)
    return start


def report(
    settings: TrainSettings,
    config: "ModelConfig",
    data: "Course",
    valid: "list[Validation]",
    batches: "Batches",
    dtype: str,
    processes: "Processes",
    start: Path | None,
) -> None:
    """Prints what is about to happen, in a few lines."""
    import torch

    from llmjp.training.progress import kernels, slow_paths, versions

    device = processes.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    tokens = batches.size * data.seq_length
    epochs = settings.steps * batches.size / data.samples
    lines = [
        ("versions", versions()),
        ("device", f"{name} x {processes.world}, {dtype}, ZeRO stage {settings.zero_stage}"),
        (
            "model",
            f"{settings.model}: {config.parameter_count():,} parameters, {config.n_layer} layers "
            f"of width {config.n_embd}, vocabulary {config.vocab_size:,}",
        ),
        (
            "data",
            f"{data.token_count:,} tokens in {data.document_count:,} documents; "
            f"{data.samples:,} samples of {data.seq_length:,} an epoch",
        ),
        *(("", line) for line in data.report()),
        ("validation", _validation(settings, valid)),
        (
            "batch",
            f"{batches.size} samples = {batches.micro} x {processes.world} processes x "
            f"{batches.accumulation} accumulated = {tokens:,} tokens a step; "
            f"{settings.steps:,} steps = {settings.steps * tokens:,} tokens = {epochs:.2f} epochs",
        ),
        ("kernels", kernels(device, settings.kernels == "on")),
        ("start", _beginning(start, processes.world)),
    ]
    for title, text in lines:
        print(f"{title:<12}{text}", flush=True)
    slow = slow_paths(device, settings.kernels == "on")
    if slow:
        bar = "!" * 72
        print(f"{bar}\nWARNING: not at full speed: {slow}\n{bar}", flush=True)


def _beginning(start: Path | None, world: int) -> str:
    from llmjp.training.checkpoints import processes_of

    if start is None:
        return "from the beginning"
    before = processes_of(start)
    return f"from {start}" + ("" if before == world else f", written by {before} processes")


def _validation(settings: TrainSettings, valid: "list[Validation]") -> str:
    if valid:
        counts = [min(settings.valid_samples, part.data.samples_per_epoch) for part in valid]
        parts = zip(counts, valid, strict=True)
        of = f" ({', '.join(f'{count:,} of {part.name}' for count, part in parts)})"
        every = f"{sum(counts):,} samples every {settings.valid_interval} steps"
        return every + (of if valid[1:] else "")
    if settings.valid_interval == 0 or not (settings.valid_data or settings.split_weights()[1]):
        return "off"
    return f"off: the {settings.split} split leaves it less than one sample"


def _own(output: Path) -> IO[bytes]:
    """Locks the output folder for this run.

    Raises:
        UserError: another run is writing there.
    """
    output.mkdir(parents=True, exist_ok=True)
    stream = (output / ".lock").open("ab")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{output} is in use by another run") from None
    except OSError:
        pass  # a file system without locks: the check is worth having, not worth failing for
    return stream


if __name__ == "__main__":
    from llmjp import cli

    cli.run_alone(["train", *sys.argv[1:]])
