"""What the ops' modules share: autocast, the random state, and Philox in plain PyTorch."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
FLOAT_NAMES = "float32, float16 or bfloat16"

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

_LOW_WORD = 0xFFFFFFFF


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd has to record an op on these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def distinct(*arguments: Any) -> tuple[Any, ...]:
    """An autograd function's arguments, a tensor given a second time as a view of itself.

    Dynamo refuses to trace such a function where two of its arguments are one tensor, as in
    layer_norm(x, ..., residual=x). Eager autograd needs no view.
    """
    if not torch.compiler.is_compiling():
        return arguments
    result: list[Any] = []
    for i, argument in enumerate(arguments):
        again = isinstance(argument, Tensor) and any(argument is a for a in arguments[:i])
        result.append(argument.view_as(argument) if again else argument)
    return tuple(result)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast asks for on this device, or None outside autocast."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def without_autocast(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Keeps autocast out of a PyTorch implementation, which chooses its dtypes itself."""

    @functools.wraps(function)
    def wrapped(*arguments: _Parameters.args, **options: _Parameters.kwargs) -> _Result:
        enabled = [d for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)]
        if not enabled:
            return function(*arguments, **options)
        for device in enabled:
            torch.set_autocast_enabled(device, False)
        try:
            return function(*arguments, **options)
        finally:
            for device in enabled:
                torch.set_autocast_enabled(device, True)

    return wrapped


def draw_random_state(device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """A new (seed, offset), int64 [2], from the generator or the device's default one.

    Drawn in Python, since the stable ABI has no generator; activation checkpointing restores the
    default generator and so draws the same again.
    """
    return torch.randint(2**63 - 1, (2,), generator=generator, device=device, dtype=torch.int64)


def philox(random_state: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 at `position`, word for word that of csrc/device/philox.h.

    Args:
        random_state: (seed, offset), int64 [2].
        position: int64, any shape.

    Returns:
        Four words of 32 random bits, each int64 of position's shape.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    seed, offset = random_state[0], random_state[1]
    key0, key1 = seed & _LOW_WORD, (seed >> 32) & _LOW_WORD
    c0, c1 = position & _LOW_WORD, (position >> 32) & _LOW_WORD
    c2, c3 = (word.expand_as(c0) for word in (offset & _LOW_WORD, (offset >> 32) & _LOW_WORD))
    for _ in range(10):
        # Products of two 32-bit words wrap around in int64, which keeps all 64 bits.
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0 = ((product1 >> 32) & _LOW_WORD) ^ c1 ^ key0
        c2 = ((product0 >> 32) & _LOW_WORD) ^ c3 ^ key1
        c1, c3 = product1 & _LOW_WORD, product0 & _LOW_WORD
        key0, key1 = (key0 + 0x9E3779B9) & _LOW_WORD, (key1 + 0xBB67AE85) & _LOW_WORD
    return c0, c1, c2, c3


def to_uniform(word: Tensor) -> Tensor:
    """Uniform in [0, 1) from a word of 32 random bits: its upper 24, exact in float32."""
    return (word >> 8).to(torch.float32) * 2.0**-24


def row_dropout(
    random_state: Tensor, dropout_p: float, row: Tensor, width: int, row_width: int | None = None
) -> Tensor:
    """What dropout multiplies some rows with, 0 or 1 / (1 - p), as csrc/device/dropout.h has it.

    Element j of row i is dropped where the uniform of word j % 4 of Philox at position
    i * ceil(row_width / 4) + j // 4 is below p.

    Args:
        random_state: (seed, offset), int64 [2].
        dropout_p: share of the elements that is dropped.
        row: numbers of the rows wanted, int64 [...].
        width: elements wanted of a row, from the first on.
        row_width: elements of a row; None means all are wanted.

    Returns:
        float32 [..., width].
    """
    words_of_row = ((width if row_width is None else row_width) + 3) // 4
    word = torch.arange((width + 3) // 4, device=random_state.device)
    position = row[..., None] * words_of_row + word
    uniform = torch.stack([to_uniform(word) for word in philox(random_state, position)], -1)
    return (uniform.flatten(-2)[..., :width] >= dropout_p).float() / (1.0 - dropout_p)
