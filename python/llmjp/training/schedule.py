"""The learning rate of each step."""

import math


def learning_rate(
    step: int, *, highest: float, lowest: float, warmup: int, decay_steps: int
) -> float:
    """Linear from 0 to `highest` over `warmup` steps, then a half cosine to `lowest`.

    Args:
        step: the step that is about to be taken, from 0.
        highest, lowest: the rates between which the cosine runs.
        warmup: steps of warm-up; step `warmup - 1` is the first with the highest rate.
        decay_steps: steps after which the rate stays at `lowest`, those of warm-up included.
    """
    if step < warmup:
        return highest * (step + 1) / warmup
    share = min((step - warmup + 1) / max(decay_steps - warmup, 1), 1.0)
    return lowest + (highest - lowest) * 0.5 * (1.0 + math.cos(math.pi * share))
