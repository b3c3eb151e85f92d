"""The DeepSpeed engine: its configuration, the model in it, and the weights out of it."""

import contextlib
import gc
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmjp.checkpoint.huggingface import load_model
from llmjp.config import ModelConfig
from llmjp.errors import UserError
from llmjp.model import GPT
from llmjp.training.processes import Processes
from llmjp.training.settings import TrainSettings

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Batches:
    """How a global batch is made: micro samples a process at a time, accumulated.

    Attributes:
        size: samples of an optimizer step.
        micro: samples that one process takes at once.
        accumulation: how many times it does so for one step.
    """

    size: int
    micro: int
    accumulation: int

    @classmethod
    def of(cls, settings: TrainSettings, world: int) -> "Batches":
        """The arithmetic for `world` processes.

        Raises:
            UserError: the global batch is no multiple of what the processes take at once.
        """
        at_once = settings.micro_batch * world
        if settings.global_batch % at_once:
            raise UserError(
                f"global_batch {settings.global_batch} is not a multiple of micro_batch "
                f"{settings.micro_batch} x {world} processes = {at_once}"
            )
        size = settings.global_batch
        return cls(size, settings.micro_batch, size // at_once)

    def place(self, index: int, rank: int, world: int) -> int:
        """The first sample, among a step's, of a process's micro-batch number `index`.

        All together take each sample once; which a step has does not depend on their number.
        """
        return (index * world + rank) * self.micro


def number_format(settings: TrainSettings, device: torch.device) -> str:
    """fp32, bf16 or fp16, with `auto` decided.

    Raises:
        UserError: fp16 on a CPU, fp32 on a GPU's kernels, or bf16 without ZeRO.
    """
    dtype = settings.dtype
    if dtype == "auto":
        dtype = "bf16" if device.type == "cuda" else "fp32"
    if dtype == "fp16" and device.type == "cpu":
        raise UserError("fp16 needs a GPU: DeepSpeed does not train in it on a CPU; use bf16, fp32")
    if dtype == "fp32" and device.type == "cuda" and settings.kernels == "on":
        raise UserError("fp32 on a GPU needs --kernels off: attention's kernels take bf16 and fp16")
    if dtype == "bf16" and settings.zero_stage == 0:
        # DeepSpeed then updates the bf16 weights themselves, and rounding eats most of an update.
        raise UserError(
            "bf16 needs zero_stage 1, 2 or 3: in stage 0 DeepSpeed keeps no fp32 weights behind it"
        )
    return dtype


def deepspeed_config(settings: TrainSettings, batches: Batches, dtype: str) -> dict[str, Any]:
    """DeepSpeed's configuration: ours with the user's file merged in.

    Raises:
        UserError: the file cannot be read, or contradicts a setting.
    """
    ours: dict[str, Any] = {
        "train_batch_size": batches.size,
        "train_micro_batch_size_per_gpu": batches.micro,
        "gradient_accumulation_steps": batches.accumulation,
        "gradient_clipping": settings.clip,
        "zero_optimization": _zero(settings),
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": settings.lr,
                "betas": [settings.beta1, settings.beta2],
                "eps": settings.epsilon,
                "weight_decay": settings.weight_decay,
                # DeepSpeed's own Adam is compiled on the spot; torch's is there already. Fused it
                # reads and writes everything once, on the CPU too.
                "torch_adam": True,
                "fused": True,
            },
        },
        "steps_per_print": None,
    }
    if dtype == "bf16":
        ours["bf16"] = {"enabled": True}
    if dtype == "fp16":
        ours["fp16"] = {
            "enabled": True,
            "initial_scale_power": 11,
            "loss_scale_window": 500,
            "hysteresis": 2,
            "min_loss_scale": 1,
        }
    if settings.fp32_gradients and dtype != "fp32":
        ours["data_types"] = {"grad_accum_dtype": "fp32"}
    if settings.offload != "none":
        # DeepSpeed asks for its own compiled Adam when the optimizer's state is on the CPU.
        ours["zero_force_ds_cpu_optimizer"] = False
    if settings.deepspeed_config is None:
        return ours
    path = Path(settings.deepspeed_config)
    theirs = read_deepspeed_file(path)
    if "scheduler" in theirs:
        raise UserError(
            f"{path} has a scheduler; lr, min_lr, warmup and decay_steps are the schedule"
        )
    if "writer" in (theirs.get("checkpoint") or {}):
        raise UserError(f"{path} has a checkpoint writer; async_save is the setting for that")
    parameters = ("optimizer", "params")
    governed = {
        ("train_batch_size",): ("global_batch", batches.size),
        ("train_micro_batch_size_per_gpu",): ("micro_batch", batches.micro),
        ("gradient_accumulation_steps",): (
            "global_batch / (micro_batch x processes)",
            batches.accumulation,
        ),
        ("gradient_clipping",): ("clip", settings.clip),
        ("zero_optimization", "stage"): ("zero_stage", settings.zero_stage),
        ("bf16", "enabled"): ("dtype", dtype == "bf16"),
        ("fp16", "enabled"): ("dtype", dtype == "fp16"),
        ("data_types", "grad_accum_dtype"): (
            "fp32_gradients",
            "fp32" if settings.fp32_gradients else dtype,
        ),
        (*parameters, "lr"): ("lr", settings.lr),
        (*parameters, "betas"): ("beta1, beta2", [settings.beta1, settings.beta2]),
        (*parameters, "eps"): ("epsilon", settings.epsilon),
        (*parameters, "weight_decay"): ("weight_decay", settings.weight_decay),
    }
    for keys, (name, value) in governed.items():
        entry: Any = theirs
        for key in keys[:-1]:
            entry = entry.get(key, {}) if isinstance(entry, dict) else {}
        if not isinstance(entry, dict) or keys[-1] not in entry:
            continue
        if entry[keys[-1]] == "auto":
            entry[keys[-1]] = value
        elif entry[keys[-1]] != value:
            raise UserError(
                f"{path} says {'.'.join(keys)} = {json.dumps(entry[keys[-1]])}, but the setting "
                f'{name} gives {json.dumps(value)}: change one, or write "auto" in the file'
            )
    return _merged(ours, theirs)


