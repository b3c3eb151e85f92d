"""What a checkpoint holds though training goes on, and what becomes of those before it."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.checkpoint_engine import CheckpointCommitInfo
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

from llmjp.errors import UserError
from llmjp.training.checkpoints import Checkpoints, check_whole, read_record
from llmjp.training.processes import Processes
from llmjp.training.writer import HostCopies

ALONE = Processes(0, 1, 0, torch.device("cpu"))


def equal(one: Any, other: Any) -> bool:
    """Whether two states are the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and one.equal(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


class Engine:
    """DeepSpeed's engine as far as saving goes: a state that steps change in place."""

    def __init__(self) -> None:
        self.checkpoint_engine: Any = None
        self.weights = torch.zeros(3, 4)
        self.steps = [0]

    def train(self, steps: int = 1) -> None:
        """Changes everything."""
        self.weights += steps
        self.steps[0] += steps

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        """The calls that DeepSpeed makes, in its order."""
        info = CheckpointCommitInfo(tag, folder, save_latest)
        self.checkpoint_engine.create(info)
        self.checkpoint_engine.makedirs(f"{folder}/{tag}", exist_ok=True)
        for name in ("model", "optimizer"):
            self.checkpoint_engine.save(
                {name: self.weights, "steps": self.steps}, f"{folder}/{tag}/{name}.pt"
            )
        self.checkpoint_engine.commit(info)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Until it is set no file is written."""
    opened, save = threading.Event(), torch.save

    def save_later(state: Any, path: Path) -> None:
        assert opened.wait(60)
        save(state, path)

    monkeypatch.setattr(torch, "save", save_later)
    return opened


def save(checkpoints: Checkpoints, engine: Engine) -> Path:
    """A checkpoint of the engine's step."""
    checkpoints.begin(engine, {"step": engine.steps[0]}, ALONE)
    folder = checkpoints.finish(ALONE)
    assert folder is not None
    return folder


def test_a_copy_is_of_its_moment() -> None:
    """Tensors, numbers and objects of a state may change after; its memory serves the next one."""
    base = torch.arange(12.0).view(3, 4)
    scaler = DynamicLossScaler(64.0, 2.0, 500, 1.0, 2, False, True)
    state: Any = OrderedDict(
        part=base[:, 1:3], again=[base[:, 1:3], torch.tensor(7, dtype=torch.int32)],
        half=base.bfloat16(), none=torch.empty(0), scaler=scaler, steps=[1, (2, "three")],
    )  # fmt: skip
    copies = HostCopies()
    copies.begin()
    copy = copies.of(state)
    assert type(copy) is OrderedDict and copy["part"] is copy["again"][0]
    assert copy["part"].untyped_storage().nbytes() == 6 * 4, "a view's copy holds no more than it"
    before = {name: value for name, value in copy.items() if name != "scaler"}
    frozen = {name: torch.clone(before[name]) for name in ("part", "half")}
    base.zero_()
    state["steps"][0] = 5
    scaler.cur_scale = 1.0
    assert equal(copy["part"], frozen["part"]) and equal(copy["half"], frozen["half"])
    assert copy["steps"] == [1, (2, "three")] and copy["scaler"].cur_scale == 64.0

    place = copy["part"].data_ptr()
    copies.begin()
    copy = copies.of(state)
    assert copy["part"].data_ptr() == place and equal(copy["part"], torch.zeros(3, 2))


def test_a_checkpoint_is_of_the_step_that_began_it(tmp_path: Path, gate: threading.Event) -> None:
    """Steps are made before anything is written: the files hold none of them, and come whole."""
    engine, checkpoints = Engine(), Checkpoints(tmp_path, 2, background=True)
    engine.train(3)
    checkpoints.begin(engine, {"step": 3}, ALONE)
    for _ in range(4):
        engine.train()
        assert not checkpoints.ready(ALONE) and checkpoints.latest() is None
    assert not (tmp_path / "step-3").exists()
    gate.set()
    assert checkpoints.finish(ALONE) == tmp_path / "step-3" == checkpoints.latest()
    for name in ("model", "optimizer"):
        found = checkpoints._writer.load(str(tmp_path / "step-3" / f"{name}.pt"))
        assert equal(found, {name: torch.full((3, 4), 3.0), "steps": [3]})
    assert not checkpoints.ready(ALONE) and checkpoints.finish(ALONE) is None


@pytest.mark.parametrize("background", [False, True])
def test_what_cannot_be_written_is_told_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    """begin() gets through DeepSpeed's collectives; finish() tells; the one before is there."""
    engine, checkpoints = Engine(), Checkpoints(tmp_path, 2, background)
    engine.train()
    save(checkpoints, engine)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        engine.train()
        checkpoints.begin(engine, {"step": 2}, ALONE)
        with pytest.raises(
            UserError, match=r"saving checkpoint .*step-2 failed: .*No space left; "
        ):
            checkpoints.finish(ALONE)
    assert [path.name for path in tmp_path.glob("*step*")] == ["step-1"]
    engine.train()
    assert save(checkpoints, engine) == checkpoints.latest() == tmp_path / "step-3"


def test_going_back_keeps_the_checkpoints_of_the_way(tmp_path: Path) -> None:
    """keep_last counts up to the newest; those of the course that was left are replaced."""
    engine, checkpoints = Engine(), Checkpoints(tmp_path, 0)
    for _ in range(5):
        engine.train()
        save(checkpoints, engine)
    (tmp_path / "latest").write_text("step-2")
    engine, checkpoints = Engine(), Checkpoints(tmp_path, 2)
    engine.train(2)
    engine.weights += 0.5
    for steps in ([2, 3, 4, 5], [3, 4, 5], [4, 5]):
        engine.train()
        folder = save(checkpoints, engine)
        assert folder == checkpoints.latest() and checkpoints.steps() == steps
        weights = torch.load(folder / "model.pt")["model"]
        assert equal(weights, torch.full((3, 4), engine.steps[0] + 0.5))


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    """A file that is short or gone is found before anything is loaded."""
    engine, checkpoints = Engine(), Checkpoints(tmp_path, 0)
    engine.train()
    folder = save(checkpoints, engine)
    check_whole(folder)
    assert read_record(folder)["files"].keys() == {"model.pt", "optimizer.pt"}
    file = folder / "optimizer.pt"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"optimizer.pt has 100 of {size:,} bytes: .*latest"):
        check_whole(folder)
    file.unlink()
    with pytest.raises(UserError, match=r"optimizer.pt is missing: write the name of an older"):
        check_whole(folder)


def test_files_on_another_machines_disk_are_missed(tmp_path: Path) -> None:
    """What a process wrote and the first one does not see makes no checkpoint."""
    engine, checkpoints = Engine(), Checkpoints(tmp_path, 0, background=True)
    engine.train()
    checkpoints.begin(engine, {"step": 1}, ALONE)
    checkpoints._writer._thread.join()  # type: ignore[union-attr]
    (tmp_path / ".step-1.partial" / "model.pt").unlink()
    with pytest.raises(UserError, match=r"model.pt is missing: is the output on a file system"):
        checkpoints.finish(ALONE)
    assert checkpoints.steps() == [] and not (tmp_path / "latest").exists()
