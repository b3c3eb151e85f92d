"""Transformers' view of a tokenizer: a fast tokenizer of the same ids."""

from collections.abc import Mapping

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

__all__ = ["PreTrainedTokenizerFast", "fast_tokenizer"]


def fast_tokenizer(document: str, named_tokens: Mapping[str, str]) -> PreTrainedTokenizerFast:
    """A Transformers fast tokenizer from the text of a tokenizer.json.

    Args:
        document: the file's content.
        named_tokens: special tokens by role, such as {"eos_token": "<EOD|LLM-jp>"}.
    """
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # Transformers does not annotate it
        tokenizer_object=Tokenizer.from_str(document),
        clean_up_tokenization_spaces=False,
        **named_tokens,
    )
