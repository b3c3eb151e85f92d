"""Continues text with a trained model: `llmjp generate`, and generate() for programs.

Prompts are encoded without the end-of-text token that the tokenizer's template appends: behind it
the model would begin a new document.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from llmjp.checkpoint.huggingface import load_model
from llmjp.data.tokenize import load_tokenizer
from llmjp.errors import UserError
from llmjp.model import GPT, KeyValueCache
from llmjp_ext import Tokenizer, sample

HELP = "Continues prompts with a trained model and prints the text as it comes."
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; meanings and order are those of Transformers' processors.

    Attributes:
        max_new_tokens: at most so many tokens are added to each prompt.
        temperature: logits are divided by it; 0 takes the most probable token.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the most probable tokens whose probabilities reach this sum.
        min_p: keep tokens with at least this share of the most probable one's probability.
        repetition_penalty: above 1 makes tokens that occurred less probable.
        seed: of the random numbers; None draws one.
    """

    max_new_tokens: int = 128
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop_ids: Sequence[int] = (),
    valid_vocab: int | None = None,
) -> Iterator[list[int | None]]:
    """Draws tokens for several prompts at once, one step at a time.

    Prompts of different lengths need no padding: each has its own row of the key/value cache.

    Args:
        model: on any device; its dropout is off meanwhile.
        prompts: ids of each prompt, at least one each.
        sampling: how tokens are drawn, and how many.
        stop_ids: ids that end a row; they are not yielded.
        valid_vocab: ids from here on are never drawn (rows that pad the embedding).

    Yields:
        For each step the new id of each prompt, None for those that have ended. Stops when all
        have, or when the longest row has filled the model's positions.

    Raises:
        ValueError: a prompt is empty, holds an id that the model lacks, or leaves no position free.
    """
    config = model.config
    for ids in prompts:
        if not ids:
            raise ValueError("a prompt needs at least one token")
        if len(ids) >= config.n_positions:
            raise ValueError(
                f"a prompt of {len(ids)} tokens leaves no room in {config.n_positions} positions"
            )
        if max(ids) >= config.vocab_size or min(ids) < 0:
            raise ValueError(
                f"a prompt holds the id {max(ids) if min(ids) >= 0 else min(ids)}, the model's "
                f"vocabulary has {config.vocab_size}"
            )
    longest = max(len(ids) for ids in prompts)
    steps = min(sampling.max_new_tokens, config.n_positions - longest)
    weight = model.transformer.wte.weight
    device = weight.device
    generator = torch.Generator(device)
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            cache = KeyValueCache.empty(
                config, len(prompts), longest + steps, dtype=weight.dtype, device=device
            )
            logits = torch.cat(
                [
                    model.next_logits(torch.tensor([ids], device=device), cache.rows(row, 1))
                    for row, ids in enumerate(prompts)
                ]
            )
            # Tokens so far, for the repetition penalty; -1 where a row has none yet.
            previous = torch.full((len(prompts), longest + steps), -1, device=device)
            for row, ids in enumerate(prompts):
                previous[row, : len(ids)] = torch.tensor(ids, device=device)
            running = [True] * len(prompts)
            for step in range(steps):
                drawn = sample(
                    logits,
                    temperature=sampling.temperature,
                    top_k=sampling.top_k,
                    top_p=sampling.top_p,
                    min_p=sampling.min_p,
                    repetition_penalty=sampling.repetition_penalty,
                    previous=previous if sampling.repetition_penalty != 1.0 else None,
                    valid_vocab=valid_vocab,
                    generator=generator,
                )
                new: list[int | None] = list(drawn.tolist())
                for row, id in enumerate(new):
                    running[row] = running[row] and id not in stop_ids
                    if not running[row]:
                        new[row] = None
                if not any(running):
                    return
                yield new
                if step + 1 < steps:
                    previous[:, longest + step] = drawn
                    logits = model.next_logits(drawn[:, None], cache)
    finally:
        model.train(was_training)


