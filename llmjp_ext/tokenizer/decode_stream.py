"""Decoding while ids are still being generated."""

from llmjp_ext import _tokenizer


class DecodeStream:
    """Turns ids into text as they come; characters appear as soon as their bytes are complete."""

    def __init__(self, tokenizer: _tokenizer.Tokenizer, skip_special_tokens: bool) -> None:
        self._stream = _tokenizer.DecodeStream(tokenizer, skip_special_tokens)

    def step(self, id: int) -> str:
        """Takes the next id; returns the text that it completes, often empty within a character.

        Raises:
            TypeError: `id` is not an integer.
            ValueError: it is negative.
        """
        return self._stream.step(id)

    def finish(self) -> str:
        """Ends the text: U+FFFD for each byte of an unfinished character. Then starts anew."""
        return self._stream.finish()
