"""`llmjp plot`: what is drawn, and one line for each mistake."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmjp import cli
from llmjp.plot import curve, read_metrics, smoothed, validation_names


def write_run(folder: Path, count: int = 5) -> Path:
    """Metrics of a run of `count` steps of 10 tokens, validated after each second one."""
    folder.mkdir()
    lines: list[dict[str, Any]] = []
    for step in range(1, count + 1):
        lines.append({"step": step, "loss": 8.0 / step, "lr": 1e-3, "grad_norm": None})
        lines[-1]["tokens"] = 10 * step
        if step % 2 == 0:
            lines.append({"step": step, "tokens": 10 * step, "valid_loss": 9.0 / step})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_points_are_the_metrics(tmp_path: Path) -> None:
    """Training and validation losses over steps and tokens; what a line lacks is left out."""
    run = write_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(
            '{"step": 5, "tokens": 60, "valid_loss": 2.0, '  # its steps became larger
            '"valid_losses": {"wiki": 1.0, "web": 3.0}}\n'
        )
        stream.write('{"step": 6, "lo')  # being written
    entries = read_metrics(run)
    assert curve(entries, "loss", "step") == ([1, 2, 3, 4, 5], [8.0 / n for n in range(1, 6)])
    assert curve(entries, "valid_loss", "tokens") == ([20, 40, 60], [4.5, 2.25, 2.0])
    assert curve(entries, "grad_norm", "step") == ([], [])
    names = ["valid_loss", "valid_loss of wiki", "valid_loss of web"]
    assert validation_names(entries) == names
    assert curve(entries, names[2], "step") == ([5], [3.0])
    assert smoothed([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]


@pytest.mark.parametrize(
    "line", [b'{"step": 3, "lo', b"\x00" * 40, b"\xff\xfe", b'{"step": "x", "loss": 1}', b"[3]"]
)
def test_damaged_lines_are_left_out(
    tmp_path: Path, line: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line cut off in the middle, zeros of a power failure, other things: the rest is drawn."""
    path = write_run(tmp_path / "run") / "metrics.jsonl"
    whole = read_metrics(tmp_path / "run")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], line + b"\n", *lines[3:], line]))
    assert read_metrics(tmp_path / "run") == whole
    told = capsys.readouterr().out
    assert told in ("", f"{path}: 1 damaged lines left out, the first is 4\n")
    assert (told == "") == (line[-1:] in (b"}", b"]"))


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_picture_is_written(
    tmp_path: Path, name: str, start: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs in one picture, of the format that its name says."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    runs = [str(write_run(tmp_path / run)) for run in ("first", "second")]
    output = tmp_path / name
    assert cli.main(["plot", *runs, "--output", str(output), "--log"]) == 0
    assert output.read_bytes().startswith(start) and str(output) in capsys.readouterr().out
    if name.endswith("svg"):
        assert output.read_text().count("<!-- ") > 20  # texts are outlines, named by a comment
        for text in ("second", "second valid loss", "learning rate"):
            assert f"<!-- {tmp_path / text if 'second' in text else text} -->" in output.read_text()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["gone"], "metrics.jsonl|gone cannot be read"),
        (["run", "--output", "a.jpg"], "--output a.jpg must end in .png, .svg, .pdf"),
        (["run", "--smooth", "0"], "--smooth must be 1 or more, got 0"),
        (["empty"], "holds no steps yet"),
        (["broken"], "metrics.jsonl holds no steps, but damaged lines"),
        (["run", "--output", "gone/a.png"], "No such file or directory"),
    ],
)
def test_mistakes_are_told(
    tmp_path: Path,
    arguments: list[str],
    reason: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit code 1 and one line."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run")
    for name, text in (("empty", ""), ("broken", "{\n{}\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(text)
    assert cli.main(["plot", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert any(part in error for part in reason.split("|")), error
