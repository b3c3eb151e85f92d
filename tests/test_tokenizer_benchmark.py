"""The tokenizer's benchmark: whole without peers and test data, honest about wrong candidates."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import tokenizer as benchmark
from benchmarks.harness import runner
from benchmarks.harness.ceilings import Ceilings
from benchmarks.harness.measure import CpuClock, Sample, paired_ratio, stride_for, summarise
from benchmarks.harness.runner import Machine, run_case
from benchmarks.tokenizer_suite import peers, report, texts
from llmjp_ext import Tokenizer


class WarmClock(CpuClock):
    """The CPU's clock without the time that emptying the caches takes."""

    def __init__(self) -> None:
        self._buffer = np.zeros(1, dtype=np.uint8)


CPU = torch.device("cpu")
MACHINE = Machine(CPU, WarmClock(), Ceilings(10.0, 1.0), {"device": "cpu"})
KINDS = ("encode", "first", "threads", "memory", "prompts", "decode", "load")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> texts.Material:
    """What the benchmark uses where there is no test data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMJP_TEST_DATA", str(tmp_path_factory.mktemp("none")))
        return texts.material.__wrapped__()


@pytest.fixture(scope="module")
def rows(material: texts.Material, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """A --quick run where only `tokenizers` is installed, and little text."""
    output = tmp_path_factory.mktemp("results") / "results.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "material", lambda: material)
        patch.setattr(runner, "make_machine", lambda device, quick: QUICK_MACHINE)
        reasons = {"tokenizers": None}
        patch.setattr(peers, "missing", lambda m, p=None: reasons.get(m, f"{p or m} is missing"))
        failures = runner.run_benchmarks(["tokenizer"], CPU, quick=True, output=output)
    assert failures == 0, output.read_text()
    return [json.loads(line) for line in output.read_text().splitlines()]


FACTS = {"commit": "abc", "date": "2026-01-01", "cpu": "a cpu", "python": "3", "load_average": 0.1}
QUICK_MACHINE = Machine(
    CPU, WarmClock(), MACHINE.ceilings, FACTS | {"device": "cpu", "quick": True}
)


def test_quick_run_is_whole(rows: list[dict]) -> None:
    """Every kind of case is there with right results, pairs with the oracle, and absent peers."""
    assert {row["facts"]["kind"] for row in rows} == set(KINDS)
    assert len({tuple(row) for row in rows}) == 1, "rows differ in their keys"
    names = {row["case"] for row in rows if row["facts"]["kind"] == "encode"}
    assert {"Japanese documents", "Japanese, one string", "repeated characters"} <= names
    for row in rows:
        if row["candidate"] in ("sentencepiece", "splintr", "kitoken", "transformers"):
            assert row["status"] == "absent" and row["message"], row
            continue
        assert row["status"] == "ok" and row["differing"] == 0, row
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"], row
        assert row["us_per_item"] == pytest.approx(row["median_ms"] * 1e3 / row["items"])
        if row["input_bytes"]:
            assert row["ns_per_byte"] == pytest.approx(1e3 / row["mb_per_s"])
        own = row["candidate"].startswith("llmjp_ext")
        if own and row["facts"]["kind"] in ("encode", "first", "prompts", "decode"):
            ratio = row["ratios"]["tokenizers"]
            assert 0 < ratio["p20"] <= ratio["median"] <= ratio["p80"] and ratio["pairs"] == 5, row
    threads = {row["facts"]["threads"] for row in rows if row["facts"]["kind"] == "encode"}
    assert threads == {1, benchmark.cores()}


def test_report_has_the_figures_of_the_rows(rows: list[dict], tmp_path: Path) -> None:
    """The tables stand between the page's marks, the rest of the page stays as it was."""
    results, page = tmp_path / "results.jsonl", tmp_path / "page.md"
    results.write_text("".join(json.dumps(row | {"quick": False}) + "\n" for row in rows))
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    assert report.main([str(results), "--page", str(page)]) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n") and text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text and "Commit abc" in text
    for row in rows:
        if row["facts"]["kind"] == "encode" and row["status"] == "ok":
            line = next(line for line in text.splitlines() if line.startswith(f"| {row['case']} |"))
            assert report.number(row["mb_per_s"]) in line, (line, row)
    assert report.main([str(results), "--page", str(page)]) == 0 and page.read_text() == text


