"""Settings of `llmjp train`: files and flags, the schedule, and one line for each mistake."""

import argparse
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llmjp import cli
from llmjp.data.indexed_writer import IndexedWriter
from llmjp.errors import UserError
from llmjp.training.engine import Batches, deepspeed_config, number_format
from llmjp.training.schedule import learning_rate
from llmjp.training.settings import TrainSettings, add_arguments, from_arguments
from train_runs import QUICK, TINY, VOCABULARY, metrics, run_jobs, toy_data

CPU = torch.device("cpu")


def parsed(*arguments: object) -> TrainSettings:
    """Settings of a command line."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return from_arguments(parser.parse_args([str(word) for word in arguments]))


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    """Values of YAML in their types, names with dashes or underscores, flags over them."""
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: {a: 0.7, b: 0.3}\nfold: [1]\nfolds: 2\noutput: out\nglobal-batch: 64\n"
        "lr: 1e-4\nclip: 0\nmin_lr: 1.0e-5\n"
        "recompute: true\nseq_length: null\nmodel_set: {n_layer: 3, vocab_size: 99}\nsteps: 7\n"
    )
    settings = parsed("--config", file, "--steps", 9, "--no-recompute", "--model-set", "n_layer=5")
    assert settings.data == ["0.7", "a", "0.3", "b"] and settings.global_batch == 64
    assert settings.lr == 1e-4 and settings.clip == 0.0 and settings.min_lr == 1e-5
    assert settings.fold == [1] and settings.split_weights() == (99.0, 1.0)
    assert settings.steps == 9 and settings.recompute is False and settings.seq_length is None
    assert settings.model_fields() == {"n_layer": 5}
    assert parsed("--config", file).model_fields() == {"n_layer": 3, "vocab_size": 99}
    assert settings.seed == TrainSettings(data=["a"], output="o").seed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("stepz: 3", r"unknown setting 'stepz'; did you mean 'steps'\?"),
        ("steps: many", "steps must be of type int, got 'many'"),
        ("steps: true", "steps must be of type int, got True"),
        ("lr: fast", "lr must be of type float, got 'fast'"),
        ("recompute: 1", "recompute must be of type bool, got 1"),
        ("data: {a: {b: 1}}", "data: a must have 'prefixes'"),
        ("tokenizer: 3", "tokenizer must be of type str, got 3"),
        ("fold: [a]", "fold must be a list of whole numbers"),
        ("- steps", "expected 'setting: value' lines"),
        ("a: [", "is not YAML"),
    ],
)
def test_mistakes_in_the_file_are_told(tmp_path: Path, text: str, reason: str) -> None:
    """The file's name and what is wrong."""
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        parsed("--config", file, "--data", "a", "--output", "o")
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--steps 0", "steps must be 1 or more, got 0"),
        ("--lr 0", "lr must be positive"),
        ("--lr 1e-7", "at least min_lr"),
        ("--lr nan", "lr must be positive"),
        ("--beta2 1", r"beta2 must be in \[0, 1\), got 1.0"),
        ("--split 1:2:3:4", "split must be two or three shares"),
        ("--split 0:1", "split must be two or three shares"),
        ("--folds 10 --fold 3 10", r"fold must be from 0 to folds - 1 = 9, got \[3, 10\]"),
        ("--folds 10 --fold 3 3", "fold must be different numbers"),
        ("--epochs 0", "epochs must be positive"),
        ("--clip -1", "clip must be 0 or more"),
        ("--dropout 1", "dropout must be in"),
        ("--epsilon 0", "epsilon must be positive"),
        ("--seq-length 0", "seq_length must be 1 or more"),
    ],
)
def test_values_out_of_range_are_told(flags: str, reason: str) -> None:
    """The setting, what is supported and what was given."""
    with pytest.raises(UserError, match=reason):
        parsed("--data", "a", "--output", "o", *flags.split())


