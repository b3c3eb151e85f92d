"""Tokenizers of several languages: the merged files, EM, and the expected counts it rests on."""

import itertools
import math
import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import sentencepiece
import tokenizers

from llmjp.cli import main
from llmjp.sentencepiece_file import BYTE, NORMAL, UNKNOWN, Piece, unigram_model
from llmjp.tokenizer_merging import Language, MergedSummary, train_merged_tokenizer
from llmjp.tokenizer_training import OUTPUT_FILES, SPECIAL_TOKENS
from llmjp_ext import Tokenizer
from tokenizer_oracle import fuzz_texts, japanese_lines, standard_library_texts

EPOCHS = 4
FIXED = 8 + 24 + 1 + 256


def write_corpus(folder: Path) -> list[Language]:
    """Japanese, English-like and code text, and what to learn from each."""
    stdlib = standard_library_texts(14)
    words = [line.strip() for text in stdlib for line in text.split("\n") if '"' not in line]
    texts = {
        "ja": japanese_lines(1, 1500),
        "en": [line for line in words if line.startswith("#")],
        "code": stdlib[0].split("\n") + stdlib[1].split("\n"),
    }
    for name, lines in texts.items():
        (folder / f"{name}.txt").write_text("\n".join(lines), "utf-8")
    return [
        Language("ja", 500, 8, [folder / "ja.txt"], spaced=False),
        Language("en", 600, 16, [folder / "en.txt"]),
        Language("code", 550, 16, [folder / "code.txt"]),
    ]


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MergedSummary]:
    """A merged tokenizer's folder, and what its training reported."""
    folder = tmp_path_factory.mktemp("merged")
    languages = write_corpus(folder)
    summary = train_merged_tokenizer(
        languages, folder / "out", em_epochs=EPOCHS, num_threads=1, hard_vocab_limit=False
    )
    return folder, summary


def test_both_files_give_the_same_ids_in_all_libraries(
    merged: tuple[Path, MergedSummary],
) -> None:
    """.model in sentencepiece and ours, tokenizer.json in tokenizers and ours, on mixed text.

    Where no literal of a special token or a byte, and no run whose exact ties the libraries round
    differently, stands in the text.
    """
    output = merged[0] / "out"
    assert sorted(path.name for path in output.iterdir()) == sorted(OUTPUT_FILES)
    model = Tokenizer.from_file(output / "tokenizer.model")
    exact = Tokenizer.from_file(output / "tokenizer.model", float32_sums=True)
    converted = Tokenizer.from_pretrained(output)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(output / "tokenizer.model"))
    oracle = tokenizers.Tokenizer.from_file(str(output / "tokenizer.json"))
    assert model.vocab_size == processor.vocab_size() == oracle.get_vocab_size()
    assert merged[1].pieces == model.vocab_size
    for text in fuzz_texts(41, 400):
        assert converted.encode(text) == oracle.encode(text).ids, repr(text)
        assert exact.encode(text) == processor.encode(text), repr(text)
    japanese = [line.rstrip("ーあ笑w!草…=-") for line in japanese_lines(2, 60)]
    code = [line for line in standard_library_texts(3)[2].split("\n") if "--" not in line]
    code = [line for line in code if "<" not in line and "==" not in line and ".." not in line]
    for first, second in zip(japanese, code, strict=False):
        text = f"{first}    {second}\n{first} {second.strip()} 😍\t{first}"
        ids = processor.encode(text)
        assert model.encode(text) == ids, repr(text)
        assert converted.encode(text, add_special_tokens=False) == ids, repr(text)
        assert oracle.encode(text, add_special_tokens=False).ids == ids, repr(text)
        assert converted.decode(ids) == text


def test_ids_are_laid_out_as_in_the_recipe(merged: tuple[Path, MergedSummary]) -> None:
    """Special tokens, runs of 24 to 1 spaces, newline, bytes with their scores, then each learned
    piece once: none of Japanese begins with a space, nor any of symbols."""
    processor = sentencepiece.SentencePieceProcessor(
        model_file=str(merged[0] / "out" / "tokenizer.model")
    )
    pieces = [processor.id_to_piece(id) for id in range(processor.vocab_size())]
    scores = [processor.get_score(id) for id in range(len(pieces))]
    assert pieces[:8] == list(SPECIAL_TOKENS)
    assert processor.is_unknown(0) and all(processor.is_control(id) for id in range(1, 8))
    assert pieces[8:32] == ["▁" * count for count in range(24, 0, -1)]
    assert pieces[32] == "\n"
    assert pieces[33:FIXED] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert all(processor.is_byte(id) for id in range(33, FIXED))
    assert scores[:8] == [0.0] * 8 and scores[32:FIXED] == [0.0] * 257
    assert scores[8:32] == [-1.0] * 24
    learned = pieces[FIXED:]
    assert len(set(pieces)) == len(pieces)
    assert all(-100 < score < 0 for score in scores[FIXED:])
    marked = [piece for piece in learned if piece.startswith("▁")]
    assert [piece for piece in marked if piece[1:].isascii() and piece[1:].isalpha()]
    assert all(piece.isascii() for piece in (each.lstrip("▁") for each in marked))
    assert not [piece for piece in marked if not any(map(str.isalnum, piece))]
    japanese = [piece for piece in learned if not piece.replace("▁", "").isascii()]
    assert len(japanese) > 50 and all("▁" not in piece for piece in japanese)