@pytest.mark.parametrize("change", [{"quick": True}, {"quick": False, "commit": "abc-dirty"}])
def test_page_quotes_no_rough_figures(
    change: dict, rows: list[dict], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows of a quick run, or of sources that no commit has, are printed and not written."""
    results, page = tmp_path / "results.jsonl", tmp_path / "page.md"
    results.write_text("".join(json.dumps(row | change) + "\n" for row in rows))
    page.write_text(f"{report.BEGIN}\n{report.END}\n")
    assert report.main([str(results), "--page", str(page)]) == 1
    assert "does not quote it" in capsys.readouterr().err
    assert page.read_text() == f"{report.BEGIN}\n{report.END}\n"
    assert report.main([str(results)]) == 0 and "encode_ragged" in capsys.readouterr().out


def test_results_without_facts_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows of another benchmark, and rows that do not say what they measure: one line, no table."""
    results = tmp_path / "results.jsonl"
    others = [{"benchmark": "layer_norm", "facts": {"kind": "encode"}}, {"benchmark": "tokenizer"}]
    results.write_text("".join(json.dumps(row) + "\n" for row in others))
    assert report.main([str(results)]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and "has no rows of the benchmark tokenizer" in printed.err


def test_plot_shows_every_kind_of_text(rows: list[dict], tmp_path: Path) -> None:
    """An SVG of modest size that names the texts and candidates, the same at every drawing."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    plots = [tmp_path / "first.svg", tmp_path / "second.svg"]
    for plot in plots:
        report.draw(rows, plot)
    results, page = tmp_path / "results.jsonl", tmp_path / "page.md"
    results.write_text("".join(json.dumps(row | {"quick": False}) + "\n" for row in rows))
    page.write_text(f"{report.BEGIN}\n{report.END}\n")
    assert report.main([str(results), "--page", str(page), "--plot", str(plots[0])]) == 0
    assert "](first.svg)" in page.read_text()
    text = plots[0].read_text()
    assert text == plots[1].read_text() and len(text) < 200_000
    for word in ("documents", "one string", "characters", "encode_ragged", "tokenizers", "abc"):
        assert word in text, word


def planted_case(material: texts.Material, run) -> tuple[benchmark.Case, benchmark.Reference]:
    """An encode case with this `batch` as its only peer."""
    lines = texts.lines_apart(material.japanese).each(lambda half: half[:20])
    reference = benchmark.Reference(material, lines)
    peer = peers.Peer(
        name="planted",
        module="torch",
        load=lambda model, threads: None,
        loads=".model",
        batch=run,
        one=lambda loaded, text: [],
        decode=None,
    )
    return benchmark.encode_case(reference, "planted", 1, (peer,)), reference


def test_wrong_peer_is_timed_and_reported(material: texts.Material) -> None:
    """Two texts of twenty with other ids: the row says so, and has a time; ours is not affected."""

    def nearly(loaded, chosen: list[str], threads: int) -> list[list[int]]:
        ids = [list(each) for each in reference.ids]
        ids[3][-1] += 1
        ids[7] = ids[7][:-1]
        return ids

    case, reference = planted_case(material, nearly)
    result = {row["candidate"]: row for row in run_case("tokenizer", case, MACHINE, quick=True)}
    peer = result["planted"]
    assert (peer["status"], peer["differing"]) == ("ok", 2) and peer["median_ms"] > 0
    assert peer["message"] == "2 of 20 results are wrong"
    ours = result["llmjp_ext encode_ragged"]
    assert (ours["status"], ours["differing"], ours["message"]) == ("ok", 0, None)
    assert ours["ratios"].keys() == {"planted"}


def test_own_wrong_ids_are_an_error(
    material: texts.Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single id of llmjp_ext that differs from the oracle's: no time, and a failure."""
    sound = Tokenizer.encode_ragged

    def wrong(self, chosen, **options):
        ids, offsets = sound(self, chosen, **options)
        ids = np.array(ids)
        ids[len(ids) // 2] ^= 1
        return ids, offsets

    monkeypatch.setattr(Tokenizer, "encode_ragged", wrong)
    case, _ = planted_case(material, lambda loaded, chosen, threads: [[] for _ in chosen])
    result = {row["candidate"]: row for row in run_case("tokenizer", case, MACHINE, quick=True)}
    ours = result["llmjp_ext encode_ragged"]
    assert (ours["status"], ours["median_ms"]) == ("error", None)
    assert ours["message"] == "AssertionError: 1 of 20 results are wrong"


def test_texts_are_the_same_at_every_run(material: texts.Material) -> None:
    """What is generated is seeded, encodes, and holds what it is named after."""
    pages = texts.web_documents(material.japanese, 0.05)
    assert pages == texts.web_documents(material.japanese, 0.05)
    for half in pages:
        assert all(word in "".join(half) for word in ("https://", "<p>", "</li>", "。"))
    ties = texts.tied_documents(material.japanese, 0.05)
    assert ties == texts.tied_documents(material.japanese, 0.05)
    assert any(each * 100 in text for text in ties.timed for each in texts.REPEATED)
    chosen = texts.prompts(material.japanese.timed, 30)
    assert len(set(chosen)) == 30 and {len(text) for text in chosen} == {20}


def test_halves_have_nothing_in_common(material: texts.Material) -> None:
    """No document, module or line that is timed has been encoded before; each is there once."""
    code = texts.code_documents()
    for halves in (
        material.japanese,
        code,
        texts.english_documents(),
        texts.lines_apart(material.japanese),
        texts.lines_apart(code),
    ):
        assert halves.before and halves.timed and not set(halves.before) & set(halves.timed)
        assert len(set(halves.timed)) == len(halves.timed)
    native = [set("\n".join(half).split("\n")) for half in material.japanese]
    assert not native[0] & native[1]


def test_states_before_a_repetition(material: texts.Material) -> None:
    """After other text that text alone was encoded, by the tokenizer that is timed, in warm caches;
    before a first call nothing was, and caches are emptied. Strings are new each time.
    """
    halves = texts.Halves(["seen before"], ["timed, and never seen"])
    reference = benchmark.Reference(material, halves)
    for first_call in (False, True):
        candidate = reference.candidate(list, lambda seen, each: seen.extend(each), first_call)
        (prepared,), (again,) = candidate.arguments(), candidate.arguments()
        assert prepared[0] == ([] if first_call else halves.before) and candidate.warm != first_call
        assert prepared[1] == halves.timed and prepared[1][0] is not again[1][0]
        candidate.run(prepared)
        assert prepared[0][-1:] == halves.timed and again[0] is not prepared[0]


def test_pairs_are_of_the_same_round() -> None:
    """A drift that doubles all times from round to round leaves the quotient alone."""
    slow = summarise({number: Sample(3.0 * 2**number, 0.0) for number in range(0, 8, 4)})
    fast = summarise({number: Sample(1.0 * 2**number, 0.0) for number in range(8)})
    ratio = paired_ratio(slow, fast)
    assert ratio is not None and (ratio.median, ratio.p20, ratio.p80) == (3.0, 3.0, 3.0)
    assert ratio.pairs == 2
    assert paired_ratio(summarise({1: Sample(1.0, 0.0)}), slow) is None


def test_stride_keeps_to_the_budget() -> None:
    """All rounds where they fit, else every second or fourth; never less often."""
    assert [stride_for(seconds, 20, 2.0) for seconds in (0.1, 0.2, 0.4, 9.0)] == [1, 2, 4, 4]
    assert stride_for(9.0, 20, None) == 1
