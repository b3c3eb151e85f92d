"""What opening training data of 300 billion tokens takes, on a synthetic index of that size.

    python tools/data_index.py --folder /some/disk

writes an index of --tokens tokens (20 bytes a document; the ids' file is sparse and takes no room)
and then opens it as a run does, each time in a process of its own: once computing the order of an
epoch, once from the file that the first one kept. Prints seconds and peak memory of each.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmjp.data.blend import Blend, OpenSource
from llmjp.data.indexed_writer import id_type, write_index
from llmjp.data.packed import CACHE, Documents
from llmjp.data.sources import Source

VOCABULARY = 50_688
LENGTH = 2048
PIECE = 1 << 20


def lengths(documents: int, mean: int) -> Iterator[npt.NDArray[np.int32]]:
    """Lengths of documents as texts have them: many short, few very long; the same each time."""
    for begin in range(0, documents, PIECE):
        rng = np.random.default_rng(begin)
        # exp(m + s²/2) is the mean of a log-normal distribution.
        drawn = rng.lognormal(np.log(mean) - 0.5, 1.0, min(PIECE, documents - begin))
        yield np.maximum(drawn, 1).astype(np.int32)


def write(prefix: Path, documents: int, mean: int) -> None:
    """A dataset of that many documents whose ids are all 0."""
    with prefix.with_suffix(".idx").open("wb") as stream:
        write_index(stream, VOCABULARY, documents, lambda: lengths(documents, mean))
    tokens = sum(int(part.sum(dtype=np.int64)) for part in lengths(documents, mean))
    with prefix.with_suffix(".bin").open("wb") as stream:
        stream.truncate(tokens * id_type(VOCABULARY).itemsize)


def memory(name: str) -> int:
    """Bytes of an entry of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name + ":")))


def measure(prefix: Path, folds: int) -> None:
    """Opens the dataset and reads samples; prints what each took."""
    began = time.perf_counter()
    documents = Documents([prefix])
    opened = time.perf_counter()
    data = Blend([OpenSource(Source("all", (prefix,), None), documents)], LENGTH, 1, folds=folds)
    laid_out = time.perf_counter()
    numbers = np.random.default_rng(0).integers(0, data.samples_per_epoch, 200)
    for number in numbers.tolist():
        data[number]
    read = time.perf_counter()
    processor = resource.getrusage(resource.RUSAGE_SELF)
    print(f"  {len(documents):,} documents, {data.token_count:,} tokens, {folds} folds")
    print(f"  {data.samples_per_epoch:,} samples of {LENGTH:,}")
    print(f"  opening and checking the index  {opened - began:8.2f} s")
    print(f"  order of an epoch               {laid_out - opened:8.2f} s")
    print(f"  a sample                        {(read - laid_out) / len(numbers) * 1e3:8.2f} ms")
    print(f"  processor time, all             {processor.ru_utime + processor.ru_stime:8.2f} s")
    print(f"  memory of its own, at the end   {memory('RssAnon') / 1e6:8.1f} MB")
    print(f"  with mapped files, greatest     {memory('VmHWM') / 1e6:8.1f} MB")


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--folder", type=Path, required=True, help="gets 20 bytes a document")
    parser.add_argument("--tokens", type=float, default=3e11)
    parser.add_argument("--mean", type=int, default=1000, help="tokens of a document")
    parser.add_argument("--folds", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="leaves the files for another run")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    prefix = arguments.folder / "synthetic"
    if arguments.measure:
        measure(prefix, arguments.folds)
        return
    if not prefix.with_suffix(".bin").exists():
        began = time.perf_counter()
        write(prefix, round(arguments.tokens / arguments.mean), arguments.mean)
        size = prefix.with_suffix(".idx").stat().st_size
        print(f"wrote {size / 1e9:.2f} GB of index in {time.perf_counter() - began:.1f} s")
    cache = arguments.folder / CACHE
    shutil.rmtree(cache, ignore_errors=True)
    for title in ("the first time", "from the kept order"):
        print(title, flush=True)
        subprocess.run([sys.executable, __file__, "--measure", *sys.argv[1:]], check=True)
    kept = sum(file.stat().st_size for file in cache.glob("*.npy")) if cache.exists() else 0
    print(f"kept on disk: {kept / 1e6:.1f} MB")
    if not arguments.keep:
        for file in (prefix.with_suffix(".idx"), prefix.with_suffix(".bin")):
            file.unlink()
        shutil.rmtree(cache, ignore_errors=True)


if __name__ == "__main__":
    main()
