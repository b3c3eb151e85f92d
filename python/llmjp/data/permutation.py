"""Pseudo-random permutations of 0 .. n - 1 computed element by element, without an array of n.

A Feistel network over just enough bits permutes a power of two that is less than twice n; an image
outside of n is sent through again until it falls inside (cycle walking), which leaves a permutation
of n. See M. Luby and C. Rackoff, "How to construct pseudorandom permutations from pseudorandom
functions", SIAM J. Comput. 17 (1988), and J. Black and P. Rogaway, "Ciphers with arbitrary finite
domains", CT-RSA 2002. Shuffling needs no secrecy: the round function is a plain mixer of integers.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_ROUNDS = 8  # even, so that halves of unequal width end where they began
_MOST_BITS = 62


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scrambles each integer: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


class Permutation:
    """A permutation of 0 .. size - 1 that `key` decides; holds nothing but its round keys."""

    def __init__(self, size: int, key: Sequence[int]) -> None:
        """Args:
        size: n, from 0 to 2**62.
        key: non-negative integers; other keys give unrelated permutations.
        """
        if not 0 <= size <= 1 << _MOST_BITS:
            raise ValueError(f"size must be from 0 to 2**{_MOST_BITS}, got {size}")
        self.size = size
        bits = max((size - 1).bit_length(), 2)
        self._widths = (bits // 2, bits - bits // 2)  # of the low and the high part
        self._round_keys = np.random.SeedSequence(list(key)).generate_state(_ROUNDS, np.uint64)

    def __call__(self, places: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The images of `places`, an integer array [n] of numbers below `size`, as int64 [n].

        Raises:
            IndexError: a place is negative or not below `size`.
        """
        places = np.asarray(places, dtype=np.int64)
        if places.size and not (places.min() >= 0 and places.max() < self.size):
            raise IndexError(f"places must be from 0 to {self.size - 1}")
        images = self._round_trip(places.astype(np.uint64))
        while True:
            outside = images >= np.uint64(self.size)
            if not outside.any():
                return images.astype(np.int64)
            images[outside] = self._round_trip(images[outside])

    def _round_trip(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """One pass through the network: a permutation of the whole power of two."""
        low_bits, high_bits = self._widths
        for key in self._round_keys:
            # (high, low) becomes (low, high ^ f(low)): undone by whoever knows low.
            low = values & np.uint64((1 << low_bits) - 1)
            high = values >> np.uint64(low_bits)
            mask = np.uint64((1 << high_bits) - 1)
            high ^= _mix(low + key) & mask
            values = (low << np.uint64(high_bits)) | high
            low_bits, high_bits = high_bits, low_bits
        return values
