"""Timing: cold caches, interleaved repetitions in random order, medians with their spread.

A repetition is: `prepare`, fill a buffer of at least twice the last-level cache so that nothing of
the inputs is left in it, then the candidate alone between two clock readings. One repetition of
every candidate makes a round, each round in a new random order, so that a drift of clocks or of
other load on the machine meets all candidates alike.

On CUDA the clock is a pair of events. The fills are queued first and last longer than the host
needs to queue the candidate, so that the events bracket work of the device and not the host's
Python. What the host needs is measured apart: where it is more than the device's time, an eager
program waits for the launches, and the row says so.
"""

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from benchmarks.harness.case import Candidate

LEAST_REPETITIONS = 20
MOST_REPETITIONS = 200
QUICK_REPETITIONS = 5
WARM_UP_CALLS = 3
# Work of the host beyond this shows in the measured time, as it would in a program.
MOST_COVER_SECONDS = 0.05
# A candidate beyond its budget takes part in every so many rounds at most: 5 of 20.
LONGEST_STRIDE = 4
LEAST_CACHE_BYTES = 32 << 20  # where the machine does not tell how large its cache is


@dataclass(frozen=True)
class Sample:
    """One repetition.

    Attributes:
        seconds: the measured time.
        host_seconds: the host's time to issue the call.
        allocated_bytes: device memory that the call took at most, beyond what was there before.
    """

    seconds: float
    host_seconds: float
    allocated_bytes: int = 0


@dataclass(frozen=True)
class Timing:
    """Statistics of a candidate's repetitions, in milliseconds and MiB.

    `by_round` are the repetitions themselves, in seconds: those of two candidates in the same round
    were taken within a moment of each other, and their quotient is free of the machine's drift.
    """

    median_ms: float
    p20_ms: float
    p80_ms: float
    host_ms: float
    repetitions: int
    allocated_mib: float = 0.0
    by_round: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ratio:
    """One candidate's time over another's, of the rounds that both took part in."""

    median: float
    p20: float
    p80: float
    pairs: int


class Clock(Protocol):
    """Times single calls with cold caches on one device."""

    def time(self, candidate: Candidate) -> Sample:
        """One repetition."""

    def cover(self, host_seconds: float) -> None:
        """Makes the work queued before a call last at least so long."""


class CpuClock:
    """time.perf_counter around the call, after the last-level cache was overwritten.

    The garbage collector rests meanwhile, as in timeit: it would go through the reference results
    of the benchmark. Results are freed after the second reading.
    """

    def __init__(self) -> None:
        self._buffer = np.zeros(2 * last_level_cache_bytes(), dtype=np.uint8)

    def time(self, candidate: Candidate) -> Sample:
        arguments = [candidate.arguments() for _ in range(candidate.calls)]
        results = []
        if not candidate.warm:
            self._buffer += 1
        collecting = gc.isenabled()
        gc.disable()
        try:
            start = time.perf_counter()
            for each in arguments:
                results.append(candidate.run(*each))
            seconds = (time.perf_counter() - start) / candidate.calls
        finally:
            if collecting:
                gc.enable()
        return Sample(seconds, seconds)

    def cover(self, host_seconds: float) -> None:
        pass  # nothing is asynchronous


class CudaClock:
    """CUDA events around the call, behind enough cache-clearing fills to hide the launch."""

    def __init__(self, device: torch.device) -> None:
        cache = torch.cuda.get_device_properties(device).L2_cache_size or LEAST_CACHE_BYTES
        self._buffer = torch.empty(2 * cache, dtype=torch.int8, device=device)
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._fills = 1
        self._buffer.zero_()
        fill = Candidate(self._buffer.zero_)
        self._fill_seconds = statistics.median(self.time(fill).seconds for _ in range(5))

    def time(self, candidate: Candidate) -> Sample:
        arguments = candidate.arguments()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        for _ in range(self._fills):
            self._buffer.zero_()
        self._start.record()
        start = time.perf_counter()
        result = candidate.run(*arguments)
        host_seconds = time.perf_counter() - start
        self._end.record()
        self._end.synchronize()
        allocated = torch.cuda.max_memory_allocated() - allocated
        del result  # it lived until here, so that its memory was not used again meanwhile
        return Sample(self._start.elapsed_time(self._end) / 1e3, host_seconds, allocated)

    def cover(self, host_seconds: float) -> None:
        wanted = min(1.5 * host_seconds, MOST_COVER_SECONDS)
        self._fills = 1 + int(wanted / self._fill_seconds)


