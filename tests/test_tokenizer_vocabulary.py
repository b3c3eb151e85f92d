"""What a tokenizer tells about itself, where it is loaded from, and that the type stub is true."""

import ast
import inspect
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from llmjp_ext import Tokenizer, _tokenizer
from tokenizer_oracle import ROOT, load_both, model_file, trained_directory

NAME = "someone/some-model"


@pytest.fixture(scope="module")
def ours_data() -> bytes:
    """The bytes of the tokenizer.json trained on the spot."""
    return model_file("trained").read_bytes()


def test_the_vocabulary_is_the_oracles() -> None:
    """get_vocab(), len(), in, and both look-ups, with tokens added after training."""
    oracle = tokenizers.Tokenizer.from_file(str(model_file("trained")))
    oracle.add_tokens(["unheard of", tokenizers.AddedToken("raw one", normalized=False)])
    ours = Tokenizer(oracle.to_str().encode(), "json")
    assert ours.get_vocab() == oracle.get_vocab()
    assert len(ours) == ours.vocab_size == oracle.get_vocab_size()
    for token in ("unheard of", "raw one", "<EOD|LLM-jp>", "▁", "<0x41>", "no such token", ""):
        assert ours.token_to_id(token) == oracle.token_to_id(token), token
        assert (token in ours) == (oracle.token_to_id(token) is not None), token
    assert 7 not in ours and None not in ours and "\ud800" not in ours
    assert ours.id_to_token(len(ours)) is None and ours.id_to_token(-1) is None


@pytest.mark.parametrize("normalized", [False, True])
def test_hundreds_of_added_tokens_are_found_longest_first(normalized: bool) -> None:
    """Tokens that begin each other, share first characters or have many: the oracle's ids."""
    rng = random.Random(29)
    contents = {"".join(rng.choices("<ab>先😍", k=rng.randrange(1, 6))) for _ in range(400)}
    contents |= {f"<extra_{n}>" for n in range(300)} | {chr(0x4E00 + n) for n in range(300)}
    oracle = tokenizers.Tokenizer.from_file(str(model_file("trained")))
    oracle.add_tokens(
        [
            tokenizers.AddedToken(content, normalized=normalized, special=rng.random() < 0.5)
            for content in sorted(contents)
        ]
    )
    oracle = tokenizers.Tokenizer.from_str(oracle.to_str())
    ours = Tokenizer(oracle.to_str().encode(), "json")
    parts = [*"<ab>先😍 _0", "<extra_", *rng.sample(sorted(contents), 100)]
    for trial in range(300):
        text = "".join(rng.choices(parts, k=rng.randrange(12)))
        assert ours.encode(text) == oracle.encode(text).ids, (trial, text)


def test_repr_and_equality() -> None:
    """The source shows; equality is of what tokenizers do, and goes with hash()."""
    json = Tokenizer.from_file(model_file("trained"))
    model = Tokenizer.from_file(trained_directory() / "tokenizer.model")
    assert repr(json) == "Tokenizer(2000 ids, 8 of them special, from a tokenizer.json)"
    assert repr(model).endswith("from a SentencePiece model)")
    again = Tokenizer.from_pretrained(trained_directory())
    assert json == again and hash(json) == hash(again) and len({json, again}) == 1
    assert json != model and json != "a string"


def hub_cache(folder: Path, *files: str) -> Path:
    """A cache as the Hub's library keeps it, with files of the trained tokenizer."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = folder / ("models--" + NAME.replace("/", "--"))
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for file in files:
        (snapshot / file).write_bytes((trained_directory() / file).read_bytes())
    return folder


def test_models_of_the_hub_are_found_in_the_cache(tmp_path: Path) -> None:
    """Without network: what was downloaded before, with the names of its special tokens."""
    cache = hub_cache(tmp_path, "tokenizer.json", "tokenizer_config.json")
    hub = Tokenizer.from_pretrained(NAME, cache_dir=cache, local_files_only=True)
    local = Tokenizer.from_pretrained(trained_directory())
    assert hub == local
    assert hub.to_hf().special_tokens_map == local.to_hf().special_tokens_map


def test_a_hub_model_need_not_have_a_configuration(tmp_path: Path) -> None:
    """tokenizer.json alone is enough."""
    cache = hub_cache(tmp_path, "tokenizer.json")
    hub = Tokenizer.from_pretrained(NAME, cache_dir=cache, local_files_only=True)
    assert hub == load_both(model_file("trained"))[0]


def test_what_is_not_there_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An absent Hub model, an absent folder, and the Hub without its library."""
    with pytest.raises(OSError, match="no folder 'someone/some-model', and the Hugging") as caught:
        Tokenizer.from_pretrained(NAME, cache_dir=tmp_path, local_files_only=True)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(FileNotFoundError, match="absent"):
        Tokenizer.from_pretrained(tmp_path / "absent")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="install huggingface_hub"):
        Tokenizer.from_pretrained(NAME)


