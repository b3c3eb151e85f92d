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

RECORD = "run.json"
_NAME = re.compile(r"step-(\d+)")


class Checkpoints:
    """The folder of a run's checkpoints."""

    def __init__(self, folder: Path, keep_last: int) -> None:
        """Args:
        folder: where they are, or will be.
        keep_last: how many are kept; 0 keeps all.
        """
        self.folder = folder
        self._keep_last = keep_last

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

    def save(self, engine: Any, step: int, record: dict[str, Any], processes: Processes) -> Path:
        """Writes the checkpoint of `step`; every process must call this.

        Args:
            engine: the DeepSpeed engine.
            step: optimizer steps done.
            record: what read_record() gives back, of JSON's types.
            processes: of the run.

        Returns:
            The checkpoint's folder.

        Raises:
            UserError: it cannot be written, for instance because the disk is full. What was there
                before is untouched.
        """
        final = self.folder / f"step-{step}"
        partial = self.folder / f".step-{step}.partial"

        def prepare() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            for rest in self.folder.glob(".step-*.partial"):
                shutil.rmtree(rest)

        def complete() -> None:
            _write(partial / RECORD, json.dumps(record, indent=2) + "\n")
            _synchronise(partial)
            replaced = (
                _hidden(final) if final.exists() else None
            )  # a run went back and on from there
            partial.rename(final)
            if replaced is not None:
                shutil.rmtree(replaced)
            pointer = self.folder / ".latest.partial"
            _write(pointer, final.name)
            pointer.replace(self.folder / "latest")
            _synchronise_folder(self.folder)
            self._prune(step)

        try:
            processes.first_alone(prepare)
            # DeepSpeed waits for all processes inside: one that fails must end, not wait with them.
            engine.save_checkpoint(
                str(self.folder), tag=partial.name, client_state=record, save_latest=False
            )
            if processes.local_rank == 0 and not processes.first:
                _synchronise(partial)
            processes.barrier()
            processes.first_alone(complete)
        except (OSError, RuntimeError, UserError) as error:
            if processes.first:
                shutil.rmtree(partial, ignore_errors=True)
            reason = _reason(error, self.folder)
            last = self.latest()
            kept = f"the last complete one is {last}" if last else "there is no earlier one"
            raise UserError(f"saving checkpoint {final} failed: {reason}; {kept}") from error
        return final

    def _prune(self, newest: int) -> None:
        """Removes all but the newest `keep_last`; never the one just written."""
        if self._keep_last == 0:
            return
        for step in self.steps()[: -self._keep_last]:
            if step != newest:
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


def _synchronise(folder: Path) -> None:
    """Forces a checkpoint's files to the disk: renaming must not overtake their content."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    _synchronise_folder(folder)


def _synchronise_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