def last_level_cache_bytes() -> int:
    """Size of the largest cache that Linux reports for the first CPU."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [LEAST_CACHE_BYTES]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        if text[:-1].isdigit() and text[-1] in units:
            sizes.append(int(text[:-1]) * units[text[-1]])
    return max(sizes)


def make_clock(device: torch.device) -> Clock:
    """The clock of a device."""
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def summarise(by_round: Mapping[int, Sample]) -> Timing:
    """Median, 20th and 80th percentile (linear between neighbours) of some repetitions."""
    samples = list(by_round.values())
    p20, median, p80 = np.percentile([s.seconds * 1e3 for s in samples], [20, 50, 80]).tolist()
    host = statistics.median(s.host_seconds * 1e3 for s in samples)
    allocated = max(s.allocated_bytes for s in samples) / 2**20
    seconds = {number: sample.seconds for number, sample in by_round.items()}
    return Timing(median, p20, p80, host, len(samples), allocated, seconds)


def paired_ratio(other: Timing, own: Timing) -> Ratio | None:
    """How many times as long `other` takes, round by round; None without a common round."""
    quotients = [
        other.by_round[number] / seconds
        for number, seconds in own.by_round.items()
        if number in other.by_round
    ]
    if not quotients:
        return None
    p20, median, p80 = np.percentile(quotients, [20, 50, 80]).tolist()
    return Ratio(median, p20, p80, len(quotients))


def repetitions_for(seconds: float, device: torch.device, quick: bool) -> int:
    """How often a call of `seconds` is repeated: about a second's worth, at least 20 times."""
    if quick:
        return QUICK_REPETITIONS
    budget = 0.5 if device.type == "cuda" else 2.0
    return max(LEAST_REPETITIONS, min(MOST_REPETITIONS, int(budget / max(seconds, 1e-9))))


def stride_for(seconds: float, rounds: int, budget: float | None) -> int:
    """1 where `rounds` calls fit into the budget, else 2 or 4: who takes part in every fourth round
    has all of its rounds in common with the others.
    """
    stride = 1
    while budget is not None and stride < LONGEST_STRIDE and seconds * rounds / stride > budget:
        stride *= 2
    return stride


def measure(
    candidates: Mapping[str, Candidate],
    clock: Clock,
    device: torch.device,
    *,
    quick: bool = False,
    shuffle: Callable[[list[str]], None] | None = None,
    budget: float | None = None,
) -> dict[str, Timing | Exception]:
    """Times all candidates, interleaved.

    Args:
        candidates: by name; each has run once before (compilation is not part of the time).
        clock: of the device.
        device: where the candidates run.
        quick: few repetitions.
        shuffle: puts the names of one round in order, in place; random by default.
        budget: measured seconds for each candidate, see Case.budget_seconds.

    Returns:
        By name a candidate's timing, or the exception that it raised.
    """
    shuffle = shuffle or random.Random(0).shuffle
    results: dict[str, Timing | Exception] = {}
    names = list(candidates)

    def sample(name: str) -> Sample | None:
        try:
            return clock.time(candidates[name])
        except Exception as error:  # whatever a peer raises, the others go on
            results[name] = error
            names.remove(name)
            return None

    warm: dict[str, Sample] = {}
    clock.cover(0.0)
    for name in list(candidates):
        for _ in range(1 if quick or budget is not None else WARM_UP_CALLS):
            last = sample(name)
            if last is None:
                break
            warm[name] = last
    if not names:
        return results
    clock.cover(max(warm[name].host_seconds for name in names))
    longest = max(warm[name].seconds * candidates[name].calls for name in names)
    rounds = repetitions_for(longest, device, quick)
    strides = {
        name: stride_for(
            warm[name].seconds * candidates[name].calls, rounds, None if quick else budget
        )
        for name in names
    }

    samples: dict[str, dict[int, Sample]] = {name: {} for name in names}
    for number in range(rounds):
        order = [name for name in names if number % strides[name] == 0]
        shuffle(order)
        for name in order:
            taken = sample(name)
            if taken is not None:
                samples[name][number] = taken
    for name in names:
        results[name] = summarise(samples[name])
    return results