def stream_text(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: Sampling,
    on_text: Callable[[int, str], None],
) -> list[int]:
    """Continues prompts and hands out each piece of text as soon as its characters are complete.

    Args:
        model, tokenizer: that belong together.
        prompts: text; an empty one begins a new document.
        sampling: how tokens are drawn.
        on_text: called with a prompt's index and its next piece of text.

    Returns:
        How many tokens each prompt got.

    Raises:
        UserError: a prompt is too long for the model, or the tokenizer does not fit it.
    """
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model only "
            f"{model.config.vocab_size}: they do not belong together"
        )
    end_of_text = model.config.eos_token_id
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in prompts]
    encoded = [ids or [end_of_text] for ids in encoded]
    streams = [tokenizer.decode_stream() for _ in prompts]
    for stream, ids in zip(streams, encoded, strict=True):
        for id in ids:  # the text that is already there decides about spaces and split characters
            stream.step(id)
    counts = [0] * len(prompts)
    try:
        for new in generate(
            model,
            encoded,
            sampling,
            stop_ids=(end_of_text,),
            valid_vocab=tokenizer.vocab_size,
        ):
            for row, drawn in enumerate(new):
                if drawn is not None:
                    counts[row] += 1
                    text = streams[row].step(drawn)
                    if text:
                        on_text(row, text)
    except ValueError as error:
        raise UserError(str(error)) from None
    for row, stream in enumerate(streams):
        rest = stream.finish()
        if rest:
            on_text(row, rest)
    return counts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `llmjp generate`."""
    defaults = Sampling()
    parser.add_argument("prompt", nargs="*", help="texts to continue; none reads standard input")
    parser.add_argument("--model", required=True, metavar="DIR", help="Hugging Face directory")
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="tokenizer.json, .model or directory; default: --model"
    )
    parser.add_argument("--max-new-tokens", type=int, default=defaults.max_new_tokens)
    parser.add_argument(
        "--temperature", type=float, default=defaults.temperature, help="0 is greedy"
    )
    parser.add_argument("--top-k", type=int, default=defaults.top_k, help="0 keeps all")
    parser.add_argument("--top-p", type=float, default=defaults.top_p)
    parser.add_argument("--min-p", type=float, default=defaults.min_p)
    parser.add_argument("--repetition-penalty", type=float, default=defaults.repetition_penalty)
    parser.add_argument("--seed", type=int, help="repeats a run; default: a new one each time")
    parser.add_argument("--samples", type=int, default=1, help="continuations of each prompt")
    parser.add_argument("--device", help="cpu or cuda; default: cuda where there is one")
    parser.add_argument(
        "--dtype", choices=sorted(DTYPES), help="default: fp32 on the CPU, bf16 on CUDA"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs `llmjp generate`."""
    sampling = _sampling(arguments)
    if arguments.samples < 1:
        raise UserError(f"--samples must be at least 1, got {arguments.samples}")
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from None
    dtype = DTYPES[arguments.dtype or ("fp32" if device == "cpu" else "bf16")]
    if dtype == torch.float16 and device == "cpu":
        raise UserError("--dtype fp16 needs a GPU; use fp32 or bf16 on the CPU")
    tokenizer = load_tokenizer(arguments.tokenizer or arguments.model)
    model = load_model(arguments.model, dtype=dtype, device=device)
    prompts = arguments.prompt or [sys.stdin.read()]
    prompts = [prompt for prompt in prompts for _ in range(arguments.samples)]

    start = time.monotonic()
    pieces: list[list[str]] = [[prompt] for prompt in prompts]
    if len(prompts) == 1:
        print(prompts[0], end="", flush=True)
        counts = stream_text(
            model, tokenizer, prompts, sampling, lambda _, text: print(text, end="", flush=True)
        )
        print()
    else:
        counts = stream_text(
            model, tokenizer, prompts, sampling, lambda row, text: pieces[row].append(text)
        )
        for row, parts in enumerate(pieces):
            print(f"--- {row + 1} of {len(prompts)}")
            print("".join(parts))
    seconds = time.monotonic() - start
    print(
        f"llmjp: {sum(counts)} tokens in {seconds:.2f} s "
        f"({sum(counts) / seconds:.1f} tokens/s, {device}, {str(dtype).removeprefix('torch.')})",
        file=sys.stderr,
    )
    return 0


def _sampling(arguments: argparse.Namespace) -> Sampling:
    if arguments.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens must be at least 1, got {arguments.max_new_tokens}")
    if arguments.temperature < 0:
        raise UserError(f"--temperature must not be negative, got {arguments.temperature}")
    if arguments.top_k < 0:
        raise UserError(f"--top-k must not be negative, got {arguments.top_k}")
    for name in ("top_p", "min_p"):
        value = getattr(arguments, name)
        if not 0 <= value <= 1:
            raise UserError(f"--{name.replace('_', '-')} must be in [0, 1], got {value}")
    if arguments.repetition_penalty <= 0:
        raise UserError(f"--repetition-penalty must be above 0, got {arguments.repetition_penalty}")
    return Sampling(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        repetition_penalty=arguments.repetition_penalty,
        seed=arguments.seed,
    )
