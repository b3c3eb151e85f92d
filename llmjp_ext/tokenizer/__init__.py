"""Byte-fallback Unigram tokenizer, exact to Hugging Face `tokenizers` and much faster.

Reads a `tokenizer.json` of the LLM-jp kind, with the ids and text of `tokenizers` on every `str`,
or a SentencePiece `.model`, or what save_compiled() made of either. docs/tokenizer.md states the
rules, their reasons and the limits.
"""

from llmjp_ext.tokenizer.decode_stream import DecodeStream
from llmjp_ext.tokenizer.tokenizer import Tokenizer

__all__ = ["DecodeStream", "Tokenizer"]
