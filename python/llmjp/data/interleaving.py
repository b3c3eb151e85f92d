"""Deals numbers 0, 1, 2, … out to several receivers in proportion to weights, without a list.

Megatron chooses for each sample the source that lags most behind its weight and writes the choices
down. Here a choice is computed: the receivers are leaves of a binary tree, and of the first n
numbers that reach a node, round(n w) go to its left side, w being the left side's share of the
weight. Which side number n takes, and how many took it before, follows from n alone.

After any n numbers each receiver has its share of them to within two. At a node the rounding is off
by at most 1/2, and it hands on its own error times the side's share: e' <= 1/2 + w e. The tree is
Huffman's: x <= y that are joined were the lightest two at that moment, so that what their sum is
joined with later weighs y or more, and w <= (x + y) / (x + 2 y) <= 2/3. So e <= 3/2 for all that is
no leaf, and below 1/2 + 3/2 for a leaf. Where all shares of n are whole numbers there is no error.
All is done in integers and gives the same on every machine.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class _Node:
    """A fork of the tree: `share` of what comes goes left."""

    share: Fraction
    left: "_Node | int"
    right: "_Node | int"

    def left_of(self, count: int) -> int:
        """How many of the first `count` numbers go left: count * share, rounded."""
        numerator, denominator = self.share.numerator, self.share.denominator
        return (2 * count * numerator + denominator) // (2 * denominator)


class Interleaving:
    """Who gets which number; see the module's text."""

    def __init__(self, weights: Sequence[Fraction | int]) -> None:
        """Args:
        weights: of the receivers, positive.
        """
        if not weights or not all(weight > 0 for weight in weights):
            raise ValueError(f"weights must be positive, got {list(weights)}")
        self._count = len(weights)
        # The second entry decides between equal weights, so that the tree is always the same.
        heap: list[tuple[Fraction, int, _Node | int]] = [
            (Fraction(weight), index, index) for index, weight in enumerate(weights)
        ]
        heapq.heapify(heap)
        order = self._count
        while len(heap) > 1:
            small, _, right = heapq.heappop(heap)
            large, _, left = heapq.heappop(heap)
            node = _Node(large / (large + small), left, right)
            heapq.heappush(heap, (large + small, order, node))
            order += 1
        self._root = heap[0][2]

    def __getitem__(self, number: int) -> tuple[int, int]:
        """The receiver of a number, and how many it has received before."""
        node = self._root
        while isinstance(node, _Node):
            before, after = node.left_of(number), node.left_of(number + 1)
            if after > before:
                node, number = node.left, before
            else:
                node, number = node.right, number - before
        return node, number

    def counts(self, total: int) -> list[int]:
        """How many of the first `total` numbers each receiver gets."""
        result = [0] * self._count
        open_nodes: list[tuple[_Node | int, int]] = [(self._root, total)]
        while open_nodes:
            node, count = open_nodes.pop()
            if isinstance(node, _Node):
                left = node.left_of(count)
                open_nodes += [(node.left, left), (node.right, count - left)]
            else:
                result[node] = count
        return result
