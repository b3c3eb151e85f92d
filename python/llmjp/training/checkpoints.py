"""Checkpoints of a run: `OUTPUT/checkpoints/step-N`, each complete or absent.

A checkpoint is written under another name and renamed when every file of every process is on the
disk; `latest`, which names the one to continue from, is replaced after that. Whatever stops a run,
at any moment, leaves the checkpoint before.
"""

import argparse
import contextlib
import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from llmjp.errors import UserError
from llmjp.training.processes import Processes
from llmjp.training.writer import Writer, synchronise

RECORD = "run.json"
_NAME = re.compile(r"step-(\d+)")


class Checkpoints:
    """The folder of a run's checkpoints.

    begin() takes the state of a step and finish() makes a checkpoint of it; between them training
    may go on, and all processes take turns in ready().
    """

    def __init__(self, folder: Path, keep_last: int, background: bool = False) -> None:
        """Args:
        folder: where they are, or will be.
        keep_last: how many are kept; 0 keeps all.
        background: whether begin() only copies what is to be written.
        """
        self.folder = folder
        self._keep_last = keep_last
        self._writer = Writer(background)
        self._begun: dict[str, Any] | None = None  # the record of what is being written

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, rising."""
        if not self.folder.is_dir():
            return []
        matches = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def latest(self) -> Path | None:
        """The checkpoint to continue from: what `latest` names, else the newest; None without any.

        Raises:
            UserError: `latest` names none that is there.
        """
        pointer = self.folder / "latest"
        if pointer.exists():
            name = pointer.read_text(encoding="utf-8").strip()
            if not _NAME.fullmatch(name) or not (self.folder / name).is_dir():
                there = ", ".join(f"step-{step}" for step in self.steps()) or "no checkpoint"
                raise UserError(f"{pointer} names {name!r}, but the folder holds {there}")
            return self.folder / name
        steps = self.steps()
        return self.folder / f"step-{steps[-1]}" if steps else None

    def begin(self, engine: Any, record: dict[str, Any], processes: Processes) -> None:
        """Takes the state of a step; every process must call this. What was begun must be finished.

        Args:
            engine: the DeepSpeed engine.
            record: what read_record() gives back, of JSON's types; `step` counts optimizer steps.
            processes: of the run.

        Raises:
            UserError: nothing can be written there. What was there before is untouched.
        """
        assert self._begun is None

        def prepare() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            for rest in self.folder.glob(".step-*.partial"):
                shutil.rmtree(rest)

        self._begun = record
        engine.checkpoint_engine = self._writer
        try:
            processes.first_alone(prepare)
            # DeepSpeed waits for all processes inside: one that fails must end, not wait with them.
            partial = self._path(partial=True)
            engine.save_checkpoint(str(self.folder), tag=partial.name, save_latest=False)
        except (OSError, RuntimeError, UserError) as error:
            raise self._failed(error, processes) from error

    def ready(self, processes: Processes) -> bool:
        """Whether finish() has something to do and would not wait; all processes must ask."""
        return self._begun is not None and not processes.any(self._writer.busy())

    def finish(self, processes: Processes) -> Path | None:
        """Waits for what begin() took to be on the disk and makes it the latest checkpoint.

        Every process must call this. It may be called without begin().

        Returns:
            The checkpoint's folder; None where nothing was begun.

        Raises:
            UserError: it could not be written, for instance because the disk is full. What was
                there before is untouched.
        """
        if self._begun is None:
            return None
        try:
            written = processes.shared(processes.together(self._finish_writing))
            processes.first_alone(lambda: self._publish(written))
        except (OSError, UserError) as error:
            raise self._failed(error, processes) from error
        final = self._path()
        self._begun = None
        return final

    def _path(self, *, partial: bool = False) -> Path:
        """Where the checkpoint that was begun will be, or is while it is written."""
        assert self._begun is not None
        step = self._begun["step"]
        return self.folder / (f".step-{step}.partial" if partial else f"step-{step}")

    def _finish_writing(self) -> dict[str, int]:
        """The names and sizes of this process's files, which are on the disk."""
        try:
            return self._writer.finish()
        except Exception as error:
            raise UserError(_reason(error, self.folder)) from error

    def _failed(self, error: Exception, processes: Processes) -> UserError:
        """What to say of a checkpoint that came to nothing; it goes."""
        final = self._path()
        if processes.first:
            shutil.rmtree(self._path(partial=True), ignore_errors=True)
        self._begun = None
        last = self.latest()
        kept = f"the last complete one is {last}" if last else "there is no earlier one"
        reason = _reason(error, self.folder)
        return UserError(f"saving checkpoint {final} failed: {reason}; {kept}")

    def _publish(self, written: list[dict[str, int]]) -> None:
        """Gives the files their name, `latest` its content, and old checkpoints up."""
        assert self._begun is not None
        partial, final = self._path(partial=True), self._path()
        files = {name: size for sizes in written for name, size in sizes.items()}
        _check_files(partial, files, "is the output on a file system that all machines share?")
        _write(partial / RECORD, json.dumps({**self._begun, "files": files}, indent=2) + "\n")
        synchronise(partial)
        # A run may have gone back and come here again.
        replaced = _hidden(final) if final.exists() else None
        partial.rename(final)
        if replaced is not None:
            shutil.rmtree(replaced)
        # The name must be on the disk before the pointer to it.
        synchronise(self.folder)
        pointer = self.folder / ".latest.partial"
        _write(pointer, final.name)
        pointer.replace(self.folder / "latest")
        synchronise(self.folder)
        self._prune(self._begun["step"])

    def _prune(self, newest: int) -> None:
        """Removes all but the last `keep_last` up to the one just written.

        Those beyond are of a course that was left by going back. They do not count, or they would
        drive out the checkpoints of the present one.
        """
        if self._keep_last == 0:
            return
        for step in [step for step in self.steps() if step <= newest][: -self._keep_last]:
            shutil.rmtree(_hidden(self.folder / f"step-{step}"))