def test_missing_settings_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Data and output have no default; the command ends with 1."""
    assert cli.main(["train", "--output", "o"]) == 1
    assert capsys.readouterr().err.startswith("llmjp: error: --data is missing")
    with pytest.raises(UserError, match="--output is missing"):
        parsed("--data", "a")
    with pytest.raises(UserError, match="model_set: 'layers=3' is not FIELD=VALUE"):
        parsed("--data", "a", "--output", "o", "--model-set", "layers=3").model_fields()


def test_help_names_every_setting_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    """--help tells each flag; launchers' --local_rank is taken in both spellings."""
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in ("--global-batch", "--zero-stage {0,1,2,3}", "--deepspeed-config", "--resume"):
        assert name in text
    assert "(default: 0.0002)" in text
    for flag in ("--local_rank=1", "--local-rank=1"):
        assert parsed(flag, "--data", "a", "--output", "o").data == ["a"]


def test_schedule() -> None:
    """Linear warm-up to the highest rate, half a cosine to the lowest, then flat."""
    shape: dict[str, Any] = {"highest": 1.0, "lowest": 0.1, "warmup": 4, "decay_steps": 12}
    rates = [learning_rate(step, **shape) for step in range(16)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[7] == pytest.approx(0.55)  # half of the cosine's eight steps
    assert rates[11:] == [pytest.approx(0.1)] * 5
    assert all(left > right for left, right in itertools.pairwise(rates[3:12]))
    assert learning_rate(0, highest=1.0, lowest=0.0, warmup=0, decay_steps=2) == pytest.approx(0.5)
    assert math.isclose(learning_rate(9, highest=1.0, lowest=0.5, warmup=9, decay_steps=9), 0.5)


def settings(**changes: Any) -> TrainSettings:
    """Settings with some changes."""
    return TrainSettings(data=["a"], output="o", **changes)


@pytest.mark.parametrize("processes", [1, 2, 4, 96])
def test_any_processes_share_out_a_step(processes: int) -> None:
    """All micro-batches of all processes together: each of the step's samples once."""
    chosen = settings(global_batch=1536, micro_batch=4)
    batches = Batches.of(chosen, processes)
    places = [
        batches.place(index, rank, processes)
        for index in range(batches.accumulation)
        for rank in range(processes)
    ]
    assert sorted(places) == list(range(0, 1536, 4))


def test_batch_arithmetic() -> None:
    """Accumulation fills the global batch; what does not divide is told with the numbers."""
    chosen = settings(global_batch=1536, micro_batch=4)
    assert Batches.of(chosen, 96) == Batches(1536, 4, 4)
    with pytest.raises(UserError, match=r"1536 is not a multiple of micro_batch 4 x 100 .* = 400"):
        Batches.of(chosen, 100)


def test_number_formats() -> None:
    """auto takes the device's; what cannot train well is refused with the reason."""
    assert number_format(settings(), CPU) == "fp32"
    assert number_format(settings(), torch.device("cuda")) == "bf16"
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        number_format(settings(dtype="fp16"), CPU)
    assert number_format(settings(dtype="fp16"), torch.device("cuda")) == "fp16"
    with pytest.raises(UserError, match="fp32 on a GPU needs --kernels off"):
        number_format(settings(dtype="fp32"), torch.device("cuda"))
    assert number_format(settings(dtype="fp32", kernels="off"), torch.device("cuda")) == "fp32"
    with pytest.raises(UserError, match="bf16 needs zero_stage 1, 2 or 3"):
        number_format(settings(dtype="bf16", zero_stage=0), CPU)


def merged(tmp_path: Path, content: Any) -> dict[str, Any]:
    """DeepSpeed's configuration with a user's file."""
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(content))
    chosen = settings(deepspeed_config=str(file), zero_stage=2)
    return deepspeed_config(chosen, Batches.of(chosen, 2), "bf16")


