"""generate(): Transformers' greedy text, rows of their own, stops, streaming, and the command."""

import dataclasses
import io
import itertools
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from llmjp import cli
from llmjp.checkpoint.huggingface import save_model
from llmjp.config import ModelConfig
from llmjp.errors import UserError
from llmjp.generate import Sampling, generate, stream_text
from llmjp.model import GPT
from llmjp_ext import Tokenizer
from tokenizer_oracle import trained_directory

GREEDY = Sampling(max_new_tokens=12, temperature=0.0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(trained_directory())


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> GPT:
    """A random model with a few dead rows, as LLM-jp's vocabulary has them."""
    torch.manual_seed(7)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size + 24, n_positions=64, n_embd=48, n_layer=2, n_head=3
    )
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)
    return model


@pytest.fixture
def directory(model: GPT, tmp_path: Path) -> Path:
    """The model and its tokenizer on disk."""
    save_model(tmp_path / "model", model.state_dict(), model.config, trained_directory())
    return tmp_path / "model"


def rows(model: GPT, prompts: list[list[int]], sampling: Sampling, **options) -> list[list[int]]:
    """The ids that each prompt gets."""
    steps = list(generate(model, prompts, sampling, **options))
    return [[step[i] for step in steps if step[i] is not None] for i in range(len(prompts))]


def test_greedy_text_is_that_of_transformers(model: GPT, tokenizer: Tokenizer) -> None:
    """Same ids as GPT2LMHeadModel.generate() of the same weights."""
    entries = {k: v for k, v in model.config.to_dict().items() if k != "architectures"}
    theirs = GPT2LMHeadModel(GPT2Config(**entries)).eval()
    theirs.load_state_dict(model.state_dict())
    ids = tokenizer.encode("東京の人は写真を", add_special_tokens=False)
    expected = theirs.generate(
        torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert rows(model, [ids], GREEDY) == [expected[0, len(ids) :].tolist()]


def test_rows_do_not_disturb_each_other(model: GPT) -> None:
    """Prompts of different lengths together give what each gives alone."""
    prompts = [[5, 9, 300], [44], list(range(100, 117))]
    alone = [rows(model, [prompt], GREEDY)[0] for prompt in prompts]
    assert rows(model, prompts, GREEDY) == alone


def test_seed_repeats_and_seeds_differ(model: GPT) -> None:
    """One seed gives one text; another seed another."""
    sampling = Sampling(max_new_tokens=20, temperature=1.0, top_p=1.0, seed=3)
    first, again = (rows(model, [[5, 9]], sampling) for _ in range(2))
    other = rows(model, [[5, 9]], dataclasses.replace(sampling, seed=4))
    assert first == again != other


def test_training_mode_comes_back(model: GPT) -> None:
    """Dropout is off while generating, and as before afterwards, also when cut short."""
    model.train()
    next(itertools.islice(generate(model, [[5]], GREEDY), 2, None))
    assert model.training
    assert rows(model, [[5]], GREEDY) == rows(model, [[5]], GREEDY)


def test_stop_ids_end_a_row_and_are_not_given(model: GPT) -> None:
    """A row ends before its stop id while the other goes on."""
    free = rows(model, [[5, 9], [44]], GREEDY)
    stop = free[0][4]
    first = free[0].index(stop)
    got = rows(model, [[5, 9], [44]], GREEDY, stop_ids=(stop,))
    assert got[0] == free[0][:first]
    assert got[1] == list(itertools.takewhile(lambda id: id != stop, free[1]))


def test_dead_rows_are_never_drawn(model: GPT, tokenizer: Tokenizer) -> None:
    """valid_vocab keeps ids that only pad the embedding out, however probable they are."""
    favoured = GPT(model.config)
    favoured.load_state_dict(model.state_dict())
    with torch.no_grad():
        favoured.transformer.ln_f.weight.zero_()
        favoured.transformer.ln_f.bias.fill_(1.0)
        favoured.transformer.wte.weight[tokenizer.vocab_size :] = 1.0
    assert rows(favoured, [[5]], GREEDY)[0][0] >= tokenizer.vocab_size
    drawn = rows(favoured, [[5]], GREEDY, valid_vocab=tokenizer.vocab_size)[0]
    assert max(drawn) < tokenizer.vocab_size


def test_stops_where_the_positions_end(model: GPT) -> None:
    """No more tokens than the model has positions for, without an error."""
    drawn = rows(model, [[5] * 60], Sampling(max_new_tokens=50, temperature=0.0))[0]
    assert len(drawn) == 4


def test_repetition_penalty_counts_prompt_and_text(model: GPT) -> None:
    """A huge penalty forbids what the prompt or the new text already holds."""
    sampling = Sampling(max_new_tokens=30, temperature=0.0, repetition_penalty=1e6)
    plain = rows(model, [[5, 9]], Sampling(max_new_tokens=30, temperature=0.0))[0]
    drawn = rows(model, [[5, 9]], sampling)[0]
    assert len(set(drawn)) == len(drawn) and not {5, 9} & set(drawn)
    assert len(set(plain)) < len(plain) or {5, 9} & set(plain)


def test_streamed_text_is_the_decoded_text(model: GPT, tokenizer: Tokenizer) -> None:
    """The pieces joined to the prompt are decode(prompt + new), and none is empty."""
    prompt = "図書館は🍣"
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    sampling = Sampling(max_new_tokens=40, temperature=1.0, seed=1)
    new = rows(model, [ids], sampling, stop_ids=(7,), valid_vocab=tokenizer.vocab_size)[0]
    pieces: list[str] = []
    counts = stream_text(model, tokenizer, [prompt], sampling, lambda _, text: pieces.append(text))
    assert counts == [len(new)]
    assert prompt + "".join(pieces) == tokenizer.decode(ids + new)
    assert all(pieces)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([[]], "at least one token"),
        ([[1] * 64], "64 tokens leaves no room in 64 positions"),
        ([[1, 10**6]], "id 1000000, the model's vocabulary has"),
        ([[-1]], "id -1"),
    ],
    ids=["empty", "long", "large id", "negative id"],
)
def test_prompts_that_do_not_fit_are_refused(model: GPT, prompts, words: str) -> None:
    """Each is an error that says what was wrong with the prompt."""
    with pytest.raises(ValueError, match=words):
        list(generate(model, prompts, GREEDY))


