"""Arrays that take long to compute and are kept in files, by any number of processes at once."""

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmjp.data.files import keep


def kept_array(path: Path, compute: Callable[[], npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """The array [n] in the file `path`, which is made if it is missing or not whole.

    Of several processes that ask at once one computes and the others wait for its file; where the
    file system has no locks all compute the same. A file appears whole, under its name, or not at
    all. Where the folder cannot be written to, the array is computed and not kept.

    Args:
        path: of the file, `.npy`; its name must say all that the array depends on.
        compute: makes the array.
    """
    array = _load(path)
    if array is not None:
        return array
    with _locked(path.with_suffix(".lock")):
        array = _load(path)  # another process may have made it meanwhile
        if array is not None:
            return array
        array = compute()
        keep(path, lambda stream: np.save(stream, array))
        return array


def _load(path: Path) -> npt.NDArray[np.int64] | None:
    try:
        array: npt.NDArray[np.int64] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.dtype == np.int64 and array.ndim == 1 else None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock that ends with the process, if the folder and its file system have locks."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("ab")
    except OSError:
        yield
        return
    with stream:
        with contextlib.suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