def test_deepspeed_file_is_merged(tmp_path: Path) -> None:
    """What the settings do not decide is the file's; "auto" and equal values are filled in."""
    result = merged(
        tmp_path,
        {
            "train_batch_size": "auto",
            "gradient_accumulation_steps": 4,
            "zero_optimization": {"stage": "auto", "reduce_bucket_size": 1000},
            "bf16": {"enabled": "auto"},
            "optimizer": {"params": {"lr": "auto"}},
            "wall_clock_breakdown": True,
        },
    )
    assert result["train_batch_size"] == 32 and result["gradient_accumulation_steps"] == 4
    assert result["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}
    assert result["bf16"] == {"enabled": True} and result["wall_clock_breakdown"] is True
    assert result["optimizer"]["type"] == "AdamW" and result["optimizer"]["params"]["lr"] == 2e-4
    assert result["optimizer"]["params"]["torch_adam"] is True
    assert result["optimizer"]["params"]["fused"] is True, "on the CPU too"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"train_batch_size": 64}, r"train_batch_size = 64, but the setting global_batch gives 32"),
        ({"train_micro_batch_size_per_gpu": 8}, "setting micro_batch gives 4"),
        ({"gradient_accumulation_steps": 3}, r"micro_batch x processes\) gives 4"),
        ({"zero_optimization": {"stage": 3}}, r"zero_optimization.stage = 3.* zero_stage gives 2"),
        ({"data_types": {"grad_accum_dtype": "fp32"}}, 'the setting fp32_gradients gives "bf16"'),
        ({"fp16": {"enabled": True}}, "fp16.enabled = true, but the setting dtype gives false"),
        ({"optimizer": {"params": {"lr": 1}}}, "optimizer.params.lr = 1"),
        ({"scheduler": {"type": "WarmupLR"}}, "has a scheduler"),
        ([1], "expected a JSON object, found list"),
    ],
)
def test_contradictions_with_the_deepspeed_file_are_told(
    tmp_path: Path, content: Any, reason: str
) -> None:
    """One sentence with the file, both values and the setting."""
    with pytest.raises(UserError, match=reason) as caught:
        merged(tmp_path, content)
    assert "ds.json" in str(caught.value) and "\n" not in str(caught.value)


def test_mistakes_with_files_and_models_are_told(tmp_path: Path) -> None:
    """The command in a process of its own: exit code 1, one line, and no output but the lock."""
    toy_data(tmp_path / "toy")
    with IndexedWriter(tmp_path / "short", VOCABULARY) as writer:
        writer.add(range(10))
    (tmp_path / "ds.json").write_text('{"train_batch_size": 64}')
    (tmp_path / "wrong.json").write_text('{"zero_optimization": {"reduce_bucket_size": "big"}}')
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"data": "none", "output": "o"}))
    start = ["--data", "toy", *TINY, *QUICK, "--output", "o", "--steps", "1"]
    cases: list[tuple[list[str], str]] = [
        ([*start, "--data", "none"], r"none\.idx does not exist"),
        (["--config", "run.yaml"], r"none\.idx does not exist"),
        (
            [*start, "--model-set", "vocab_size=40"],
            "toy holds the id 63, but the vocabulary has 40",
        ),
        ([*start, "--model", "gpt"], "model gpt is no folder and none of llm-jp-1.3b"),
        ([*start, "--tokenizer", "gone"], "tokenizer gone is not a folder"),
        ([*start, "--seq-length", "33"], "seq_length 33 is more than the model's 32 positions"),
        ([*start, "--micro-batch", "3"], "global_batch 8 is not a multiple of micro_batch 3 x 1"),
        ([*start, "--data", "short"], r"10 tokens in 1 documents do not fill one .* 32 \+ 1"),
        ([*start, "--dtype", "fp16"], "fp16 needs a GPU"),
        ([*start, "--deepspeed-config", "ds.json"], "ds.json says train_batch_size = 64"),
        ([*start, "--deepspeed-config", "gone.json"], "gone.json cannot be read"),
        ([*start, "--deepspeed-config", "wrong.json"], "DeepSpeed refuses the configuration"),
        ([*start, "--output", "toy.idx"], r"toy\.idx"),
        ([*start, "--model-set", "n_head=3", "n_embd=32"], "n_embd must be a multiple of n_head"),
    ]
    results = run_jobs(tmp_path, [arguments for arguments, _ in cases])
    for (arguments, reason), result in zip(cases, results, strict=True):
        assert result.code == 1, arguments
        assert re.search(reason, result.err), result.err
        assert result.err.count("\n") == 1 and result.err.startswith("llmjp: error: "), result.err