def _zero(settings: TrainSettings) -> dict[str, Any]:
    """The settings' part of DeepSpeed's zero_optimization."""
    zero: dict[str, Any] = {"stage": settings.zero_stage}
    kept = {"none": (), "optimizer": ("optimizer",), "all": ("optimizer", "param")}
    for name in kept[settings.offload]:
        zero[f"offload_{name}"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return zero


def read_deepspeed_file(path: Path) -> dict[str, Any]:
    """A DeepSpeed JSON file's content.

    Raises:
        UserError: it cannot be read or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        mine = result.get(key)
        both = isinstance(mine, dict) and isinstance(value, dict)
        result[key] = _merged(mine, value) if both else value  # type: ignore[arg-type]
    return result


def build_engine(
    settings: TrainSettings,
    config: ModelConfig,
    ds_config: dict[str, Any],
    processes: Processes,
    source: Path | None,
) -> Any:
    """The model in a DeepSpeed engine.

    Args:
        settings: of the run.
        config: the model's shape.
        ds_config: from deepspeed_config().
        processes: of the run.
        source: a model folder whose weights to start from; None draws new ones from the seed.

    Raises:
        UserError: the model folder cannot be read, or DeepSpeed refuses the configuration.
    """
    import deepspeed
    from deepspeed.runtime.config import DeepSpeedConfigError

    stage = settings.zero_stage
    torch.manual_seed(settings.seed)
    if stage == 3:
        # Each parameter is sharded as soon as its module has drawn it: none is whole for long.
        with deepspeed.zero.Init(config_dict_or_path=ds_config):
            model = GPT(config)
        if source is not None:
            _load_sharded(model, source, processes)
    else:
        model = GPT(config) if source is None else load_model(source, dtype=torch.float32)
    model.checkpoint_activations(settings.recompute)
    model.use_kernels(settings.kernels == "on")
    try:
        engine, *_ = deepspeed.initialize(
            model=model, model_parameters=_parameter_groups(model, settings), config=ds_config
        )
    except (ValueError, AssertionError, NotImplementedError, DeepSpeedConfigError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"DeepSpeed refuses the configuration: {reason}") from error
    return engine


def close_engine(engine: Any) -> None:
    """Lets go of the engine, whose hooks on the parameters no garbage collection sees through.

    Without this a second run in the same process finds the first one's memory taken. (What
    DeepSpeed 0.19 keeps of a ZeRO-3 engine stays even so.)
    """
    engine.destroy()
    gc.collect()


def _parameter_groups(model: GPT, settings: TrainSettings) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms' weights and other vectors do not."""
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for parameter in model.parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)  # the whole one's under ZeRO-3
        groups[len(shape) > 1].append(parameter)
    return [
        {"params": groups[True], "weight_decay": settings.weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]


@contextlib.contextmanager
def _whole(parameter: Tensor, writer: int | None = None) -> Iterator[None]:
    """Within it a parameter that ZeRO-3 shards is whole; what `writer` changes is kept."""
    if not hasattr(parameter, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=writer):
        yield


def _load_sharded(model: GPT, source: Path, processes: Processes) -> None:
    """Weights of a model folder into a sharded model: read by the first process alone."""

    def read() -> dict[str, Tensor]:
        return dict(load_model(source).named_parameters())

    weights = processes.first_alone(read)
    for name, parameter in model.named_parameters():
        with _whole(parameter, writer=0), torch.no_grad():
            if weights is not None:
                parameter.copy_(weights[name])


def whole_weights(engine: Any, processes: Processes) -> dict[str, Tensor] | None:
    """The model's weights by name on the CPU, in the training's number format.

    Every process must call this: ZeRO-3 collects the shards from all.

    Returns:
        The weights in the first process; None in the others.
    """
    weights: dict[str, Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        with _whole(parameter):
            if processes.first:
                weights[name] = parameter.detach().to("cpu", copy=True)
    return weights if processes.first else None


def plain_gradient_norm(engine: Any) -> float | None:
    """Norm of the gradient that the parameters hold; None where ZeRO or a half format keeps it."""
    if engine.zero_optimization() or engine.bfloat16_enabled() or engine.fp16_enabled():
        return None
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def gradient_norm(engine: Any) -> float | None:
    """Norm of the last step's gradient before clipping; None where DeepSpeed has not kept it."""
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)