def test_wrong_arguments_are_told_without_being_quoted(ours_data: bytes) -> None:
    """Constructor and methods: one line with what is taken and the types given, whatever they
    hold, also where an argument is missing, misnamed or one too many."""
    native = _tokenizer.Tokenizer(ours_data, "json")
    text = "長い文章" * 100_000
    calls: list[Callable[[], object]] = [
        lambda: _tokenizer.Tokenizer(ours_data),  # type: ignore[call-arg]
        lambda: _tokenizer.Tokenizer(ours_data, "json", False),  # type: ignore[misc]
        lambda: _tokenizer.Tokenizer(data=ours_data, kind="json"),  # type: ignore[call-arg]
        lambda: Tokenizer(ours_data, "json", float32_sums="no"),  # type: ignore[arg-type]
        lambda: Tokenizer(text, "json"),  # type: ignore[arg-type]
        lambda: Tokenizer(ours_data, "json").encode(text, add_special_tokens="no"),  # type: ignore[arg-type]
        lambda: native.encode(text),  # type: ignore[call-arg]
        lambda: native.encode_batch([text], True, False, "two"),  # type: ignore[arg-type]
        lambda: native.decode([5] * 100_000),  # type: ignore[call-arg]
        lambda: native.compile(text),  # type: ignore[arg-type]
        lambda: native.token_to_id(ours_data),  # type: ignore[arg-type]
        lambda: _tokenizer.DecodeStream(ours_data, True),  # type: ignore[arg-type]
    ]
    for number, call in enumerate(calls):
        with pytest.raises(TypeError, match="got \\(") as caught:
            call()
        message = str(caught.value)
        assert len(message) < 600 and "\n" not in message, f"call {number}: {message:.600}"
    with pytest.raises(TypeError, match=r"got \(str, str\)"):
        _tokenizer.Tokenizer("a", "json")  # type: ignore[arg-type]


def test_look_ups_take_numpy_integers() -> None:
    """id_to_token() of an id that stands in an array; what is no integer is refused."""
    ours = load_both(model_file("trained"))[0]
    assert ours.id_to_token(np.uint16(7)) == "<EOD|LLM-jp>"  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        ours.id_to_token("7")  # type: ignore[arg-type]


def stub_parameters(function: ast.FunctionDef) -> list[tuple[str, bool]]:
    """Names of a stub function's parameters, and which may be left out."""
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    optional = [False] * (len(positional) - len(given.defaults)) + [True] * len(given.defaults)
    named = [default is not None for default in given.kw_defaults]
    together = [*zip(positional, optional, strict=True), *zip(given.kwonlyargs, named, strict=True)]
    return [(argument.arg, default) for argument, default in together]


def native_parameters(function: object) -> list[tuple[str, bool]]:
    """The same of a compiled function, from the signature in its documentation."""
    line = (inspect.getdoc(function) or "").splitlines()[0]
    tree = ast.parse(f"def {line.split(' -> ')[0]}: ...")
    parsed = tree.body[0]
    assert isinstance(parsed, ast.FunctionDef)
    return stub_parameters(parsed)


def public(namespace: object) -> set[str]:
    """Names that do not begin with an underscore, and the constructor."""
    return {name for name in vars(namespace) if not name.startswith("_")}


def test_the_stub_tells_the_truth() -> None:
    """_tokenizer.pyi has the names of the compiled module, and the parameters of each function."""
    tree = ast.parse((ROOT / "llmjp_ext" / "_tokenizer.pyi").read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert public(_tokenizer) == set(classes) | set(functions)
    for name, function in functions.items():
        assert stub_parameters(function) == native_parameters(getattr(_tokenizer, name)), name
    for class_name, node in classes.items():
        native = getattr(_tokenizer, class_name)
        members = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
        assert public(native) == set(members) - {"__init__"}, class_name
        for name, function in members.items():
            is_property = any(ast.unparse(mark) == "property" for mark in function.decorator_list)
            where = f"{class_name}.{name}"
            assert isinstance(inspect.getattr_static(native, name), property) == is_property, where
            if not is_property:
                assert stub_parameters(function) == native_parameters(getattr(native, name)), where
