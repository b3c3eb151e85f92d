"""Compiled tokenizer files taken apart, for tests that change them as an attacker would."""

import struct

ODD, WORD = 0x9E3779B97F4A7C15, (1 << 64) - 1
HEADER = 64  # bytes of the file's header, and of each block's


def sealed(data: bytes) -> bytes:
    """The bytes with a checksum that fits them."""
    sums = [0] * 8
    words = struct.unpack(f"<{(len(data) - HEADER) // 8}Q", data[HEADER:])
    for i in range(0, len(words), 8):
        sums = [
            ((s << 29 | s >> 35) & WORD ^ w) * ODD & WORD
            for s, w in zip(sums, words[i : i + 8], strict=True)
        ]
    total = len(data) - HEADER
    for s in sums:
        total = ((total << 29 | total >> 35) & WORD ^ s ^ s >> 32) * ODD & WORD
    return data[:24] + struct.pack("<Q", total) + data[32:]


def blocks_of(data: bytes) -> list[tuple[int, int, int]]:
    """Where each block's header is, its elements' size and their number."""
    blocks, at = [], HEADER
    while at < len(data):
        size, count = struct.unpack_from("<QQ", data, at)
        blocks.append((at, size, count))
        at += HEADER + -(-size * count // HEADER) * HEADER
    return blocks
