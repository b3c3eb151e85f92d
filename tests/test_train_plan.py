"""Configurations of the package, `--dry-run`, and the predicted memory against a measured one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmjp import cli, configs
from llmjp.config import preset
from llmjp.data.packed import Documents, PackedDataset
from llmjp.errors import UserError
from llmjp.training.memory import GIB, predict
from llmjp.training.settings import TrainSettings, find_config, read_config
from train_runs import QUICK, TINY, environment, toy_data

SHAPE: dict[str, Any] = {
    **{"micro_batch": 1, "accumulation": 16, "length": 2048, "itemsize": 2, "recompute": False},
}
WORKER = Path(__file__).with_name("memory_worker.py")


def shipped(name: str) -> TrainSettings:
    """A configuration of the package."""
    return TrainSettings(data=["d"], output="o", **read_config(find_config(name)))


@pytest.mark.parametrize("name", configs.names())
def test_every_configuration_fits_its_gpus(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--dry-run of each: the batch is 1536 samples of 2048 tokens, and the GPU can hold it."""
    assert cli.main(["train", "--config", name, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "= 3,145,728 tokens a step" in out
    assert ("1,316,605,952" if "1.3b" in name else "12,855,592,960") in out
    memory = name.partition("a100-")[2].partition("gb")[0]
    # What torch finds on these GPUs is a little less than what they are called by.
    usable = {"40": "39.4", "80": "79.1"}.get(memory)
    assert f"of {usable} GiB" in out if memory else "fits        unknown" in out


def test_lengths_in_tokens_become_steps() -> None:
    """The published run's numbers: 3 G tokens of warm-up are 954 steps, 304 G are 96,639."""
    small, large = (shipped(f"llm-jp-{size}").in_steps(2048) for size in ("1.3b", "13b"))
    assert (small.warmup, small.decay_steps, small.steps) == (954, 95_368, 95_368)
    assert (large.warmup, large.decay_steps, large.steps) == (954, 95_368, 96_639)
    assert (small.lr, large.lr, small.beta2, small.clip) == (2e-4, 1e-4, 0.95, 1.0)
    assert small.model_fields()["initializer_range"] == 0.013
    assert large.model_fields()["initializer_range"] == 0.008


def test_a_flag_in_steps_hides_the_tokens_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--steps wins over train_tokens; both in one place are an error; so are unknown names."""
    assert cli.main(["train", "--config", "llm-jp-1.3b", "--dry-run", "--steps", "10"]) == 0
    assert "10 steps = 31,457,280 tokens" in capsys.readouterr().out
    file = tmp_path / "mine.yaml"
    file.write_text("base: llm-jp-13b\nsteps: 5\ntrain_tokens: 7\n")
    with pytest.raises(UserError, match="train_tokens and steps are two words for one length"):
        read_config(file)
    file.write_text("base: llm-jp-13b\nsteps: 5\n")
    values = read_config(file)
    assert values["steps"] == 5 and "train_tokens" not in values and values["lr"] == 1e-4
    file.write_text(f"base: {file.name}\n")
    with pytest.raises(UserError, match="is its own base"):
        read_config(file)
    with pytest.raises(UserError, match=r"config llm-jp-7b is no file and none of .*llm-jp-13b"):
        find_config("llm-jp-7b")


def test_what_cannot_fit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """13B without sharding on one GPU: what is needed, what there is, and what would help."""
    flags = ["--gpus", "1", "--gpu-memory", "40", "--zero-stage", "1"]
    assert cli.main(["train", "--config", "llm-jp-13b", "--dry-run", *flags]) == 1
    error = capsys.readouterr().err
    assert "GiB are needed and a GPU has 40: try --offload optimizer" in error
    assert error.count("\n") == 1
    # 16 bytes a parameter are there whatever else is; two more in the step.
    needed = float(error.split("error: ")[1].split()[0])
    assert needed > 16 * preset("llm-jp-13b").parameter_count() / GIB


def test_sharding_divides_what_it_says() -> None:
    """Each stage of ZeRO over 96 processes leaves 1/96 of one more kind of state."""
    sizes = []
    beside, more = [], []
    config = preset("llm-jp-1.3b")
    count = config.parameter_count()
    for stage in range(4):
        zero = {"stage": stage, "reduce_bucket_size": 1, "overlap_comm": False}
        memory = predict(config, zero, processes=96, **SHAPE)
        sizes.append((memory.weights, memory.optimizer, memory.gradients))
        alone = predict(config, zero, processes=96, **SHAPE | {"accumulation": 1})
        beside.append(memory.working - alone.working)
        large = predict(config, zero, processes=96, **SHAPE, fp32_gradients=True)
        more.append(large.gradients - memory.gradients)
    share = -(-count // 96)
    # Two bytes more for each; ZeRO 1 keeps the two of a micro-batch's own as well.
    assert more == [0, 4 * count, 2 * share, 2 * share]
    # What a micro-batch adds to the gradients of those before it.
    assert beside == [0, 2 * count, 2 * share, 0]
    assert sizes[0] == (2 * count, 8 * count, 2 * count)
    assert sizes[1] == (2 * count, 8 * share, 2 * count + 2)
    assert sizes[2] == (2 * count, 8 * share, 2 * share + 2)
    assert sizes[3] == (2 * share, 8 * share, 2 * share + 2)


def test_short_documents_take_scratch_memory() -> None:
    """Isolated documents leave tiles of queries partly empty; fp16 has fp32 weights in stage 0."""
    config = preset("llm-jp-1.3b")
    whole = predict(config, {"stage": 0}, processes=1, **SHAPE)
    long, short = (
        predict(config, {"stage": 0}, processes=1, **SHAPE, documents=count) for count in (32, 512)
    )
    assert whole == long, "with documents of 64 tokens something else is the most"
    # dq, dk, dv and three more of a width; 34,816 queries' sums and statistics in fp32
    attention = 12 * 2048 * 2048 + 4 * (2048 + 512 * 64) * (2048 + 32)
    loss = 2 * 2048 * 2048 + 4 * 50688 * 2048  # the hidden states' gradient and the embedding's
    assert short.working == loss + attention > whole.working
    assert whole.master == 4 * config.parameter_count()


def test_lengths_of_a_dry_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs are counted in the data; the launcher's processes are those planned for."""
    toy_data(tmp_path / "toy")
    flags = ["train", "--dry-run", *TINY, *QUICK, "--epochs", "2"]
    assert cli.main(flags) == 1
    assert "epochs are a number of steps only with --data" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "0")
    more = ["--data", str(tmp_path / "toy"), "--isolate-documents", "--kernels", "off"]
    assert cli.main([*flags, *more]) == 0
    out = capsys.readouterr().out
    samples = PackedDataset(Documents([tmp_path / "toy"]), 32, 0, split=(99, 1)).samples_per_epoch
    assert f"length      {round(2 * samples / 8)} steps = " in out
    assert "8 samples = 2 x 4 processes x 1 accumulated" in out
    assert "and less in isolated documents" in out and "kernels     off: plain PyTorch" in out


def test_predicted_memory_is_that_of_a_run(tmp_path: Path) -> None:
    """States, kept activations and peak of real steps through DeepSpeed, of each stage.

    States must agree to 1%: they are counted. Activations to 5%: the loss's few numbers a token are
    not counted. The peak, which has DeepSpeed's temporary copies in it, to 15%: that is what
    docs/training.md promises, with the figures.
    """
    file = tmp_path / "memory.json"
    command = [sys.executable, str(WORKER), str(file)]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=200, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    for row in json.loads(file.read_text()):
        for what, bound in (("states", 0.01), ("kept", 0.05), ("peak", 0.15)):
            predicted, measured = row[what]
            if what == "kept" and row["case"][0] == 3:
                continue  # gathered weights are among what autograd keeps there
            assert abs(predicted - measured) <= bound * measured, (row["case"], what, row[what])


def test_scaling_page_has_its_tables() -> None:
    """docs/scaling.md holds what tools/scaling.py computes, and the sizes in its text."""
    from tools import scaling

    page = scaling.PAGE.read_text(encoding="utf-8")
    assert scaling.filled(page) == page, "run 'python tools/scaling.py --write'"
    for figure in (
        f"{scaling.work(False) / 1e12:,.0f} TFLOP for each GPU",
        f"{scaling.traffic(1) / 1e9:,.0f} GB into each machine",
        f"needs 4, {scaling.traffic(4) / 1e9:,.0f} GB",
        f"{scaling.STEPS * scaling.BATCH * scaling.LENGTH / 1e9:.2f} G tokens",
    ):
        assert figure in page, figure
