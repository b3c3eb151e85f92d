"""Types of the compiled part of llmjp_ext.tokenizer."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

_Ids: TypeAlias = Sequence[int] | npt.NDArray[np.integer] | torch.Tensor

def supported_isas() -> list[str]: ...
def default_isa() -> str: ...

class Tokenizer:
    def __init__(
        self,
        data: bytes,
        format: str,
        *,
        float32_sums: bool = False,
        units: bool = True,
        memo_bits: int = 15,
        isa: str = "",
        chunk: int = 65536,
    ) -> None: ...
    def encode(
        self, text: str, pair: str | None, add_special_tokens: bool, encode_special_tokens: bool
    ) -> list[int]: ...
    def encode_batch(
        self,
        texts: Iterable[str],
        add_special_tokens: bool,
        encode_special_tokens: bool,
        num_threads: int,
    ) -> list[list[int]]: ...
    def encode_ragged(
        self,
        texts: Iterable[str],
        add_special_tokens: bool,
        encode_special_tokens: bool,
        num_threads: int,
    ) -> tuple[npt.NDArray[np.uint16] | npt.NDArray[np.uint32], npt.NDArray[np.int64]]: ...
    def encode_with_spans(
        self,
        text: str,
        pair: str | None,
        add_special_tokens: bool,
        encode_special_tokens: bool,
        in_bytes: bool,
    ) -> tuple[list[int], list[tuple[int, int]]]: ...
    def encode_ragged_with_spans(
        self,
        texts: Iterable[str],
        add_special_tokens: bool,
        encode_special_tokens: bool,
        num_threads: int,
        in_bytes: bool,
    ) -> tuple[
        npt.NDArray[np.uint16] | npt.NDArray[np.uint32],
        npt.NDArray[np.int64],
        npt.NDArray[np.int64],
    ]: ...
    def decode(self, ids: _Ids, skip_special_tokens: bool) -> str: ...
    def decode_batch(
        self, sequences: Iterable[_Ids], skip_special_tokens: bool, num_threads: int
    ) -> list[str]: ...
    def decode_ragged(
        self, ids: _Ids, offsets: _Ids, skip_special_tokens: bool, num_threads: int
    ) -> list[str]: ...
    def token_to_id(self, token: str) -> int | None: ...
    def id_to_token(self, id: int) -> str | None: ...
    def get_vocab(self) -> dict[str, int]: ...
    def expected_counts(
        self, texts: Iterable[str], scores: npt.NDArray[np.float64] | None
    ) -> tuple[npt.NDArray[np.float64], float]: ...
    def compile(self, note: bytes) -> bytes: ...
    def score(self, id: int) -> float: ...
    @property
    def note(self) -> bytes: ...
    @property
    def isa(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def special_ids(self) -> list[int]: ...
    @property
    def float32_sums(self) -> bool: ...
    @property
    def unknown_id(self) -> int: ...
    @property
    def appended_ids(self) -> list[int]: ...

class DecodeStream:
    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None: ...
    def step(self, id: int) -> str: ...
    def finish(self) -> str: ...
