"""Batches over threads: the same ids for any number of threads, from any thread, after a fork, with
memory that does not grow."""

import gc
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmjp_ext import Tokenizer
from tokenizer_oracle import FUZZ_ATOMS, japanese_lines, load_both, model_file

PROCESS_STATUS = Path("/proc/self/status")
ENOUGH_FOR_PARTS = 40_000  # characters of which two parts are made at least


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    """The tokenizer trained on the spot."""
    return load_both(model_file("trained"))[0]


def some_texts(seed: int, characters: int) -> list[str]:
    """Texts of very different lengths, many of them empty, of so many characters together."""
    rng = random.Random(seed)
    texts: list[str] = []
    while characters > 0:
        length = rng.choice((0, 0, 1, 5, 30, 400, 5000))
        texts.append("".join(rng.choices([*FUZZ_ATOMS, "日本語の本。", "def f(x):\n"], k=length)))
        characters -= len(texts[-1])
    return texts


@pytest.mark.parametrize("characters", [0, 10, 4000, 5000, ENOUGH_FOR_PARTS, 600_000])
def test_ids_do_not_depend_on_the_number_of_threads(ours: Tokenizer, characters: int) -> None:
    """Below and above the sizes from which the lock is released and threads are started."""
    texts = some_texts(characters, characters)
    expected = [ours.encode(text) for text in texts]
    flat = [id for ids in expected for id in ids]
    for threads in (1, 2, 3, 16, 1000):
        assert ours.encode_batch(texts, num_threads=threads) == expected, f"{threads} threads"
        ids, offsets = ours.encode_ragged(texts, num_threads=threads)
        assert ids.tolist() == flat, f"{threads} threads"
        assert offsets.tolist() == [0, *np.cumsum([len(each) for each in expected])]


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_an_error_in_any_part_ends_the_batch(ours: Tokenizer, place: float, threads: int) -> None:
    """A lone surrogate anywhere raises, whatever the others are doing; the next call works."""
    texts = ["日本語" * 300] * 300
    spoilt = list(texts)
    spoilt[int(place * (len(texts) - 1))] = "\ud800"
    for call in (ours.encode_batch, ours.encode_ragged):
        with pytest.raises(TypeError, match="lone surrogate"):
            call(spoilt, num_threads=threads)
    assert ours.encode_batch(texts, num_threads=threads) == [ours.encode(texts[0])] * len(texts)


def test_arrays_own_their_memory(ours: Tokenizer) -> None:
    """What encode_ragged returns can be written to, and outlives tokenizer and texts."""
    tokenizer = Tokenizer.from_file(model_file("trained"))
    ids, offsets = tokenizer.encode_ragged(["日本語の本。" * 50] * 20, num_threads=1)
    expected = ours.encode("日本語の本。" * 50) * 20
    del tokenizer
    gc.collect()
    assert ids.tolist() == expected and offsets[-1] == len(expected)
    ids[0] = 5
    offsets[0] = 1
    assert ids[0] == 5 and ids.flags.c_contiguous and ids.flags.aligned
    empty, _ = ours.encode_ragged([], num_threads=2)
    assert empty.shape == (0,) and empty.dtype == ids.dtype


