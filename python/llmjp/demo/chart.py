"""A curve as text, for a terminal."""

import itertools
from collections.abc import Sequence

_EIGHTHS = " ▁▂▃▄▅▆▇█"


def chart(values: Sequence[float], width: int = 60, height: int = 8) -> list[str]:
    """Bars for values over equal steps, the highest and lowest value beside them.

    Args:
        values: at least one; averaged where there are more than `width`.
        width: of the bars, in characters.
        height: in lines.

    Returns:
        `height` lines.
    """
    count = min(width, len(values))
    edges = [i * len(values) // count for i in range(count + 1)]
    columns = [values[first:last] for first, last in itertools.pairwise(edges)]
    means = [sum(column) / len(column) for column in columns]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    # The lowest bar keeps one eighth, so that every column is seen.
    heights = [1 + round((mean - low) / span * (8 * height - 1)) for mean in means]
    lines = []
    for row in reversed(range(height)):
        bars = "".join(_EIGHTHS[max(0, min(8, eighths - 8 * row))] for eighths in heights)
        label = f"{high:.2f}" if row == height - 1 else f"{low:.2f}" if row == 0 else ""
        lines.append(f"{label:>7} {bars}")
    return lines
