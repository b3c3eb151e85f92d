"""The public tokenizer: a thin layer over the compiled module, which does the work."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from llmjp_ext import _tokenizer
from llmjp_ext.tokenizer.decode_stream import DecodeStream
from llmjp_ext.tokenizer.encoder import Encoder, thread_count
from llmjp_ext.tokenizer.hub import model_folder
from llmjp_ext.tokenizer.source import (
    NAMED_TOKENS,
    Source,
    is_compiled,
    read_settings,
    write_atomically,
)

if TYPE_CHECKING:
    import torch

    from llmjp_ext.integrations.tokenizer import PreTrainedTokenizerFast

Ids: TypeAlias = "Sequence[int] | npt.NDArray[np.integer] | torch.Tensor"


class Tokenizer(Encoder):
    """A tokenizer; immutable, and safe to use from several threads at once.

    Calls release the interpreter's lock while they encode or decode. Pickling carries the file's
    bytes, so that a copy needs no file. Two tokenizers are equal if they give the same ids and text
    for everything, whichever file they come from.
    """

    def __init__(
        self,
        data: bytes,
        format: str,
        *,
        settings: dict[str, Any] | None = None,
        float32_sums: bool = False,
    ) -> None:
        """From a file's bytes; use from_file() or from_pretrained() for files.

        Args:
            data: the bytes of a tokenizer.json ("json"), of a .model ("sentencepiece"), or of what
                save_compiled() wrote ("compiled").
            format: "json", "sentencepiece" or "compiled".
            settings: what to_hf() hands on to Transformers, such as {"eos_token": "</s>"}.
            float32_sums: as for from_file().

        Raises:
            ValueError: the file is damaged, or asks for something that is not supported.
        """
        if format not in ("json", "sentencepiece", "compiled"):
            raise ValueError(f"format must be json, sentencepiece or compiled, got {format!r}")
        self._native = _tokenizer.Tokenizer(data, format, float32_sums=float32_sums)
        self._settings: dict[str, Any] = dict(settings or {})
        self._compiled = format == "compiled"
        # None: in the note of the compiled file, to be unpacked when it is asked for.
        self._source = None if self._compiled else Source(data, format)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, float32_sums: bool = False) -> "Tokenizer":
        """Loads `tokenizer.json`, a SentencePiece `*.model`, or what save_compiled() wrote.

        A compiled file is known by its first bytes, whatever its name, and is mapped into memory:
        it may be replaced while it is in use, but must not be written over or cut short.

        Args:
            path: the file.
            float32_sums: for a SentencePiece model, round every sum of scores as the
                `sentencepiece` library (0.2.3) does, for its ids on every text; about half as
                fast. By default scores are added exactly, and ids are that library's wherever
                its rounding does not decide between two ways to cut the text. A compiled file
                keeps what it was compiled from.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is damaged, or asks for something that is not supported; or
                `float32_sums` was asked for with another file than a SentencePiece model.
        """
        path = Path(path)
        try:
            if not is_compiled(path):
                format = "sentencepiece" if path.suffix == ".model" else "json"
                return cls(path.read_bytes(), format, float32_sums=float32_sums)
            tokenizer = cls.__new__(cls)
            tokenizer._native = _tokenizer.Tokenizer(
                os.fsencode(path), "compiled file", float32_sums=float32_sums
            )
            tokenizer._settings = {}
            tokenizer._compiled = True
            tokenizer._source = None
            return tokenizer
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> "Tokenizer":
        """Loads `tokenizer.json` of a model, and for to_hf() what is said beside it.

        Args:
            name: a model folder, or "organisation/model" of the Hugging Face Hub where there is no
                folder of that name; that needs the package huggingface_hub.
            revision: of a Hub model: branch, tag or commit; None for its main branch.
            cache_dir: where its files are kept; None for the Hub library's own place.
            local_files_only: use no network, only files that were downloaded before.

        Raises:
            OSError: there is no tokenizer.json, or it cannot be read.
            ValueError: a file is damaged, or asks for something that is not supported.
            ImportError: a Hub model without huggingface_hub.
        """
        folder = model_folder(name, revision, cache_dir, local_files_only)
        file = folder / "tokenizer.json"
        models = [] if file.exists() else sorted(folder.glob("*.model"))
        if models:
            raise FileNotFoundError(
                f"{folder} has no tokenizer.json; its SentencePiece model, whose rules for special "
                f"tokens are others, is loaded by Tokenizer.from_file({str(models[0])!r})"
            )
        tokenizer = cls.from_file(file)
        tokenizer._settings.update(read_settings(folder))
        return tokenizer

    def save_compiled(self, path: str | os.PathLike[str]) -> None:
        """Writes the tokenizer as a file of ready tables, which from_file() loads in milliseconds.

        The usual suffix is `.llmjptok`. The file holds its source too, so that to_hf() and pickling
        work as ever. Processes that load it share its pages. It is for this build's format and byte
        order; keep the source. An existing file is replaced in one step.

        Raises:
            OSError: it cannot be written; nothing is left behind.
        """
        write_atomically(Path(path), self._native.compile(self._packed_source()))

    def _packed_source(self) -> bytes:
        source = self._original()
        return Source(source.data, source.format, self._all_settings()).pack()

    def _original(self) -> Source:
        if self._source is None:
            self._source = Source.unpack(self._native.note)
        return self._source

    def _all_settings(self) -> dict[str, Any]:
        return {**self._original().settings, **self._settings}

    def decode(self, ids: Ids, skip_special_tokens: bool = True) -> str:
        """Text of ids. Those that nothing has are dropped.

        Args:
            ids: a sequence of int, or an array or CPU tensor [n] of any integer type.
            skip_special_tokens: drop special tokens too.

        Raises:
            TypeError: `ids` holds something else than integers.
            ValueError: an id is negative.
        """
        return self._native.decode(ids, skip_special_tokens)

    def decode_batch(
        self,
        sequences: Iterable[Ids],
        skip_special_tokens: bool = True,
        num_threads: int | None = None,
    ) -> list[str]:
        """decode() of each sequence of ids, over `num_threads` threads (default: one per core).

        The result does not depend on the number of threads. The interpreter's lock is held while
        lists are read and each str is made, not while texts are put together.

        Args:
            sequences: an iterable of what decode() takes, or an array or CPU tensor
                [sequences, n] of an integer type, read where it lies.
            skip_special_tokens: as in decode().
            num_threads: as in encode_batch().

        Raises:
            As decode(); ValueError: `num_threads` is below 1.
        """
        return self._native.decode_batch(sequences, skip_special_tokens, thread_count(num_threads))

    def decode_ragged(
        self,
        ids: Ids,
        offsets: Ids,
        skip_special_tokens: bool = True,
        num_threads: int | None = None,
    ) -> list[str]:
        """decode_batch() of what encode_ragged() gives, without a Python object per id.

        Args:
            ids: [total], those of all sequences one after another; arrays and CPU tensors are read
                where they lie.
            offsets: [sequences + 1], rising: sequence i has ids[offsets[i]:offsets[i + 1]].
            skip_special_tokens: as in decode().
            num_threads: as in encode_batch().

        Raises:
            As decode(); ValueError: `offsets` is empty, falls or leads beyond the ids, or
                `num_threads` is below 1.
        """
        threads = thread_count(num_threads)
        return self._native.decode_ragged(ids, offsets, skip_special_tokens, threads)

    def decode_stream(self, skip_special_tokens: bool = True) -> DecodeStream:
        """A decoder for ids that come one by one, as in generation."""
        return DecodeStream(self._native, skip_special_tokens)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._native.vocab_size

    def token_to_id(self, token: str) -> int | None:
        """The id of a piece or added token, or None."""
        return self._native.token_to_id(token)

    def id_to_token(self, id: int) -> str | None:
        """The piece or added token of an id, or None."""
        return self._native.id_to_token(id)

    def get_vocab(self) -> dict[str, int]:
        """Ids by token: all pieces and added tokens."""
        return self._native.get_vocab()

    def expected_counts(
        self, texts: Iterable[str], scores: npt.NDArray[np.float64] | None = None
    ) -> tuple[npt.NDArray[np.float64], float]:
        """How often each piece is expected over all ways to cut the texts, not only the best one.

        This is the expectation step of training a Unigram model (Kudo 2018, "Subword
        Regularization"): a way to cut has a probability proportional to exp(the sum of its pieces'
        scores). Spaces and what goes before a text are as in encode(); literals of special tokens
        are text like any other. A character without a piece counts for the unknown id, at the
        model's price of one. Runs on one thread, with the interpreter's lock released.

        Args:
            texts: any str without lone surrogates.
            scores: float64 [vocab_size], by id, to be used instead of the model's own.

        Returns:
            The counts, float64 [vocab_size], summed over the texts; and the sum over the texts of
            the natural logarithm of exp(score of a cut) summed over all cuts, which is the texts'
            log-likelihood if exp(score) sums to 1 over the pieces.

        Raises:
            TypeError: `texts` is one str, or an item is not a str or has a lone surrogate.
            ValueError: `scores` is of another shape, or not finite.
        """
        return self._native.expected_counts(texts, scores)

    def to_hf(self) -> "PreTrainedTokenizerFast":
        """A Transformers fast tokenizer of the same ids, for code that wants one.

        It is Transformers' own, with its speed, padding, truncation and tensors, and can be saved
        and loaded there. A tokenizer from_pretrained() hands on the special tokens that its folder
        names, its chat template, model_max_length and sides of padding and truncation; names of
        tokens that the vocabulary lacks are left out, since Transformers would add them to it. The
        unknown token, and the end-of-text token where the template appends one, are named even
        without a tokenizer_config.json. Tokens that are added to it later are not known here:
        save_pretrained() it, and load that with from_pretrained().

        Raises:
            NotImplementedError: this tokenizer came from a SentencePiece model, whose rules for
                literals such as "<0x41>" Hugging Face's library cannot follow.
            ImportError: the package transformers is not installed.
        """
        source = self._original()
        if source.format != "json":
            raise NotImplementedError(
                "to_hf() needs a tokenizer.json, because Hugging Face's rules are others; "
                "convert the model first (llmjp.tokenizer_training.convert_sentencepiece)"
            )
        try:
            from llmjp_ext.integrations.tokenizer import fast_tokenizer
        except ImportError as error:
            raise ImportError(f"to_hf() needs the package transformers: {error}") from error

        settings: dict[str, Any] = {}
        roles = {"unk_token": [self._native.unknown_id], "eos_token": self._native.appended_ids}
        for role, ids in roles.items():
            token = self.id_to_token(ids[0]) if len(ids) == 1 else None
            # A name that leads back to its id: Transformers would add any other as a new token.
            if token is not None and self.token_to_id(token) == ids[0]:
                settings[role] = token
        for name, value in self._all_settings().items():
            if name not in NAMED_TOKENS or value in self:
                settings[name] = value
        return fast_tokenizer(source.data.decode("utf-8"), settings)

    def __len__(self) -> int:
        """Same as vocab_size."""
        return self.vocab_size

    def __contains__(self, token: object) -> bool:
        """Whether `token` is a piece or added token."""
        return isinstance(token, str) and self.token_to_id(token) is not None

    def __repr__(self) -> str:
        """Size, special tokens, and what the tokenizer was made from."""
        special = len(self._native.special_ids)
        made_from = {"json": "a tokenizer.json", "sentencepiece": "a SentencePiece model"}
        what = "a compiled file" if self._compiled else made_from[self._original().format]
        return f"Tokenizer({self.vocab_size} ids, {special} of them special, from {what})"

    def __eq__(self, other: object) -> bool:
        """Whether both give the same ids and text for everything."""
        if not isinstance(other, Tokenizer):
            return NotImplemented
        return self is other or self._native.compile(b"") == other._native.compile(b"")

    def __hash__(self) -> int:
        """Equal tokenizers have equal sizes and special ids."""
        return hash((self.vocab_size, *self._native.special_ids))

    def __reduce__(self) -> tuple[Callable[..., "Tokenizer"], tuple[Any, ...]]:
        """Pickles as the file's bytes, and the options that it was loaded with."""
        options: dict[str, Any] = {"settings": self._settings}
        if self._compiled:
            data, format = self._native.compile(self._native.note), "compiled"
        else:
            source = self._original()
            data, format = source.data, source.format
            options["float32_sums"] = self._native.float32_sums
        return _restore, (type(self), data, format, options)


def _restore(cls: type[Tokenizer], data: bytes, format: str, options: dict[str, Any]) -> Tokenizer:
    return cls(data, format, **options)