def test_several_python_threads_at_once(ours: Tokenizer) -> None:
    """One tokenizer, a batch in each of several Python threads, each over two of its own."""
    texts = [some_texts(seed, 60_000) for seed in range(4)]
    expected = [[ours.encode(text) for text in each] for each in texts]
    results: dict[int, list[list[list[int]]]] = {}

    def work(i: int) -> None:
        results[i] = [ours.encode_batch(texts[i], num_threads=2) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(results[i] == [expected[i]] * 3 for i in range(len(texts)))


def test_texts_may_go_while_they_are_encoded(ours: Tokenizer) -> None:
    """The list is emptied by another thread at once: the batch has what it began with."""
    lines = [line + str(i) for i, line in enumerate(japanese_lines(4, 4000))]
    expected = ours.encode_batch(lines)
    texts = [str(line.encode(), "utf-8") for line in lines]
    clearing = threading.Thread(target=texts.clear)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        clearing.start()
        got = ours.encode_batch(texts, num_threads=2)
        clearing.join()
    finally:
        sys.setswitchinterval(interval)
    assert got == expected[: len(got)] and len(got) in (0, len(lines))


CALLS: dict[str, Callable[[Tokenizer, str], object]] = {
    "encode": lambda ours, text: ours.encode(text),
    "encode_batch": lambda ours, text: ours.encode_batch([text] * 3, num_threads=1),
    "encode_ragged": lambda ours, text: ours.encode_ragged([text] * 3, num_threads=1),
    "encode_with_spans": lambda ours, text: ours.encode_with_spans(text),
    "decode": lambda ours, text: ours.decode(np.arange(300_000) % 2000),
    "decode_batch": lambda ours, text: ours.decode_batch(
        np.arange(300_000).reshape(3, -1) % 2000, num_threads=1
    ),
    "decode_ragged": lambda ours, text: ours.decode_ragged(
        np.arange(300_000) % 2000, [0, 100, 300_000], num_threads=1
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_lock_is_released(ours: Tokenizer, name: str) -> None:
    """While a call works another Python thread runs, which it cannot unless it gets the lock: the
    interpreter itself would take it away after a quarter of an hour only."""
    text = "\n".join(japanese_lines(6, 20_000))
    interval = sys.getswitchinterval()
    limit = time.monotonic() + 60
    while time.monotonic() < limit:  # a busy system may be slow to let the other one run
        go, ran = threading.Event(), []

        def run(go: threading.Event = go, ran: list[int] = ran) -> None:
            go.wait()
            ran.append(1)

        other = threading.Thread(target=run)
        other.start()
        time.sleep(0.02)  # it waits for `go` by now, and not for the lock in the ordinary way
        sys.setswitchinterval(900)
        try:
            go.set()
            before = len(ran)
            CALLS[name](ours, text)
            after = len(ran)
        finally:
            sys.setswitchinterval(interval)
        other.join()
        if before == 0 and after == 1:
            return
    pytest.fail("no other thread ran during the call")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_encodes_over_threads(ours: Tokenizer) -> None:
    """After batches here, and while another thread is in the middle of one, children work."""
    texts = some_texts(3, 200_000)
    expected = ours.encode_batch(texts, num_threads=2)
    decoded = ours.decode_batch(expected)
    stop = threading.Event()

    def keep_encoding() -> None:
        while not stop.is_set():
            ours.encode_ragged(texts, num_threads=2)
            ours.decode_batch(expected, num_threads=2)

    busy = threading.Thread(target=keep_encoding)
    busy.start()
    context = multiprocessing.get_context("fork")
    try:
        for _ in range(3):
            receive, send = context.Pipe(duplex=False)
            child = context.Process(
                target=lambda send=send: send.send(
                    (
                        ours.encode_batch(texts, num_threads=2),
                        ours.decode_batch(expected, num_threads=2),
                    )
                )
            )
            child.start()
            assert receive.poll(60), "the forked child gave no answer"
            assert receive.recv() == (expected, decoded)
            child.join(60)
            assert child.exitcode == 0
    finally:
        stop.set()
        busy.join()


def thread_ids() -> set[str]:
    """The threads of this process, Python's or not."""
    return {path.name for path in Path("/proc/self/task").iterdir()}


def blocked_signals(thread: str) -> int:
    """The signals that a thread does not take, signal n as bit n - 1."""
    text = Path(f"/proc/self/task/{thread}/status").read_text(encoding="ascii")
    return int(next(line for line in text.splitlines() if line.startswith("SigBlk")).split()[1], 16)


@pytest.mark.skipif(not PROCESS_STATUS.exists(), reason="needs Linux's /proc")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_helping_threads_stay_and_go_before_a_fork(ours: Tokenizer) -> None:
    """Calls share them, they leave signals to others, and a fork finds none that it could lose."""
    texts = some_texts(8, 100_000)
    pid = os.fork()  # ends those of tests before
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    before = thread_ids()
    expected = ours.encode_batch(texts, num_threads=2)
    helping = thread_ids() - before
    assert len(helping) == 1
    for _ in range(20):
        ours.encode_ragged(texts, num_threads=2)
        ours.decode_batch(expected, num_threads=2)
    assert thread_ids() - before == helping
    mask = blocked_signals(helping.pop())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        assert mask >> (number - 1) & 1, number
    assert not mask >> (signal.SIGSEGV - 1) & 1
    pid = os.fork()
    if pid == 0:
        os._exit(0 if ours.encode_batch(texts, num_threads=2) == expected else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert thread_ids() - before == set()
    assert ours.encode_batch(texts, num_threads=2) == expected


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_a_process_ends_cleanly(state: str) -> None:
    """With helping threads asleep, and with daemon threads in the middle of calls of each kind."""
    program = f"""
import sys, threading, time
from llmjp_ext import Tokenizer

tokenizer = Tokenizer.from_file(sys.argv[1])
texts = ["日本語の本。print(line)" * 200] * 100
ids = tokenizer.encode_batch(texts, num_threads=2)
calls = [
    lambda: tokenizer.encode_batch(texts, num_threads=2),
    lambda: tokenizer.encode_ragged(texts, num_threads=2),
    lambda: tokenizer.encode("".join(texts)),
    lambda: tokenizer.decode_batch(ids, num_threads=2),
]
begun = threading.Barrier(len(calls) + 1)

def keep_calling(call):
    call()
    begun.wait()
    while True:
        call()

if {state == "busy"}:
    for call in calls:
        threading.Thread(target=keep_calling, args=(call,), daemon=True).start()
    begun.wait()
    time.sleep(0.05)
print("end")
"""
    finished = subprocess.run(
        [sys.executable, "-c", program, model_file("trained")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (finished.returncode, finished.stdout) == (0, "end\n"), finished.stderr


def resident_kilobytes() -> int:
    """What this process holds in memory now."""
    lines = PROCESS_STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(not PROCESS_STATUS.exists(), reason="needs Linux's /proc")
def test_memory_stays_flat(ours: Tokenizer) -> None:
    """Hundreds of calls of each kind, errors too, hold no more memory than the first ones did."""
    texts = some_texts(5, 120_000)
    spoilt = [*texts, "\ud800"]
    batch = ours.encode_batch(texts)
    arrays = [np.array(ids, np.uint16) for ids in batch]
    ids, offsets = ours.encode_ragged(texts)

    def failing() -> None:
        with pytest.raises(TypeError):
            ours.encode_batch(spoilt, num_threads=2)

    calls: list[Callable[[], object]] = [
        lambda: ours.encode_batch(texts, num_threads=1),
        lambda: ours.encode_batch(texts, num_threads=2),
        lambda: ours.encode_ragged(texts, num_threads=1),
        lambda: ours.encode_ragged(texts, num_threads=2),
        lambda: ours.encode(texts[-1]),
        lambda: ours.decode_batch(batch),
        lambda: ours.decode_batch(arrays, num_threads=1),
        lambda: ours.decode_batch(arrays, num_threads=2),
        lambda: ours.decode_ragged(ids, offsets, num_threads=2),
        failing,
    ]

    def round_of_calls(times: int) -> int:
        for call in calls:
            for _ in range(times):
                call()
        gc.collect()
        return resident_kilobytes()

    before = round_of_calls(8)
    after = round_of_calls(40)
    # A leak of one call's ids, a quarter of a megabyte, would be 10 MB a kind of call.
    assert after - before < 6000, f"resident memory grew from {before} to {after} kB"


def test_lists_share_integers_and_count_references(ours: Tokenizer) -> None:
    """Making and dropping lists, also in batches that fail, leaves reference counts alone."""
    texts = ["日本語の本。"] * 3000
    id = max(ours.encode(texts[0], add_special_tokens=False))
    held = next(each for each in ours.encode(texts[0]) if each == id)
    before = sys.getrefcount(held)
    lists = ours.encode_batch(texts, num_threads=2)
    per_text = sum(each == id for each in lists[0])
    if id > 256:  # smaller ones are immortal or shared with the interpreter
        assert sys.getrefcount(held) - before == per_text * len(texts)
    del lists
    with pytest.raises(TypeError):
        ours.encode_batch([*texts, "\udc00"], num_threads=2)
    if id > 256:
        assert sys.getrefcount(held) == before


def test_the_collector_is_left_as_it_was(ours: Tokenizer) -> None:
    """encode_batch pauses the cyclic collector while it makes lists, and no longer."""
    for switch, state in ((gc.disable, False), (gc.enable, True)):
        switch()
        try:
            ours.encode_batch(["日本"] * 5)
            with pytest.raises(TypeError):
                ours.encode_batch(["日本", "\ud800"])
            assert gc.isenabled() is state
        finally:
            gc.enable()
    lists = ours.encode_batch(["日本"] * 5)
    assert gc.is_tracked(lists) and all(gc.is_tracked(each) for each in lists)