def test_resuming_asks_for_the_same_settings(tmp_path: Path) -> None:
    """Another learning rate is refused by name, taken on request; 'never' refuses; free ones go."""
    toy_data(tmp_path / "toy")
    toy_data(tmp_path / "more", seed=1)
    start = ["--data", "toy", *TINY, *QUICK, "--output", "o", "--decay-steps", "9", "--steps"]
    jobs = [
        [*start, "1"],
        [*start, "2", "--lr", "1e-3"],
        [*start, "2", "--resume", "never"],
        [*start, "2", "--zero-stage", "2", "--resume", "changed"],
        [*start, "2", "--model-set", f"vocab_size={VOCABULARY + 1}", *TINY[2:]],
        [*start, "2", "--lr", "1e-3", "--resume", "changed"],
        [*start, "3", "--lr", "1e-3", "--micro-batch", "4", "--keep-last", "1"],
        [*start, "3", "--lr", "1e-3"],
        [*start, "4", "--lr", "1e-3", "--data", "0.5", "toy", "0.5", "more"],
        [*start, "4", "--lr", "1e-3", "--data", "toy=more"],
        [*start, "4", "--lr", "1e-3", "--valid-data", "more"],
        [*start, "5", "--lr", "1e-3", "--global-batch", "16", "--resume", "changed"],
    ]
    results = run_jobs(tmp_path, jobs)
    assert [result.code for result in results] == [0, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0], results
    assert "written with lr = 0.003, now 0.001: set it back" in results[1].err
    assert "resume is 'never'" in results[2].err
    assert "zero_stage = 1, now 2: start from OUTPUT/hf with --model" in results[3].err
    assert f"model.vocab_size = {VOCABULARY}, now {VOCABULARY + 1}" in results[4].err
    assert "step 2/2" in results[5].out and "step 3/3" in results[6].out
    assert (
        "saved" not in results[7].out and "done: o/hf" in results[7].out
    )  # there was nothing to do
    assert re.search(r"data.more = None, now 'weight 1/2, 200 documents", results[8].err)
    assert re.search(r"data.toy = 'weight by size, 200 doc.*, now 'weight by size", results[9].err)
    # Without a part held back for validation the training samples are others.
    assert "written with split = '99:1', now '1 (valid_data is given)'" in results[10].err
    # Three steps of 8 samples, then two of 16: none is skipped or repeated.
    assert [entry["samples"] for entry in metrics(tmp_path / "o")] == [8, 16, 24, 40, 56]


@pytest.mark.parametrize(
    ("offload", "stage", "parts"),
    [("none", 3, set()), ("optimizer", 1, {"optimizer"}), ("all", 3, {"optimizer", "param"})],
)
def test_offloading_reaches_deepspeed(offload: str, stage: int, parts: set[str]) -> None:
    """What lies in the CPU's memory; stages that cannot do it are told."""
    chosen = settings(offload=offload, zero_stage=stage)
    result = deepspeed_config(chosen, Batches.of(chosen, 2), "bf16")
    zero = result["zero_optimization"]
    assert {name for name in ("optimizer", "param") if f"offload_{name}" in zero} == parts
    assert all(zero[f"offload_{name}"]["device"] == "cpu" for name in parts)
    assert result.get("zero_force_ds_cpu_optimizer", True) is (not parts)
    with pytest.raises(UserError, match="offload must be none or optimizer with zero_stage 2"):
        settings(offload="all", zero_stage=2)


def test_fp16_scale_follows_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's scaler with our numbers: 2^11, halved at the second overflow, doubled after 500
    good steps, and an error where it can fall no further."""
    from deepspeed.runtime.fp16 import loss_scaler

    monkeypatch.setattr(loss_scaler.dist, "get_rank", lambda: 1)
    chosen = settings(dtype="fp16")
    fp16 = deepspeed_config(chosen, Batches.of(chosen, 1), "fp16")["fp16"]
    scaler = loss_scaler.DynamicLossScaler(
        init_scale=2 ** fp16["initial_scale_power"],
        scale_window=fp16["loss_scale_window"],
        min_scale=fp16["min_loss_scale"],
        delayed_shift=fp16["hysteresis"],
        consecutive_hysteresis=False,
    )
    scales = []
    for overflow in (True, True, *[False] * 501):
        scaler.update_scale(overflow)
        scales.append(scaler.cur_scale)
    assert scales[:3] == [2048, 1024, 1024] and scales[500:] == [1024, 1024, 2048]
    with pytest.raises(Exception, match="loss scale already at minimum"):
        for _ in range(20):
            scaler.update_scale(True)
