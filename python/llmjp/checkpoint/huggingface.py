"""Hugging Face model directories: config.json, weights, and the tokenizer's files beside them.

Read: `model.safetensors` or `pytorch_model.bin`, whole or in shards with an index, as Transformers
writes them for GPT-2. Written: safetensors, in shards of at most 5 GB.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmjp.config import ModelConfig
from llmjp.errors import UserError
from llmjp.model import GPT

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# Constant masks that older Transformers stored with each layer.
_NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias")


def load_config(directory: str | os.PathLike[str]) -> ModelConfig:
    """The model's shape from a directory's config.json.

    Raises:
        UserError: the file is missing, damaged, or describes another architecture.
    """
    path = Path(directory) / "config.json"
    entries = _read_json(path)
    try:
        return ModelConfig.from_dict(entries)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def load_model(
    directory: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> GPT:
    """The model of a directory, in training mode as constructed.

    Args:
        directory: as Transformers' save_pretrained() writes it for GPT2LMHeadModel.
        dtype: of the parameters; None keeps the file's.
        device: where the parameters go.

    Raises:
        UserError: a file is missing or damaged, or the weights are not this architecture's.
    """
    directory = Path(directory)
    config = load_config(directory)
    with torch.device("meta"):
        model = GPT(config)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    state: dict[str, Tensor] = {}
    for path in weight_files(directory):
        for name, tensor in _read_weights(path):
            if name.endswith(_NOT_WEIGHTS):
                continue
            # Transformers' headless GPT2Model stores the same names without the first part.
            if name not in expected and f"transformer.{name}" in expected:
                name = f"transformer.{name}"
            if name not in expected:
                raise UserError(f"{path}: {name!r} is no parameter of a GPT-2 model")
            if tensor.shape != expected[name]:
                raise UserError(
                    f"{path}: {name} has shape {list(tensor.shape)}, but config.json asks for "
                    f"{list(expected[name])}"
                )
            state[name] = tensor.to(device=device, dtype=dtype)
    state["lm_head.weight"] = state.get("transformer.wte.weight", torch.empty(0))
    missing = sorted(set(expected) - set(state))
    if missing or "transformer.wte.weight" not in state:
        names = ", ".join(missing[:3]) or "transformer.wte.weight"
        raise UserError(f"{directory}: the weights lack {names} ({len(missing)} in all)")
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def save_model(
    directory: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor],
    config: ModelConfig,
    tokenizer_directory: str | os.PathLike[str] | None = None,
) -> None:
    """Writes a directory that load_model() and Transformers read; whole or not at all.

    An existing directory is replaced once the new one is complete; other files in it are lost.

    Args:
        directory: where to.
        state_dict: the model's; the tied lm_head.weight is left out of the file.
        config: the model's shape.
        tokenizer_directory: its tokenizer files are copied along.

    Raises:
        OSError: it cannot be written, for instance because the disk is full.
    """
    from huggingface_hub import save_torch_state_dict

    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().contiguous() for k, v in state_dict.items() if k != "lm_head.weight"}
    dtype = str(weights["transformer.wte.weight"].dtype).removeprefix("torch.")
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as work:
        complete = Path(work) / "model"
        complete.mkdir()
        _write_json(complete / "config.json", {**config.to_dict(), "torch_dtype": dtype})
        _write_json(
            complete / "generation_config.json",
            {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id},
        )
        if tokenizer_directory is not None:
            for name in TOKENIZER_FILES:
                source = Path(tokenizer_directory) / name
                if source.exists():
                    shutil.copyfile(source, complete / name)
        save_torch_state_dict(weights, complete, max_shard_size="5GB")
        if directory.exists():
            directory.rename(Path(work) / "replaced")
        complete.rename(directory)


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a directory's weights.

    Raises:
        UserError: there are none, or a shard that the index names is missing.
    """
    for name in _WEIGHT_FILES:
        if (directory / name).exists():
            return [directory / name]
        index = directory / f"{name}.index.json"
        if index.exists():
            shards = _read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise UserError(f"{index}: no weight_map")
            paths = [directory / Path(str(shard)).name for shard in sorted(set(shards.values()))]
            for path in paths:
                if not path.exists():
                    raise UserError(f"{path} is missing, though {index.name} names it")
            return paths
    raise UserError(f"{directory} holds no weights (looked for {' and '.join(_WEIGHT_FILES)})")


def _read_weights(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    yield name, file.get_tensor(name)
        else:
            # weights_only: a pickle from elsewhere must not run code.
            yield from torch.load(path, map_location="cpu", mmap=True, weights_only=True).items()
    except UserError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read: {reason}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(entries, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(entries).__name__}")
    return entries


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
