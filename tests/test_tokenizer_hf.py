"""to_hf(): wherever Transformers wants a fast tokenizer, with the ids of ours."""

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

from llmjp_ext import Tokenizer
from tokenizer_oracle import (
    MODELS,
    fuzz_texts,
    japanese_lines,
    load_both,
    model_file,
    trained_directory,
)

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    """The tokenizer trained on the spot, with what its folder says."""
    return Tokenizer.from_pretrained(trained_directory())


@pytest.fixture(scope="module")
def fast(ours: Tokenizer) -> Any:
    """Its Transformers form."""
    return ours.to_hf()


@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded_by_transformers(name: str, tmp_path: Path) -> None:
    """save_pretrained and AutoTokenizer: the same ids, text, tokens, names; ours reads it."""
    ours = Tokenizer.from_pretrained(model_file(name).parent)
    fast = ours.to_hf()
    fast.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    read_back = Tokenizer.from_pretrained(tmp_path)
    assert read_back == ours
    assert again.special_tokens_map == fast.special_tokens_map
    assert len(again) == len(fast) == len(ours)
    assert again.get_vocab() == ours.get_vocab()
    for text in fuzz_texts(41, 150):
        ids = ours.encode(text)
        assert again(text)["input_ids"] == ids, text
        assert again.decode(ids, skip_special_tokens=True) == ours.decode(ids), text
        kept = again.decode(ids, skip_special_tokens=False)
        assert kept == ours.decode(ids, skip_special_tokens=False), text
    tokens = again.convert_ids_to_tokens(ids)
    assert again.convert_tokens_to_ids(tokens) == [ours.token_to_id(token) for token in tokens]


def test_batches_padding_truncation_and_tensors(ours: Tokenizer, fast: Any) -> None:
    """What models are fed with: rows of one length, a mask, and no token types."""
    texts = japanese_lines(42, 6)
    batch = fast(texts, padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    for text, row, mask in zip(texts, batch["input_ids"], batch["attention_mask"], strict=True):
        assert row[mask.bool()].tolist() == ours.encode(text)
        assert set(row[~mask.bool()].tolist()) <= {fast.pad_token_id}
    cut = fast(texts, truncation=True, max_length=5)["input_ids"]
    for text, ids in zip(texts, cut, strict=True):
        assert ids == [*ours.encode(text, add_special_tokens=False)[:4], fast.eos_token_id]
    bare = fast(texts[0], add_special_tokens=False)["input_ids"]
    assert bare == ours.encode(texts[0], add_special_tokens=False)
    pair = fast("a", "b")["input_ids"]
    assert pair == ours.encode("a", "b")


def test_saved_after_a_padded_call_says_how_to_mend_it(tmp_path: Path) -> None:
    """Transformers saves the padding and truncation of its last call; both are refused by name."""
    fast = Tokenizer.from_pretrained(trained_directory()).to_hf()
    for key, options in (("padding", {"padding": True}), ("truncation", {"truncation": True})):
        fast(["a", "先生は本を読む。"], max_length=5, **options)
        fast.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=rf"{key} is .*no_{key}\(\) before save_pretrained"):
            Tokenizer.from_pretrained(tmp_path)
        getattr(fast.backend_tokenizer, f"no_{key}")()
    fast.save_pretrained(tmp_path)
    assert Tokenizer.from_pretrained(tmp_path).encode("a") == fast("a")["input_ids"]


def test_offsets_are_our_spans(ours: Tokenizer, fast: Any) -> None:
    """return_offsets_mapping gives what encode_with_spans() gives."""
    for text in fuzz_texts(43, 100):
        mapping = fast(text, return_offsets_mapping=True)["offset_mapping"]
        assert [tuple(span) for span in mapping] == ours.encode_with_spans(text)[1], text


def test_data_collators_take_it(ours: Tokenizer, fast: Any) -> None:
    """The collators of language-model training pad with it, and mask the padding in the labels."""
    rows = [{"input_ids": ours.encode(text)} for text in japanese_lines(44, 4)]
    collator = transformers.DataCollatorForLanguageModeling(fast, mlm=False)
    batch = collator([dict(row) for row in rows])
    longest = max(len(row["input_ids"]) for row in rows)
    assert batch["input_ids"].shape == batch["labels"].shape == (4, longest)
    for row, labels in zip(rows, batch["labels"].tolist(), strict=True):
        assert [id for id in labels if id != -100] == row["input_ids"]
    padded = transformers.DataCollatorWithPadding(fast)([dict(row) for row in rows])
    assert padded["input_ids"].tolist() == batch["input_ids"].tolist()


def test_what_the_folder_says_is_handed_on(tmp_path: Path) -> None:
    """Chat template, length and sides; through a compiled file and a pickle as well."""
    folder = tmp_path / "model"
    shutil.copytree(trained_directory(), folder)
    config = folder / "tokenizer_config.json"
    entries = json.loads(config.read_text("utf-8"))
    entries |= {"model_max_length": 77, "padding_side": "left", "chat_template": "unused"}
    config.write_text(json.dumps(entries), "utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    ours = Tokenizer.from_pretrained(folder)
    ours.save_compiled(tmp_path / "compiled")
    compiled = Tokenizer.from_file(tmp_path / "compiled")
    for tokenizer in (ours, compiled, pickle.loads(pickle.dumps(ours))):
        fast: Any = tokenizer.to_hf()
        assert (fast.model_max_length, fast.padding_side) == (77, "left")
        text = fast.apply_chat_template([{"role": "user", "content": "本"}], tokenize=False)
        assert text == "user: 本\n"


def test_no_chat_template_is_made_up(fast: Any) -> None:
    """A folder without one gives a tokenizer without one."""
    assert fast.chat_template is None


def test_tokens_added_later_are_read_back(ours: Tokenizer, tmp_path: Path) -> None:
    """Tokens added in Transformers follow ours; saved there, they are known here."""
    fast: Any = ours.to_hf()
    assert fast.add_tokens(["新しい単語"]) == 1
    assert fast.add_special_tokens({"extra_special_tokens": ["<extra>"]}) == 1
    fast.save_pretrained(tmp_path)
    grown = Tokenizer.from_pretrained(tmp_path)
    assert len(grown) == len(fast) == len(ours) + 2
    for text in ("これは 新しい単語。", "a<extra>b", "新しい単語<extra> 新しい単語"):
        ids = grown.encode(text)
        assert ids == fast(text)["input_ids"]
        assert max(ids) >= len(ours)
        assert grown.decode(ids) == fast.decode(ids, skip_special_tokens=True)
        assert ours.encode(text) != ids


def test_names_of_absent_tokens_are_left_out() -> None:
    """They would be added to the vocabulary, and the ids would no longer be ours."""
    data = model_file("trained").read_bytes()
    settings = {"pad_token": "<no such token>", "bos_token": "<s|LLM-jp>"}
    fast: Any = Tokenizer(data, "json", settings=settings).to_hf()
    assert fast.pad_token is None and fast.bos_token == "<s|LLM-jp>"
    assert len(fast) == len(load_both(model_file("trained"))[0])


def test_reasons_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SentencePiece model, and a machine without Transformers, in one line each."""
    model = Tokenizer.from_file(trained_directory() / "tokenizer.model")
    with pytest.raises(NotImplementedError, match="convert_sentencepiece"):
        model.to_hf()
    monkeypatch.delitem(sys.modules, "llmjp_ext.integrations.tokenizer", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"to_hf\(\) needs the package transformers"):
        load_both(model_file("trained"))[0].to_hf()
