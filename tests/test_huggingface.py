"""Hugging Face directories go both ways: Transformers reads what we write, and the reverse."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from llmjp.checkpoint import huggingface
from llmjp.checkpoint.huggingface import load_model, save_model
from llmjp.config import ModelConfig
from llmjp.errors import UserError
from llmjp.model import GPT

CONFIG = ModelConfig(
    vocab_size=97, n_positions=16, n_embd=32, n_layer=2, n_head=2, n_inner=64, attn_pdrop=0.0
)


def theirs(**options: object) -> GPT2LMHeadModel:
    entries = {k: v for k, v in CONFIG.to_dict().items() if k != "architectures"}
    return GPT2LMHeadModel(GPT2Config(**entries, **options)).eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A directory as save_model() writes it."""
    save_model(tmp_path / "model", GPT(CONFIG).state_dict(), CONFIG)
    return tmp_path / "model"


def same_weights(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert state.keys() == other.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, other[name]), name


def test_transformers_reads_what_we_write(saved: Path) -> None:
    """from_pretrained() finds every weight, ties the head, and keeps the settings."""
    model, report = GPT2LMHeadModel.from_pretrained(saved, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.config.activation_function == "gelu" and model.config.eos_token_id == 7
    same_weights(model.state_dict(), load_model(saved).state_dict())


def test_we_read_what_transformers_writes(tmp_path: Path) -> None:
    """save_pretrained(), whole and in shards, gives the same weights here."""
    model = theirs()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for name in ("whole", "shards"):
        ours = load_model(tmp_path / name)
        assert ours.config == CONFIG
        assert ours.lm_head.weight is ours.transformer.wte.weight
        same_weights(ours.state_dict(), model.state_dict())


def test_reads_the_older_formats(tmp_path: Path) -> None:
    """pytorch_model.bin with the masks that old versions stored, and names without a prefix."""
    model = theirs()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    state = dict(model.state_dict())
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    state["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, tmp_path / "pytorch_model.bin")
    same_weights(load_model(tmp_path).state_dict(), model.state_dict())
    headless = GPT2Model(model.config)
    headless.load_state_dict(model.transformer.state_dict())
    headless.save_pretrained(tmp_path / "headless")
    same_weights(load_model(tmp_path / "headless").state_dict(), model.state_dict())


def test_dtype_is_the_files_or_the_asked_one(saved: Path, tmp_path: Path) -> None:
    """bfloat16 files stay bfloat16, and dtype= converts."""
    half = {k: v.bfloat16() for k, v in load_model(saved).state_dict().items()}
    save_model(tmp_path / "half", half, CONFIG)
    assert json.loads((tmp_path / "half/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_model(tmp_path / "half").lm_head.weight.dtype == torch.bfloat16
    assert load_model(tmp_path / "half", dtype=torch.float32).lm_head.weight.dtype == torch.float32


def test_loaded_parameters_can_be_trained(saved: Path) -> None:
    """Every parameter of a loaded model gets a gradient."""
    model = load_model(saved)
    ids = torch.randint(CONFIG.vocab_size, (2, 8))
    model(ids, ids).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_failed_write_leaves_the_old_directory(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk while writing: the old model is whole, and nothing half-written stays."""
    before = load_model(saved).state_dict()

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.save_torch_state_dict", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(saved, GPT(CONFIG).state_dict(), CONFIG)
    same_weights(load_model(saved).state_dict(), before)
    assert sorted(path.name for path in saved.parent.iterdir()) == ["model"]


def test_replaces_an_older_model(saved: Path) -> None:
    """Saving again to the same place leaves only the new weights."""
    new = GPT(CONFIG)
    save_model(saved, new.state_dict(), CONFIG)
    same_weights(load_model(saved).state_dict(), new.state_dict())
    assert sorted(path.name for path in saved.parent.iterdir()) == ["model"]


def damage(directory: Path, how: str) -> None:
    weights = directory / "model.safetensors"
    state = {k: v for k, v in load_model(directory).state_dict().items() if k != "lm_head.weight"}
    if how == "no weights":
        weights.unlink()
    elif how == "no config":
        (directory / "config.json").unlink()
    elif how == "config not json":
        (directory / "config.json").write_text('{"model_type": ')
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "missing tensor":
        save_file({k: v for k, v in state.items() if k != "transformer.ln_f.bias"}, weights)
    elif how == "wrong shape":
        save_file({**state, "transformer.ln_f.bias": torch.zeros(5)}, weights)
    elif how == "unknown tensor":
        save_file({**state, "transformer.extra": torch.zeros(5)}, weights)
    elif how == "missing shard":
        index = {"weight_map": dict.fromkeys(state, "model-00001-of-00001.safetensors")}
        weights.unlink()
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    elif how == "pickle that runs code":
        weights.unlink()
        torch.save({"x": shutil.rmtree}, directory / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no weights", "holds no weights"),
        ("no config", "config.json cannot be read: No such file"),
        ("config not json", "config.json is not valid JSON"),
        ("truncated", "model.safetensors cannot be read"),
        ("empty", "model.safetensors cannot be read"),
        ("missing tensor", r"the weights lack transformer.ln_f.bias \(1 in all\)"),
        ("wrong shape", r"transformer.ln_f.bias has shape \[5\].*asks for \[32\]"),
        ("unknown tensor", "'transformer.extra' is no parameter"),
        ("missing shard", "00001.safetensors is missing, though"),
        ("pickle that runs code", "pytorch_model.bin cannot be read"),
    ],
)
def test_damaged_directories_are_told_in_one_line(saved: Path, how: str, words: str) -> None:
    """Each damage raises UserError with the file's name and one line."""
    damage(saved, how)
    with pytest.raises(UserError, match=words) as caught:
        load_model(saved)
    assert "\n" not in str(caught.value)


def test_tokenizer_files_are_copied_along(tmp_path: Path) -> None:
    """Those that exist, and nothing else of the tokenizer's directory."""
    source = tmp_path / "tokenizer"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "notes.txt").write_text("x")
    save_model(tmp_path / "model", GPT(CONFIG).state_dict(), CONFIG, source)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert set(huggingface.TOKENIZER_FILES) & names == {"tokenizer.json"}