def test_each_epoch_makes_the_text_more_likely(merged: tuple[Path, MergedSummary]) -> None:
    """What EM is made for, and cannot fail to do whatever it starts from."""
    likelihoods = merged[1].log_likelihoods
    assert len(likelihoods) == EPOCHS
    for before, after in itertools.pairwise(likelihoods):
        assert after > before, likelihoods


def test_learned_scores_are_the_text_s_expected_counts(tmp_path: Path) -> None:
    """After one epoch exp(score) is proportional to the counts under the scores before it."""
    languages = write_corpus(tmp_path)[:1]
    for epochs, name in ((0, "before"), (1, "after")):
        train_merged_tokenizer(languages, tmp_path / name, em_epochs=epochs, num_threads=1)
    before, after = (
        sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / name / "tokenizer.model"))
        for name in ("before", "after")
    )
    size = before.vocab_size()
    scores = np.array([before.get_score(id) for id in range(size)])
    tokenizer = Tokenizer.from_file(tmp_path / "before" / "tokenizer.model")
    # EM itself has learned scores for spaces; the file has -1. They make no difference to texts
    # whose only space is the one before them, which no learned piece here holds.
    lines = (tmp_path / "ja.txt").read_text("utf-8").split("\n")
    assert not any(" " in line for line in lines)
    counts, _ = tokenizer.expected_counts([line for line in lines if line], scores)
    found = [id for id in range(FIXED, size) if counts[id] > 1.0]
    assert len(found) > 50
    fitted = np.array([after.get_score(id) for id in found])
    expected = np.log(counts[found])
    # The file keeps scores in single precision: half a unit in the last place of 16, both times.
    np.testing.assert_allclose(fitted - fitted[0], expected - expected[0], rtol=0, atol=1e-4)


def enumerate_counts(
    text: str, scores: dict[str, float], unknown_score: float
) -> tuple[dict[str, float], float]:
    """Expected counts and the logarithm of the sum, from every way to cut `text` (normalised)."""
    weights: list[tuple[float, list[str]]] = []
    for cuts in itertools.product((False, True), repeat=len(text) - 1):
        ends = [index for index, cut in enumerate(cuts, start=1) if cut]
        parts = [text[a:b] for a, b in itertools.pairwise([0, *ends, len(text)])]
        if all(part in scores or len(part) == 1 for part in parts):
            weights.append((sum(scores.get(part, unknown_score) for part in parts), parts))
    total = math.fsum(math.exp(weight) for weight, _ in weights)
    counts: dict[str, float] = {}
    for weight, parts in weights:
        for part in parts:
            name = part if part in scores else "<unk>"
            counts[name] = counts.get(name, 0.0) + math.exp(weight) / total
    return counts, math.log(total)


