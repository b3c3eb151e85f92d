"""Tokenizer.encode and its batch forms: the ids of Hugging Face `tokenizers` on every str."""

import json
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from llmjp_ext import Tokenizer
from tokenizer_oracle import (
    FUZZ_ATOMS,
    MODELS,
    data_folder,
    fuzz_texts,
    japanese_lines,
    load_both,
    model_file,
    standard_library_texts,
    trained_directory,
)

Both = tuple[Tokenizer, tokenizers.Tokenizer]


@pytest.fixture(scope="module", params=MODELS)
def both(request: pytest.FixtureRequest) -> Both:
    """Each model in ours and in the oracle."""
    return load_both(model_file(request.param))


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    """The tokenizer trained on the spot."""
    return load_both(model_file("trained"))[0]


def assert_same_ids(both: Both, texts: list[str], hint: object) -> None:
    """Compares ids text by text and names the first text that differs."""
    ours, oracle = both
    expected = [encoding.ids for encoding in oracle.encode_batch(texts)]
    for text, want, got in zip(texts, expected, ours.encode_batch(texts), strict=True):
        assert got == want, f"{hint}: ids differ for {text!r}"


@pytest.mark.parametrize("seed", range(4))
def test_fuzz_texts_give_the_oracles_ids(both: Both, seed: int) -> None:
    """Literals, runs, any characters: same ids, in batches and one by one."""
    texts = fuzz_texts(seed, 2500)
    assert_same_ids(both, texts, f"seed {seed}")
    for text in texts[:200]:
        assert both[0].encode(text) == both[1].encode(text).ids, f"seed {seed}: {text!r}"


@pytest.mark.parametrize("character", ["ー", "あ", "a", "w", "=", "笑", "草", "▁", "-", "…"])
def test_exact_ties_follow_rounding_after_any_prefix(both: Both, character: str) -> None:
    """Runs of one character tie exactly; the oracle's choice depends on the sums before the run."""
    prefixes = ["", "\n", "東京", "a" * 7, "彼は本を読みました。" * 9, "x=1\n" * 50]
    texts = [p + character * n + t for p in prefixes for n in range(1, 90) for t in ("", "b")]
    assert_same_ids(both, texts, "ties")


def test_real_text_gives_the_oracles_ids(both: Both) -> None:
    """Japanese lines and documents and Python sources."""
    texts = japanese_lines(1, 2000) + standard_library_texts(40)
    assert_same_ids(both, ["\n".join(texts[i : i + 9]) for i in range(0, len(texts), 9)], "text")


@pytest.mark.parametrize("name", ["jcommonsenseqa-v1.1-train.txt", "jnli-v1.1-train.txt"])
def test_jglue_text_gives_the_oracles_ids(name: str) -> None:
    """Every fourth line of the real Japanese text, and the first 200 kB as one string."""
    text = (data_folder() / "text" / name).read_text(encoding="utf-8")
    both = load_both(model_file("llm-jp-v2.1"))
    assert_same_ids(both, [*text.split("\n")[::4], text[:70_000]], name)


def test_special_tokens_in_the_text_may_be_plain_text(both: Both) -> None:
    """encode_special_tokens=True: literals such as <EOD|LLM-jp> go through the search."""
    ours, oracle = both
    oracle.encode_special_tokens = True
    try:
        for text in fuzz_texts(11, 1500):
            got = ours.encode(text, encode_special_tokens=True)
            assert got == oracle.encode(text).ids, f"seed 11: {text!r}"
    finally:
        oracle.encode_special_tokens = False


def test_pairs_follow_the_template(both: Both) -> None:
    """encode(a, b) joins the texts as the post-processor's pair template says."""
    ours, oracle = both
    texts = fuzz_texts(12, 200)
    for first, second in zip(texts, reversed(texts), strict=True):
        for special in (True, False):
            expected = oracle.encode(first, second, add_special_tokens=special).ids
            assert ours.encode(first, second, add_special_tokens=special) == expected