def read_record(checkpoint: Path) -> dict[str, Any]:
    """The record that save() wrote.

    Raises:
        UserError: it is missing or damaged.
    """
    path = checkpoint / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise UserError(f"{path} is no record of a checkpoint")
    return record


def check_whole(checkpoint: Path) -> None:
    """Checks that the files are there that were written, at their sizes.

    Raises:
        UserError: one is not.
    """
    advice = f"write the name of an older checkpoint into {checkpoint.parent / 'latest'}"
    _check_files(checkpoint, read_record(checkpoint).get("files", {}), advice)


def load(engine: Any, checkpoint: Path) -> None:
    """Puts the engine into the state that a checkpoint holds.

    Raises:
        UserError: a file of it is missing or damaged.
    """
    try:
        found, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"checkpoint {checkpoint} cannot be loaded: {reason}") from error
    if found is None:
        raise UserError(f"checkpoint {checkpoint} cannot be loaded: files are missing")


def processes_of(checkpoint: Path) -> int:
    """How many processes wrote a checkpoint.

    Raises:
        UserError: its record is missing or damaged.
    """
    count = read_record(checkpoint).get("settings", {}).get("processes")
    if not isinstance(count, int):
        raise UserError(f"{checkpoint / RECORD} does not say how many processes wrote it")
    return count


def load_anew(engine: Any, checkpoint: Path, processes: Processes) -> None:
    """Puts an engine of another number of processes into the state that a checkpoint holds.

    The first process turns DeepSpeed's shards into a universal checkpoint, a file for each
    parameter, beside the checkpoint; every process takes its own share of it, and it goes. The
    engine's configuration must say `load_universal`.

    Raises:
        UserError: files are missing or damaged, or the disk is full.
    """
    universal = checkpoint.with_name(f".{checkpoint.name}-universal.partial")
    # DeepSpeed gives every group of parameters the first one's settings when it reads these files.
    decays = [group["weight_decay"] for group in engine.optimizer.param_groups]
    try:
        processes.first_alone(lambda: _make_universal(checkpoint, universal))
        processes.together(lambda: load(engine, universal))
    finally:
        if processes.first:
            shutil.rmtree(universal, ignore_errors=True)
    for group, decay in zip(engine.optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    # In stage 3 it gives them one and the same step counter too, which each then counts up.
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()


def _make_universal(checkpoint: Path, target: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(target, ignore_errors=True)
    arguments = argparse.Namespace(
        input_folder=str(checkpoint),
        output_folder=str(target),
        # One worker: others would be forked from a process in which gloo's threads run.
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    told = io.StringIO()
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            ds_to_universal.main(arguments)
    except Exception as error:
        reason = _reason(error, checkpoint.parent)
        raise UserError(f"{checkpoint} cannot be dealt out anew: {reason}") from error


def _check_files(folder: Path, files: dict[str, int], advice: str) -> None:
    for name, size in files.items():
        try:
            # Opening asks the server, where looking at a network file system's list may not.
            with (folder / name).open("rb") as stream:
                found = os.fstat(stream.fileno()).st_size
        except FileNotFoundError:
            raise UserError(f"{folder / name} is missing: {advice}") from None
        if found != size:
            raise UserError(f"{folder / name} has {found:,} of {size:,} bytes: {advice}")


def _reason(error: BaseException, folder: Path) -> str:
    """One line on a failed writing.

    torch.save() tells a full disk as a fault of positions in its file, without the system's word.
    """
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if "inline_container" not in text and "PytorchStreamWriter" not in text:
        return text
    free = shutil.disk_usage(folder).free / 1e9
    return f"a file could not be written whole (the disk has {free:.1f} GB free)"


def _hidden(checkpoint: Path) -> Path:
    """Renames a checkpoint, so that a removal that is cut short leaves none with parts missing."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.partial")
    if hidden.exists():
        hidden = checkpoint.with_name(f".{checkpoint.name}-replaced.partial")
    checkpoint.rename(hidden)
    return hidden


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
