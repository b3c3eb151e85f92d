"""`llmjp demo`: the whole line on a small text, taking it up again, and what it refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmjp.demo.chart import chart
from tokenizer_oracle import japanese_lines

ROOT = Path(__file__).resolve().parent.parent


def demo(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own, in `folder`."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "python")]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "llmjp.cli", "demo", *map(str, words)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose path has a space, with a text in it."""
    folder = tmp_path_factory.mktemp("demo of a folder")
    (folder / "text.txt").write_text("\n\n".join(japanese_lines(3, 1500)), encoding="utf-8")
    return folder


def test_runs_the_whole_line_and_takes_it_up_again(folder: Path) -> None:
    """Tokenizer, data, training and text; a second run only generates, with the same text."""
    words = ("--text", "text.txt", "--steps", 12, "--output", "out dir", "--prompt", "先生は")
    first = demo(*words, folder=folder)
    assert first.returncode == 0, first.stdout + first.stderr
    commands = [line.split()[2] for line in first.stdout.splitlines() if line.startswith("$ llmjp")]
    assert commands == ["tokenizer-train", "tokenize", "train", "generate"]
    assert "loss over 12 steps" in first.stdout and "tokens/s (median) on cpu" in first.stdout
    assert (folder / "out dir" / "run" / "hf" / "model.safetensors").exists()

    second = demo(*words, folder=folder)
    assert second.returncode == 0, second.stdout + second.stderr
    commands = [
        line.split()[2] for line in second.stdout.splitlines() if line.startswith("$ llmjp")
    ]
    assert commands == ["generate"]

    def text(run: subprocess.CompletedProcess[str]) -> str:
        return next(line for line in run.stdout.splitlines() if line.startswith("先生は"))

    assert text(first) == text(second)

    other = demo("--text", "text.txt", "--steps", 13, "--output", "out dir", folder=folder)
    assert other.returncode == 1
    assert "other settings; --overwrite starts anew" in other.stderr


def test_touches_no_folder_of_somebody_elses(folder: Path) -> None:
    """A folder with something else in it is refused, with --overwrite too, and stays as it was."""
    (folder / "mine").mkdir()
    (folder / "mine" / "precious").write_text("x")
    for flags in ((), ("--overwrite",)):
        result = demo("--output", "mine", *flags, folder=folder)
        assert result.returncode == 1
        assert result.stderr == (
            "llmjp: error: mine exists and is no demonstration; name another --output\n"
        )
    assert [path.name for path in (folder / "mine").iterdir()] == ["precious"]


@pytest.mark.parametrize("count", [1, 3, 60, 61, 600])
def test_chart_shows_every_value_and_falls_with_the_loss(count: int) -> None:
    """Falling values give bars that never rise, none empty; the extremes stand beside them."""
    values = [10.0 - 9.0 * i / count for i in range(count)]
    lines = chart(values, width=60, height=5)
    bars = [line[8:] for line in lines]
    assert len(lines) == 5 and all(len(bar) == min(count, 60) for bar in bars)
    order = " ▁▂▃▄▅▆▇█"
    heights = [sum(order.index(bar[i]) for bar in bars) for i in range(len(bars[0]))]
    assert heights == sorted(heights, reverse=True) and min(heights) >= 1
    assert float(lines[-1].split()[0]) <= float(lines[0].split()[0])
