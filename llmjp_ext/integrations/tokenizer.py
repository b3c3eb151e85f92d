"""Transformers' view of a tokenizer: a fast tokenizer of the same ids."""

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

__all__ = ["PreTrainedTokenizerFast", "fast_tokenizer"]


def fast_tokenizer(document: str, settings: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """A Transformers fast tokenizer from the text of a tokenizer.json.

    Args:
        document: the file's content.
        settings: keyword arguments of Transformers' class, such as {"eos_token": "<EOD|LLM-jp>"}.
            Unless they name the model's inputs these are the two that a language model takes, ids
            and attention mask: token types would be added to its embeddings.
    """
    settings = {"model_input_names": ["input_ids", "attention_mask"], **settings}
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # Transformers does not annotate it
        tokenizer_object=Tokenizer.from_str(document),
        clean_up_tokenization_spaces=False,
        **settings,
    )