def small_tokenizer(scores: dict[str, float]) -> Tokenizer:
    """A tokenizer of these pieces."""
    pieces = [Piece("<unk>", 0.0, UNKNOWN)]
    pieces += [Piece(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    pieces += [Piece(text, score, NORMAL) for text, score in scores.items()]
    return Tokenizer(unigram_model(pieces, {"<unk>": 0}), "sentencepiece")


@pytest.mark.parametrize("seed", range(20))
def test_expected_counts_are_those_of_all_ways_to_cut(seed: int) -> None:
    """Against an enumeration: unknown characters, newlines, spaces, the "▁" before the text."""
    rng = random.Random(seed)
    alphabet = "ab▁あ\n"
    scores = {"a": -1.5, "▁": -2.25}
    while len(scores) < 12:
        scores["".join(rng.choices(alphabet, k=rng.randint(1, 4)))] = -rng.randint(1, 40) / 8
    tokenizer = small_tokenizer(scores)
    unknown_score = min(scores.values()) - 10
    texts = ["".join(rng.choices("ab あ\n😍", k=rng.randint(0, 9))) for _ in range(8)]
    expected: npt.NDArray[np.float64] = np.zeros(tokenizer.vocab_size)
    total = 0.0
    for text in filter(None, texts):
        counts, likelihood = enumerate_counts("▁" + text.replace(" ", "▁"), scores, unknown_score)
        total += likelihood
        for piece, count in counts.items():
            id = tokenizer.token_to_id(piece)
            assert id is not None
            expected[id] += count
    actual, log_likelihood = tokenizer.expected_counts(texts)
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-13, err_msg=f"seed {seed}")
    assert log_likelihood == pytest.approx(total, rel=1e-12), f"seed {seed}"


def test_expected_counts_of_a_long_line_stay_finite() -> None:
    """Its probability is far below the smallest double: counts still add up to its characters."""
    tokenizer = small_tokenizer({"a": -3.0, "aa": -4.0, "▁": -1.0})
    counts, log_likelihood = tokenizer.expected_counts(["a" * 20_000])
    ids = [tokenizer.token_to_id(piece) or 0 for piece in ("a", "aa")]
    assert counts[ids[0]] + 2 * counts[ids[1]] == pytest.approx(20_000, rel=1e-9)
    assert math.isfinite(log_likelihood) and log_likelihood < -10_000


def test_expected_counts_refuse_what_they_cannot_use() -> None:
    """One str, half a surrogate pair, scores of another shape or not finite."""
    tokenizer = small_tokenizer({"a": -3.0, "▁": -1.0})
    for texts in ("aa", ["a\ud800"], [1]):
        with pytest.raises(TypeError):
            tokenizer.expected_counts(texts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"array of 259 numbers.*\(3,\)"):
        tokenizer.expected_counts(["a"], np.zeros(3))
    with pytest.raises(ValueError, match="finite"):
        tokenizer.expected_counts(["a"], np.full(259, -np.inf))


def one_line_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The command's error, without its prefix."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("llmjp: error: ") and err.count("\n") == 1, err
    return err.removeprefix("llmjp: error: ").rstrip("\n")


def test_the_command_repeats_itself_byte_by_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs with samples of one seed write the same files; nothing else is left on disk."""
    write_corpus(tmp_path)
    (tmp_path / "more.txt").write_text("\n".join(japanese_lines(9, 300)), "utf-8")
    contents = []
    for name in ("first", "second"):
        languages = (
            *("--language", f"ja:420:8:{tmp_path}/ja.txt,{tmp_path}/more.txt"),
            *("--language", f"en:400:16:{tmp_path}/en.txt"),
        )
        arguments = ("--max-lines", "600", "--seed", "5", "--threads", "1", "--em-epochs", "1")
        output = tmp_path / name
        command = ["tokenizer-train", *languages, *arguments, "--output", str(output)]
        assert main([*command, "--allow-fewer"]) == 0
        report = capsys.readouterr()
        assert report.err == ""
        assert report.out.count("\n") == 1 and " from 3 files of " in report.out
        contents.append({path.name: path.read_bytes() for path in output.iterdir()})
    assert contents[0] == contents[1]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"ja.txt", "en.txt", "code.txt", "more.txt", "first", "second"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--language", "ja:400:8"], "NAME:PIECES:LONGEST:INPUT[,INPUT...] such as"),
        (["--language", "ja:many:8:t.txt"], "got ja:many:8:t.txt"),
        (["--language", ":400:8:t.txt"], "got :400:8:t.txt"),
        (["--language", "ja:400:8:t.txt,"], "got ja:400:8:t.txt,"),
        (["--language", "ja:400:0:t.txt"], "ja: the longest piece must be of 1 to 512"),
        (["--language", "ja:265:8:t.txt"], "ja: the vocabulary size must be more than 265"),
        (["--language", "ja:400:8:none.txt"], "ja: none.txt does not exist"),
        (["--language", "ja:90000:8:t.txt"], "ja: the text supports a vocabulary of"),
        (["--language", "ja:300:8:t.txt", "--language", "ja:300:8:t.txt"], "ja is given 2 times"),
        (["--language", "ja:300:8:t.txt", "--em-epochs", "-1"], "0 to 1000, got -1"),
        (["--language", "ja:300:8:t.txt", "--seed", "-1"], "4294967295, got -1"),
        (["--language", "ja:300:8:t.txt", "--vocab-size", "300"], "got both"),
        (["t.txt"], "needed are INPUT and --vocab-size, or --language"),
        ([], "needed are INPUT and --vocab-size, or --language"),
    ],
)
def test_errors_name_the_language_and_what_to_do(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line; nothing is left on disk."""
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("\n".join(japanese_lines(3, 100)), "utf-8")
    assert main(["tokenizer-train", "--output", "out", *arguments]) == 1
    assert words in one_line_error(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["t.txt"]
