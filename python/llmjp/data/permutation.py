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
_BLOCK = 1 << 14  # elements permuted at a time: what the rounds work on stays in the cache

Words = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]


def _mix(values: Words) -> None:
    """Scrambles each integer, in place.

    64 bits: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014); 32 bits, several
    times faster: that of MurmurHash3 (Appleby).
    """
    if values.dtype == np.uint32:
        steps = ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1))
    else:
        steps = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
    word = values.dtype.type
    for shift, factor in steps:
        values ^= values >> word(shift)
        if factor != 1:
            values *= word(factor)


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
        self._word: type[np.uint32] | type[np.uint64] = np.uint32 if bits <= 32 else np.uint64
        self._round_keys = np.random.SeedSequence(list(key)).generate_state(_ROUNDS, self._word)

    def __call__(self, places: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The images of `places`, an integer array [n] of numbers below `size`, as int64 [n].

        Raises:
            IndexError: a place is negative or not below `size`.
        """
        places = np.asarray(places, dtype=np.int64)
        if places.size and not (places.min() >= 0 and places.max() < self.size):
            raise IndexError(f"places must be from 0 to {self.size - 1}")
        images = np.empty(len(places), np.int64)
        for begin in range(0, len(places), _BLOCK):
            part = slice(begin, begin + _BLOCK)
            words: Words = places[part].astype(self._word)  # type: ignore[assignment]
            images[part] = self._images(words)
        return images

    def _images(self, values: Words) -> Words:
        images = self._round_trip(values)
        (outside,) = np.nonzero(images >= self.size)
        while len(outside):
            again = self._round_trip(images[outside])
            images[outside] = again
            outside = outside[again >= self.size]
        return images

    def _round_trip(self, values: Words) -> Words:
        """One pass through the network: a permutation of the whole power of two."""
        low_bits, high_bits = self._widths
        word = self._word
        for key in self._round_keys:
            # (high, low) becomes (low, high ^ f(low)): undone by whoever knows low.
            low = values & word((1 << low_bits) - 1)
            scrambled: Words = low + key
            _mix(scrambled)
            scrambled &= word((1 << high_bits) - 1)
            scrambled ^= values >> word(low_bits)
            low <<= word(high_bits)
            low |= scrambled
            values = low
            low_bits, high_bits = high_bits, low_bits
        return values