def test_tokens_added_after_training_are_found(tmp_path: Path) -> None:
    """Added tokens, special or not, before or after normalisation, overlapping and beyond the
    vocabulary: leftmost-longest matches and ids as in the oracle."""
    oracle = tokenizers.Tokenizer.from_file(str(model_file("trained")))
    oracle.add_special_tokens(["<|user|>", "<|us", "§"])
    oracle.add_tokens(
        [
            tokenizers.AddedToken("本を読", normalized=False),
            tokenizers.AddedToken("hello world", normalized=True),
            tokenizers.AddedToken(" world", normalized=True),
        ]
    )
    path = tmp_path / "tokenizer.json"
    oracle.save(str(path))
    ours = Tokenizer.from_file(path)
    assert ours.vocab_size == oracle.get_vocab_size()
    atoms = [*FUZZ_ATOMS, "<|user|>", "<|us", "§", "本を読", "hello world", " hello", " world"]
    for seed in range(600):
        picks = np.random.default_rng(seed).integers(0, len(atoms), 12)
        text = "".join(atoms[i] for i in picks) + " hello world" * (seed % 2)
        ids = oracle.encode(text).ids
        assert ours.encode(text) == ids, f"seed {seed}: {text!r}"
        assert ours.decode(ids) == oracle.decode(ids), f"seed {seed}: {text!r}"
    for id in range(ours.vocab_size - 6, ours.vocab_size + 1):
        assert ours.id_to_token(id) == oracle.id_to_token(id)


def test_ragged_and_batch_forms_agree_over_threads(both: Both) -> None:
    """encode, encode_batch and encode_ragged are one function, with any number of threads."""
    ours, _ = both
    texts = [*fuzz_texts(13, 3000), *standard_library_texts(30), ""]
    expected = [ours.encode(text) for text in texts]
    for threads in (1, 2, 5):
        assert ours.encode_batch(texts, num_threads=threads) == expected
        ids, offsets = ours.encode_ragged(texts, num_threads=threads)
        assert offsets.dtype == np.int64
        assert ids.dtype == np.uint16
        assert np.array_equal(ids, np.concatenate([np.array(x, np.uint16) for x in expected]))
        assert np.array_equal(np.diff(offsets), [len(x) for x in expected])
    ids, offsets = ours.encode_ragged([], num_threads=2)
    assert ids.shape == (0,)
    assert offsets.tolist() == [0]
    assert ours.encode_batch(iter(["a"])) == [ours.encode("a")]


def test_threads_share_one_tokenizer(trained: Tokenizer) -> None:
    """Calls from several Python threads at once give what a single thread gives."""
    texts = fuzz_texts(14, 500)
    expected = [trained.encode(text) for text in texts]
    results: dict[int, list[list[int]]] = {}

    def work(index: int) -> None:
        results[index] = [trained.encode(text) for text in texts]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[i] for i in range(4)] == [expected] * 4


