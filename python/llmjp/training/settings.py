"""Settings of `llmjp train`: one dataclass, filled from a YAML file and from flags, which win."""

import argparse
import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llmjp import configs
from llmjp.data.sources import source_words
from llmjp.errors import UserError

DTYPES = ("auto", "fp32", "bf16", "fp16")
OFFLOAD = ("none", "optimizer", "all")
# Lengths that are given in steps or in tokens; what is given later replaces both.
IN_TOKENS = {"train_tokens": "steps", "warmup_tokens": "warmup", "decay_tokens": "decay_steps"}
RESUME = ("auto", "never", "changed")


def _about(help: str, choices: tuple[Any, ...] | None = None) -> dict[str, Any]:
    return {"help": help, "choices": choices}


def _setting(default: Any, help: str, choices: tuple[Any, ...] | None = None) -> Any:
    return field(default=default, metadata=_about(help, choices))


@dataclass(frozen=True)
class TrainSettings:
    """What a training run does. docs/training.md explains each setting.

    Lengths are in tokens, intervals in optimizer steps, batches in samples of seq_length tokens.
    """

    data: list[str] = field(
        default_factory=list,
        metadata=_about("sources of the training data: PREFIX ..., or WEIGHT PREFIX ... of each"),
    )
    folds: int = _setting(1, "disjoint parts of the training documents, visited one after another")
    fold: list[int] = field(
        default_factory=list, metadata=_about("folds to visit, from 0, in order; none: all")
    )
    final_data: list[str] = field(
        default_factory=list,
        metadata=_about("sources, as data, that follow when all of the data has been visited once"),
    )
    valid_data: list[str] = field(
        default_factory=list,
        metadata=_about("sources of validation data, as data; none: a part of the data"),
    )
    split: str = _setting(
        "99:1", "shares of training, validation and, if there is a third, of what is left out"
    )
    isolate_documents: bool = _setting(
        False, "each token sees its own document alone, and positions begin anew with each"
    )
    tokenizer: str | None = _setting(
        None, "the tokenizer's folder; none: that of a model which is a folder"
    )
    output: str = _setting("", "folder that gets checkpoints, metrics and the trained model")

    model: str = _setting("tiny", "a preset (llm-jp-1.3b, llm-jp-13b, tiny) or a model folder")
    model_set: list[str] = field(
        default_factory=list, metadata=_about("changed fields of the preset, as FIELD=VALUE")
    )
    dropout: float | None = _setting(None, "probability of all three dropouts; none: the model's")
    seq_length: int | None = _setting(None, "tokens of a sample; none: the model's positions")

    global_batch: int = _setting(32, "samples of one optimizer step, over all processes")
    micro_batch: int = _setting(4, "samples that one process takes at once")
    steps: int = _setting(1000, "optimizer steps of the whole run")
    epochs: float | None = _setting(
        None, "length of the run in passes over data and final_data, in place of steps"
    )
    lr: float = _setting(2e-4, "highest learning rate")
    min_lr: float = _setting(1e-6, "learning rate at the end of the decay")
    warmup: int = _setting(100, "steps of linear warm-up")
    decay_steps: int | None = _setting(None, "step at which the cosine ends; none: the last step")
    train_tokens: int | None = _setting(None, "tokens of the whole run, in place of steps")
    warmup_tokens: int | None = _setting(None, "tokens of warm-up, in place of warmup")
    decay_tokens: int | None = _setting(None, "tokens until the cosine ends: not decay_steps")
    weight_decay: float = _setting(0.1, "AdamW's weight decay; none on biases and norms")
    beta1: float = _setting(0.9, "AdamW's decay of the mean")
    beta2: float = _setting(0.95, "AdamW's decay of the mean square")
    epsilon: float = _setting(1e-8, "AdamW's epsilon")
    clip: float = _setting(1.0, "largest norm of the gradient; 0: no limit")
    init_std: float | None = _setting(
        None, "standard deviation of the initial weights; none: the model's initializer_range"
    )
    seed: int = _setting(1234, "of the initial weights, the order of samples and dropout")

    zero_stage: int = _setting(1, "what ZeRO shards", (0, 1, 2, 3))
    dtype: str = _setting("auto", "number format; auto: bf16 on a GPU, fp32 on a CPU", DTYPES)
    fp32_gradients: bool = _setting(
        False, "add the gradients of micro-batches up in fp32, whatever dtype is"
    )
    recompute: bool = _setting(False, "recompute activations in the backward pass: less memory")
    kernels: str = _setting("on", "the ops of llmjp_ext, or plain PyTorch instead", ("on", "off"))
    offload: str = _setting("none", "what ZeRO keeps in the CPU's memory", OFFLOAD)
    gpus: int | None = _setting(None, "processes that the run is for; none: those that are started")
    gpu_memory: float | None = _setting(
        None, "GiB of a GPU, for --dry-run; none: those of the GPU that is there"
    )
    dry_run: bool = _setting(False, "print batches and predicted memory, and train nothing")
    deepspeed_config: str | None = _setting(None, "a DeepSpeed JSON file that is merged in")

    resume: str = _setting(
        "auto",
        "whether to continue from the output's checkpoint: auto, if the settings agree; changed, "
        "with the new settings; never",
        RESUME,
    )
    save_interval: int = _setting(500, "steps between checkpoints; 0: only at the end")
    keep_last: int = _setting(2, "checkpoints that are kept; 0: all")
    async_save: bool | None = _setting(
        None,
        "write checkpoints while training goes on, from a copy in the CPU's memory; none: unless "
        "something is offloaded there",
    )
    save_hf_every: int = _setting(0, "steps between writing OUTPUT/hf; 0: only at the end")
    valid_interval: int = _setting(100, "steps between validations; 0: none")
    valid_samples: int = _setting(64, "samples of one validation")
    log_interval: int = _setting(10, "steps between progress lines")
    peak_tflops: float | None = _setting(
        None, "TFLOP/s of a GPU that are 100% of MFU; none: what is known of the GPU that is there"
    )
    tensorboard: bool = _setting(False, "write the metrics to OUTPUT/tensorboard too")
    wandb: str | None = _setting(None, "project of Weights & Biases that gets the metrics too")
    spike: float = _setting(
        0.0, "a loss this many deviations above the last 100 steps' skips its update; 0: none does"
    )
    max_skipped: int = _setting(10, "updates skipped one after another that stop the run")

    def __post_init__(self) -> None:
        """Checks what can be checked without files and processes.

        Raises:
            UserError: a setting is missing or out of range.
        """
        if not self.data and not self.dry_run:
            raise UserError("--data is missing: the prefix that 'llmjp tokenize' wrote")
        if not self.output and not self.dry_run:
            raise UserError("--output is missing: the folder for checkpoints and the model")
        self.split_weights()
        for setting in dataclasses.fields(self):
            choices, value = setting.metadata["choices"], getattr(self, setting.name)
            if choices is not None and value not in choices:
                _refuse(setting.name, value, "one of " + ", ".join(map(str, choices)))
        counts = ("global_batch", "micro_batch", "steps", "valid_samples", "log_interval", "folds")
        for name in (*counts, "max_skipped"):
            if getattr(self, name) < 1:
                _refuse(name, getattr(self, name), "1 or more")
        for name in ("seq_length", "decay_steps", "gpus", *IN_TOKENS):
            value = getattr(self, name)
            if value is not None and value < 1:
                _refuse(name, value, "1 or more")
        if self.epochs is not None and not self.epochs > 0:
            _refuse("epochs", self.epochs, "positive")
        if any(not 0 <= fold < self.folds for fold in self.fold):
            _refuse("fold", self.fold, f"from 0 to folds - 1 = {self.folds - 1}")
        if len(set(self.fold)) < len(self.fold):
            _refuse("fold", self.fold, "different numbers")
        positive = ("warmup", "save_interval", "keep_last", "save_hf_every", "valid_interval")
        for name in (*positive, "seed", "min_lr", "weight_decay", "clip", "spike"):
            if not getattr(self, name) >= 0:
                _refuse(name, getattr(self, name), "0 or more")
        if not self.lr > 0 or self.min_lr > self.lr:
            _refuse("lr", self.lr, f"positive and at least min_lr, {self.min_lr}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                _refuse(name, getattr(self, name), "in [0, 1)")
        for name in ("epsilon", "init_std", "gpu_memory", "peak_tflops"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                _refuse(name, value, "positive")
        if self.offload == "optimizer" and self.zero_stage == 0:
            _refuse("offload", self.offload, "none with zero_stage 0")
        if self.offload == "all" and self.zero_stage != 3:
            _refuse("offload", self.offload, f"none or optimizer with zero_stage {self.zero_stage}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            _refuse("dropout", self.dropout, "in [0, 1)")

    @property
    def saves_in_background(self) -> bool:
        """async_save, decided."""
        return self.offload == "none" if self.async_save is None else self.async_save

    def in_steps(self, length: int) -> "TrainSettings":
        """These settings with lengths in tokens turned into steps, rounded up.

        Args:
            length: tokens of a sample.
        """
        tokens = self.global_batch * length
        given = {name: getattr(self, name) for name in IN_TOKENS}
        changed: dict[str, Any] = dict.fromkeys(IN_TOKENS)
        for name, count in given.items():
            if count is not None:
                changed[IN_TOKENS[name]] = -(-count // tokens)
        return dataclasses.replace(self, **changed)

    def in_epochs(self, samples: int) -> "TrainSettings":
        """These settings with a length in epochs turned into steps, rounded, at least one.

        Args:
            samples: of an epoch.
        """
        if self.epochs is None:
            return self
        steps = max(1, round(self.epochs * samples / self.global_batch))
        return dataclasses.replace(self, steps=steps)

    def split_weights(self) -> tuple[float, ...]:
        """The shares of training, validation and what is left out.

        Raises:
            UserError: `split` is not two or three numbers, the first positive.
        """
        try:
            shares = tuple(float(part) for part in self.split.replace(",", ":").split(":"))
        except ValueError:
            shares = ()
        if not (len(shares) in (2, 3) and shares[0] > 0 and all(share >= 0 for share in shares)):
            _refuse("split", self.split, "two or three shares such as 99:1, 1:0 or 949,50,1")
        return shares

    def model_fields(self) -> dict[str, Any]:
        """The changed fields of the model, from model_set, init_std and dropout.

        Raises:
            UserError: an entry is not FIELD=VALUE with a field of ModelConfig.
        """
        from llmjp.config import ModelConfig

        known = {entry.name for entry in dataclasses.fields(ModelConfig)}
        changed: dict[str, Any] = {}
        for entry in self.model_set:
            name, equals, text = entry.partition("=")
            name = name.strip().replace("-", "_")
            if not equals or name not in known:
                raise UserError(
                    f"model_set: {entry!r} is not FIELD=VALUE; fields: {', '.join(sorted(known))}"
                )
            changed[name] = yaml.safe_load(text)
        if self.init_std is not None:
            changed.setdefault("initializer_range", self.init_std)
        if self.dropout is not None:
            changed.update(dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), self.dropout))
        return changed


def _refuse(name: str, value: object, supported: str) -> typing.NoReturn:
    raise UserError(f"{name} must be {supported}, got {value!r}")


def _value_type(setting: dataclasses.Field[Any]) -> tuple[type, bool, bool]:
    """The type of a setting's value or element, whether it may be None, whether it is a list."""
    annotation: Any = typing.get_type_hints(TrainSettings)[setting.name]
    optional = False
    if isinstance(annotation, types.UnionType):
        optional = True
        annotation = next(part for part in annotation.__args__ if part is not type(None))
    if typing.get_origin(annotation) is list:
        return annotation.__args__[0], optional, True
    return annotation, optional, False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each setting, `--config` and what launchers pass."""
    parser.add_argument(
        "--config",
        metavar="NAME_OR_FILE",
        help=f"a YAML file of settings, or one of {', '.join(configs.names())}; flags win",
    )
    for setting in dataclasses.fields(TrainSettings):
        kind, _, several = _value_type(setting)
        help = setting.metadata["help"]
        if setting.default not in (None, "", dataclasses.MISSING) and kind is not bool:
            help += f" (default: {setting.default})"
        # An absent flag leaves no trace, so that it does not hide what the file says.
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": help.replace("%", "%%")}
        flag = "--" + setting.name.replace("_", "-")
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        elif several:
            parser.add_argument(flag, nargs="+", metavar="VALUE", type=kind, **options)
        else:
            choices = setting.metadata["choices"]
            if choices is None:
                options["metavar"] = "VALUE"
            parser.add_argument(flag, type=kind, choices=choices, **options)
    # DeepSpeed's launcher adds this; the rank comes from the environment all the same.
    parser.add_argument(
        "--local_rank", "--local-rank", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )


def from_arguments(arguments: argparse.Namespace) -> TrainSettings:
    """The settings of parsed arguments: the file's, then the flags' over them.

    Raises:
        UserError: the file cannot be read or holds an unknown setting or a wrong value.
    """
    names = {setting.name for setting in dataclasses.fields(TrainSettings)}
    values = {} if arguments.config is None else read_config(find_config(arguments.config))
    flags = {name: value for name, value in vars(arguments).items() if name in names}
    return TrainSettings(**_over(values, flags, "flags"))


def find_config(name: str) -> Path:
    """The file of `--config`: a path, or the name of a configuration of the package.

    Raises:
        UserError: it is neither.
    """
    path = Path(name)
    shipped = None if path.exists() else configs.find(name)
    if shipped is None and not path.exists() and path.suffix not in (".yaml", ".yml"):
        raise UserError(
            f"config {name} is no file and none of the package's: {', '.join(configs.names())}"
        )
    return shipped or path


def _over(below: dict[str, Any], above: dict[str, Any], place: str) -> dict[str, Any]:
    """Two layers of settings as one; a length in the upper one hides it in either unit below."""
    merged = dict(below)
    for tokens, steps in IN_TOKENS.items():
        words = (tokens, steps, *(("epochs",) if steps == "steps" else ()))
        given = [word for word in words if above.get(word) is not None]
        if len(given) > 1:
            raise UserError(f"{place}: {given[0]} and {given[1]} are two words for one length")
        if any(word in above for word in words):
            for word in words:
                merged.pop(word, None)
    return {**merged, **above}


def read_config(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Settings from a YAML file; names may be written with dashes.

    Args:
        path: the file. Its entry `base` names a configuration that it changes.
        above: the files whose base this is.

    Raises:
        UserError: it cannot be read, is no mapping, or holds an unknown setting or a wrong value.
    """
    if path in above:
        raise UserError(f"{path} is its own base")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected 'setting: value' lines")
    settings = {setting.name: setting for setting in dataclasses.fields(TrainSettings)}
    base: dict[str, Any] = {}
    if "base" in content:
        name = str(content.pop("base"))
        beside = path.parent / name
        base = read_config(beside if beside.is_file() else find_config(name), (*above, path))
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in settings:
            close = difflib.get_close_matches(name, settings, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"{path}: unknown setting {key!r}{hint}")
        values[name] = _converted(f"{path}: {key}", settings[name], value)
    return _over(base, values, str(path))


def _converted(place: str, setting: dataclasses.Field[Any], value: Any) -> Any:
    """A YAML value in the setting's type."""
    kind, optional, several = _value_type(setting)
    if value is None and optional:
        return None
    if several:
        if setting.name in ("data", "final_data", "valid_data"):
            return source_words(place, value)
        if setting.name == "model_set" and isinstance(value, dict):
            return [f"{name}={entry}" for name, entry in value.items()]
        entries = value if isinstance(value, list) else [value]
        if not all(isinstance(entry, kind) and not isinstance(entry, bool) for entry in entries):
            what = "names" if kind is str else "whole numbers"
            raise UserError(f"{place} must be a list of {what}, got {value!r}")
        return entries
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML takes 1e-4, without a dot, for text
        except ValueError:
            pass
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"{place} must be of type {kind.__name__}, got {value!r}")
    return value