def test_a_foreign_tokenizer_is_refused(tokenizer: Tokenizer) -> None:
    """A tokenizer with more ids than the model has rows does not belong to it."""
    small = GPT(ModelConfig(vocab_size=50, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(UserError, match="do not belong together"):
        stream_text(small, tokenizer, ["a"], GREEDY, lambda *_: None)


def test_command_prints_the_prompt_and_its_continuation(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`llmjp generate`: text on standard output, the speed on standard error."""
    code = cli.main(
        ["generate", "--model", str(directory), "--max-new-tokens", "6", "--seed", "1", "先生は"]
    )
    captured = capsys.readouterr()
    assert code == 0 and captured.out.startswith("先生は") and len(captured.out) > len("先生は\n")
    assert "tokens/s, cpu, float32" in captured.err


def test_command_reads_standard_input_and_takes_samples(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a prompt it reads one; --samples numbers the continuations."""
    monkeypatch.setattr("sys.stdin", io.StringIO("猫は"))
    arguments = ["generate", "--model", str(directory), "--max-new-tokens", "4", "--dtype", "bf16"]
    assert cli.main([*arguments, "--samples", "2"]) == 0
    out = capsys.readouterr().out
    assert "--- 1 of 2\n猫は" in out and "--- 2 of 2\n猫は" in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--temperature", "-1"], "--temperature must not be negative"),
        (["--top-p", "1.5"], r"--top-p must be in [0, 1]"),
        (["--repetition-penalty", "0"], "--repetition-penalty must be above 0"),
        (["--max-new-tokens", "0"], "--max-new-tokens must be at least 1"),
        (["--samples", "0"], "--samples must be at least 1"),
        (["--dtype", "fp16"], "fp16 needs a GPU"),
        (["--device", "quantum"], "--device quantum"),
        (["--tokenizer", "nowhere"], "nowhere"),
        (["--model", "nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_command_tells_mistakes_in_one_line(
    directory: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    """Exit code 1 and one line on standard error that names the flag or file."""
    assert cli.main(["generate", "--model", str(directory), *flags, "text"]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("llmjp: error: ") and words in error and "\n" not in error