def test_long_strings(trained: Tokenizer) -> None:
    """10 MB of code text in one string, and 2 MB of one character: decoded text is the input."""
    oracle = load_both(model_file("trained"))[1]
    code = "".join(standard_library_texts(60))
    text = (code * (10_000_000 // len(code) + 1))[:10_000_000]
    assert trained.decode(trained.encode(text)) == text
    run = "あ" * 700_000
    assert trained.decode(trained.encode(run)) == run
    assert trained.encode(run[:60_000]) == oracle.encode(run[:60_000]).ids


def test_what_is_no_text_is_refused(trained: Tokenizer) -> None:
    """bytes, None, numbers and lone surrogates are TypeErrors, alone and within a batch."""
    for wrong in (b"abc", None, 1, ["a"], "a\ud800b", "あ\udfff", "😍\ud83d"):
        with pytest.raises(TypeError):
            trained.encode(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            trained.encode_batch(["a", wrong], num_threads=2)  # type: ignore[list-item]
        with pytest.raises(TypeError):
            trained.encode_ragged(["a", wrong], num_threads=2)  # type: ignore[list-item]
    with pytest.raises(TypeError, match="sequence of str"):
        trained.encode_batch("abc")
    with pytest.raises(TypeError, match=r"^text 1 must be str, got int$"):
        trained.encode_batch(["a", 1])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"^num_threads must be an int or None, got str$"):
        trained.encode_batch(["a"], num_threads="2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_threads"):
        trained.encode_batch(["a"], num_threads=0)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_lone_surrogate_is_named_and_placed(trained: Tokenizer, threads: int) -> None:
    """Which text it is in, which one it is and where: that is what mends a corpus."""
    what = r"has the lone surrogate U\+D83D at character 3, which cannot be encoded$"
    spoilt = "あ\n😍\ud83d\ud800"
    texts = ["先生は本を読む。" * 500] * 40 + [spoilt] + ["a" * 300_000 + spoilt]
    for name, call in (
        ("text", lambda: trained.encode(spoilt)),
        ("text", lambda: trained.encode(spoilt, pair="\ud800")),
        ("pair", lambda: trained.encode("a", pair=spoilt)),
        ("text", lambda: trained.encode_with_spans(spoilt)),
        ("text 40", lambda: trained.encode_batch(texts, num_threads=threads)),
        ("text 40", lambda: trained.encode_ragged(texts, num_threads=threads)),
        ("text 40", lambda: trained.encode_ragged_with_spans(texts, num_threads=threads)),
        ("text 40", lambda: list(trained.encode_iter(texts, num_threads=threads))),
        ("text 1", lambda: trained.expected_counts(["a", spoilt])),
    ):
        with pytest.raises(TypeError, match=f"^{name} {what}"):
            call()


def test_vocabulary_lookups(both: Both) -> None:
    """Sizes, token_to_id and id_to_token are the oracle's."""
    ours, oracle = both
    size = ours.vocab_size
    assert size == len(ours) == oracle.get_vocab_size()
    for id in [*range(0, size, 7), size - 1, size, size + 1000]:
        token = oracle.id_to_token(id)
        assert ours.id_to_token(id) == token
        if token is not None:
            assert ours.token_to_id(token) == id
    assert ours.token_to_id("no such piece") is None
    assert ours.token_to_id("a\ud800") is None
    assert ours.id_to_token(-1) is None
    with pytest.raises(TypeError):
        ours.token_to_id(b"a")  # type: ignore[arg-type]


def test_pickle_carries_the_file() -> None:
    """A copy gives the same ids and names, and needs no file."""
    ours = Tokenizer.from_pretrained(trained_directory())
    copy = pickle.loads(pickle.dumps(ours))
    texts = fuzz_texts(15, 200)
    assert copy.encode_batch(texts) == ours.encode_batch(texts)
    assert copy.to_hf().pad_token == ours.to_hf().pad_token == "<pad|LLM-jp>"


def test_to_hf_gives_a_transformers_tokenizer_of_the_same_ids(tmp_path: Path) -> None:
    """Same ids and text through Transformers, also after save_pretrained and back."""
    ours = Tokenizer.from_pretrained(trained_directory())
    fast = ours.to_hf()
    assert fast.eos_token == "<EOD|LLM-jp>"
    assert fast.eos_token_id == 7
    fast.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    for text in fuzz_texts(16, 200):
        ids = ours.encode(text)
        assert fast(text)["input_ids"] == ids == again.encode(text)
        assert fast.decode(ids, skip_special_tokens=True) == ours.decode(ids)
    bare = Tokenizer.from_file(trained_directory() / "tokenizer.json").to_hf()
    assert (bare.eos_token, bare.unk_token) == ("<EOD|LLM-jp>", "<unk|LLM-jp>")


def test_from_pretrained_names_a_damaged_config(tmp_path: Path) -> None:
    """A tokenizer_config.json that is no JSON object is a ValueError that names the file."""
    (tmp_path / "tokenizer.json").write_bytes(model_file("trained").read_bytes())
    config = tmp_path / "tokenizer_config.json"
    for content in ("{", json.dumps([1])):
        config.write_text(content)
        with pytest.raises(ValueError, match=r"tokenizer_config\.json"):
            Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError):
        Tokenizer.from_pretrained(tmp_path / "none")


def test_a_folder_with_a_sentencepiece_model_alone_says_how_to_load_it(tmp_path: Path) -> None:
    """from_pretrained() reads tokenizer.json; beside a .model alone its error names from_file()."""
    shutil.copy(trained_directory() / "tokenizer.model", tmp_path / "t.model")
    with pytest.raises(FileNotFoundError, match=r"no tokenizer.json.*from_file\('.*t\.model'\)"):
        Tokenizer.from_pretrained(tmp_path)
