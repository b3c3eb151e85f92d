"""The checkpoint engine that DeepSpeed's engine saves through: it writes while training goes on.

DeepSpeed 0.19 has engines of its own for that, under "checkpoint": {"writer": ...}. They need
variables of one launcher, write what the next step changes unless that step waits for them, and
cannot read their files back under torch's default of weights_only.
"""

import io
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import CheckpointCommitInfo, TorchCheckpointEngine
from torch import Tensor


class Writer(TorchCheckpointEngine):  # type: ignore[misc]
    """Writes the files of a process, at once or in the background; DeepSpeed's engine reads them.

    In the background it copies what it is given to the host's memory, pinned where it comes from a
    GPU, and a thread writes the copy. torch.save() lets other threads run while it writes.
    An error is kept for finish(): DeepSpeed's collectives need every process to get through them.
    """

    def __init__(self, background: bool) -> None:
        """Args:
        background: whether save() only copies.
        """
        super().__init__()
        self._background = background
        self._copies = HostCopies()
        self._waiting: list[tuple[Any, Path]] = []
        self._sizes: dict[str, int] = {}
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def create(self, info: CheckpointCommitInfo) -> None:
        """Begins a checkpoint; the one before must have been finished."""
        assert self._thread is None
        self._waiting, self._sizes, self._error = [], {}, None
        self._copies.begin()

    def save(self, state_dict: Any, path: str) -> None:
        """Takes what a file is to hold; it may change as soon as this returns."""
        if self._error is not None:
            return
        try:
            if self._background:
                self._waiting.append((self._copies.of(state_dict), Path(path)))
            else:
                self._write(state_dict, Path(path))
        except Exception as error:
            self._error = error

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """Begins to write what save() took."""
        if self._waiting and self._error is None:
            # A daemon: a process that is told to stop at once must not wait for its files.
            self._thread = threading.Thread(target=self._write_all, name="checkpoint", daemon=True)
            self._thread.start()
        return True

    def busy(self) -> bool:
        """Whether files are being written."""
        return self._thread is not None and self._thread.is_alive()

    def finish(self) -> dict[str, int]:
        """Waits for the files.

        Returns:
            Their names and sizes in bytes; they are on the disk.

        Raises:
            OSError, RuntimeError: what kept one from being copied or written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._waiting = []
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._sizes

    def _write_all(self) -> None:
        try:
            for state, path in self._waiting:
                self._write(state, path)
        except Exception as error:
            self._error = error

    def _write(self, state: Any, path: Path) -> None:
        torch.save(state, path)
        synchronise(path)
        synchronise(path.parent)
        self._sizes[path.name] = path.stat().st_size


class HostCopies:
    """Copies of states in the host's memory, which is kept for the next checkpoint's.

    To pin memory, or to touch it for the first time, takes longer than to copy into it.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._used = 0

    def begin(self) -> None:
        """Gives the memory free: the copies made until now are no longer wanted."""
        self._used = 0

    def of(self, state: Any) -> Any:
        """A copy of all that a state refers to, its tensors in the host's memory.

        Args:
            state: of anything that pickle takes. Tensors that are one tensor stay so.
        """
        structure = io.BytesIO()
        pickler = _Structure(structure)
        pickler.dump(state)
        copies = [self._copy(tensor) for tensor in pickler.tensors]
        if any(tensor.is_cuda for tensor in pickler.tensors):
            torch.cuda.current_stream().synchronize()
        structure.seek(0)
        return _Rebuilt(structure, copies).load()

    def _copy(self, tensor: Tensor) -> Tensor:
        if self._used == len(self._buffers):
            self._buffers.append(torch.empty(0))
        buffer = self._buffers[self._used]
        if buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[self._used] = buffer
        self._used += 1
        with torch.no_grad():
            return buffer.copy_(tensor, non_blocking=True)


class _Structure(pickle.Pickler):
    """Pickles a state with its tensors left out, by number."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self._numbers: dict[tuple[Any, ...], int] = {}

    def persistent_id(self, thing: Any) -> int | None:
        if not isinstance(thing, Tensor):
            return None
        place = (thing.data_ptr(), thing.device, thing.dtype, thing.shape, thing.stride())
        number = self._numbers.setdefault(place, len(self.tensors))
        if number == len(self.tensors):
            self.tensors.append(thing)
        return number


class _Rebuilt(pickle.Unpickler):
    """Reads what _Structure pickled, with other tensors in its place."""

    def __init__(self, stream: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(stream)
        self._tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        return self._tensors[number]


def synchronise(path: Path) -> None:
    """Forces a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
