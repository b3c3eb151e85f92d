"""`llmjp tokenize` continues a run that was stopped at any moment, to the very same bytes."""

import gzip
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmjp.data import files, output, segments, workers
from llmjp.data.journal import Journal
from llmjp.data.tokenize import Interrupted, load_tokenizer, tokenize
from llmjp.errors import UserError
from llmjp_ext import Tokenizer
from tokenize_runs import counted, files_below, in_child, json_lines, run
from tokenizer_oracle import ROOT, japanese_lines, trained_directory

LINES = japanese_lines(12, 400)
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The tokenizer trained on the spot."""
    return load_tokenizer(trained_directory())


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files of several segments, some with bad records, one that is a single stream."""
    monkeypatch.setattr(segments, "SEGMENT", 9000)
    monkeypatch.setattr("llmjp.data.streams.BLOCK", 2000)
    monkeypatch.setattr(output, "_SYNCHRONISE_SECONDS", -1.0)  # after each segment
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a killed process needs no disk
    folder = tmp_path / "in"
    folder.mkdir()
    content = json_lines(LINES[:100]) + "wrong\n" + json_lines(LINES[100:250])
    (folder / "a.jsonl").write_text(content)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress((json_lines(LINES[250:]) + "5\n").encode()))
    (folder / "c.txt").write_text(LINES[0])
    (folder / "d.txt").write_text(LINES[1])
    return sorted(folder.iterdir())


def written(folder: Path, inputs: list[Path], tokenizer: Tokenizer, count: int = 1) -> None:
    """A run whose files are `folder`/o*."""
    tokenize(inputs, tokenizer, folder / "o", on_error="skip", workers=count)


@pytest.fixture
def whole(tmp_path: Path, inputs: list[Path], tokenizer: Tokenizer) -> dict[str, bytes]:
    """What a run writes that nothing stops."""
    written(tmp_path / "whole", inputs, tokenizer)
    found = files_below(tmp_path / "whole")
    assert set(found) == {"o.bin", "o.idx", "o.range.json", "o.skipped.jsonl"}
    return found


def test_a_kill_at_every_step_changes_nothing(
    tmp_path: Path,
    inputs: list[Path],
    tokenizer: Tokenizer,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGKILL before each change to a file, from the first to the last: the same command
    then ends with the bytes of a run that nothing stopped, and leaves nothing else behind."""
    monkeypatch.setattr(segments, "SEGMENT", 16_000)
    step = 0
    while True:
        step += 1
        folder = tmp_path / f"killed-{step}"

        def kill(count: int, at: int = step) -> None:
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

        with counted(monkeypatch, kill):
            code = in_child(lambda folder=folder: written(folder, inputs, tokenizer))
        if code == 0:
            break
        assert code == KILLED, f"step {step}"
        index = folder / "o.idx"
        if index.exists():
            assert index.read_bytes() == whole["o.idx"], f"step {step}"
            assert (folder / "o.bin").read_bytes() == whole["o.bin"], f"step {step}"
        if index.exists() and not (folder / "o.partial" / "journal").exists():
            with pytest.raises(UserError, match="exists already"):  # there was but litter left
                written(folder, inputs, tokenizer)
        else:
            written(folder, inputs, tokenizer)
        assert files_below(folder) == whole, f"step {step}"
        shutil.rmtree(folder)
    assert step > 40, "hardly anything was counted"


def test_kills_at_random_moments_with_several_workers(
    tmp_path: Path, inputs: list[Path], tokenizer: Tokenizer, whole: dict[str, bytes]
) -> None:
    """Killed again and again, with changing numbers of workers: the same bytes in the end."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    folder = tmp_path / "killed"
    context = multiprocessing.get_context("fork")
    kills = 0
    for _ in range(40):
        child = context.Process(
            target=written, args=(folder, inputs, tokenizer, rng.choice([1, 2, 3]))
        )
        child.start()
        child.join(rng.uniform(0.005, 0.06))
        child.kill()
        child.join()
        if child.exitcode == 0:
            break
        kills += 1
    if not (folder / "o.idx").exists():
        written(folder, inputs, tokenizer, 2)
    assert files_below(folder) == whole, f"seed {seed}, {kills} kills"


def stopped_half_way(
    folder: Path, inputs: list[Path], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An unfinished run with segments that were appended and others that wait; its folder."""
    appended = 0
    append = output.Output._append_in_order

    def once(self: output.Output) -> None:
        nonlocal appended
        appended += 1
        if appended < 4:
            append(self)
        elif len(self._waiting) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(output.Output, "_append_in_order", once)
        assert in_child(lambda: written(folder, inputs, tokenizer)) == KILLED
    return folder / "o.partial"


def test_what_is_done_is_not_done_again(
    tmp_path: Path, inputs: list[Path], tokenizer: Tokenizer, whole, monkeypatch
) -> None:
    """Only the segments that are missing are read and encoded, those waiting are taken as they
    are; the summary and the progress count all."""
    stopped_half_way(tmp_path / "o", inputs, tokenizer, monkeypatch)
    encode = Tokenizer.encode_ragged
    texts = 0

    def counting(self: Tokenizer, batch: list[str], **rest: object) -> object:
        nonlocal texts
        texts += len(batch)
        return encode(self, batch, **rest)

    monkeypatch.setattr(Tokenizer, "encode_ragged", counting)
    summary = tokenize(inputs, tokenizer, tmp_path / "o" / "o", on_error="skip", workers=1)
    assert files_below(tmp_path / "o") == whole
    assert summary.resumed and summary.documents == len(LINES) + 2
    assert summary.rejected == {"not JSON": 1, "no such key": 1}
    assert 0 < texts < summary.documents * 0.8
    assert 0 < summary.bytes_now < 0.8 * summary.bytes_read


def test_a_journal_cut_anywhere_is_continued(
    tmp_path: Path, inputs: list[Path], tokenizer: Tokenizer, whole, monkeypatch
) -> None:
    """A power failure may take the journal's end, or the content of a segment's file: what is not
    certain is done again."""
    partial = stopped_half_way(tmp_path / "stopped", inputs, tokenizer, monkeypatch)
    journal = (partial / "journal").read_bytes()
    rng = random.Random(3)
    lengths = [0, 1, len(journal) - 1, *(rng.randrange(len(journal)) for _ in range(12))]
    for length in lengths:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(tmp_path / "stopped", tmp_path / "copy")
        (tmp_path / "copy" / "o.partial" / "journal").write_bytes(journal[:length])
        written(tmp_path / "copy", inputs, tokenizer)
        assert files_below(tmp_path / "copy") == whole, f"cut to {length} of {len(journal)}"
    waiting = sorted(partial.glob("*.ids"))
    assert waiting
    for damage in (b"", bytes(waiting[-1].stat().st_size)):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(tmp_path / "stopped", tmp_path / "copy")
        (tmp_path / "copy" / "o.partial" / waiting[-1].name).write_bytes(damage)
        written(tmp_path / "copy", inputs, tokenizer)
        assert files_below(tmp_path / "copy") == whole
    (partial / "bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"bin has 0 bytes, but .* begin anew with --restart"):
        written(tmp_path / "stopped", inputs, tokenizer)


def test_changes_are_noticed(
    tmp_path: Path, inputs: list[Path], tokenizer: Tokenizer, whole, monkeypatch
) -> None:
    """Another input, tokenizer or option is refused by name and leaves what there is; --restart
    begins anew, and without a change the run goes on."""
    partial = stopped_half_way(tmp_path / "stopped", inputs, tokenizer, monkeypatch)
    before = files_below(partial)
    model = load_tokenizer(trained_directory() / "tokenizer.model")

    def refused(words: str, names=inputs, tokenizer=tokenizer, **options: object) -> None:
        with pytest.raises(UserError, match=words + ".*--restart"):
            tokenize(names, tokenizer, tmp_path / "stopped" / "o", **options)
        assert files_below(partial) == before

    refused("the inputs are not the same", inputs[:-1], on_error="skip")
    refused("the inputs are not the same", inputs[::-1], on_error="skip")
    refused("the tokenizer is not the same", tokenizer=model, on_error="skip")
    refused("the end token is not the same", append_end=False, on_error="skip")
    changed = inputs[-1]
    status = changed.stat()
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    refused("d.txt has changed since the run was begun", on_error="skip")
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match="has skipped 1 records; repeat it with --on-error skip"):
        tokenize(inputs, tokenizer, tmp_path / "stopped" / "o", on_error="fail")
    shutil.copytree(tmp_path / "stopped", tmp_path / "copy")
    written(tmp_path / "stopped", inputs, tokenizer)
    assert files_below(tmp_path / "stopped") == whole
    changed.write_text(LINES[2])
    tokenize(inputs, tokenizer, tmp_path / "copy" / "o", on_error="skip", restart=True)
    written(tmp_path / "new", inputs, tokenizer)
    assert files_below(tmp_path / "copy") == files_below(tmp_path / "new") != whole


def test_an_old_dataset_stays_until_the_new_one_is_whole(
    tmp_path: Path, inputs: list[Path], tokenizer: Tokenizer, whole, monkeypatch
) -> None:
    """--overwrite puts the new files in place at the end; stopped before, the old ones are there,
    and continuing asks for --overwrite again."""
    folder = tmp_path / "o"
    tokenize(inputs[-1:], tokenizer, folder / "o")
    old = files_below(folder)
    with monkeypatch.context() as patch:
        patch.setattr(output.Output, "finish", lambda self: os.kill(os.getpid(), signal.SIGKILL))
        again = lambda: tokenize(  # noqa: E731
            inputs, tokenizer, folder / "o", on_error="skip", overwrite=True, workers=1
        )
        assert in_child(again) == KILLED
    assert {name: old[name] for name in old} == {
        name: data for name, data in files_below(folder).items() if name in old
    }
    with pytest.raises(UserError, match="exists already; --overwrite"):
        written(folder, inputs, tokenizer)
    assert tokenize(
        inputs, tokenizer, folder / "o", on_error="skip", overwrite=True, workers=1
    ).resumed
    assert files_below(folder) == whole


def test_two_runs_exclude_each_other(
    tmp_path: Path, inputs: list[Path], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one writes, another of the same prefix is refused and changes nothing."""
    monkeypatch.setattr(files, "_LOCK_SECONDS", 0.1)
    first = output.Output(tmp_path / "o", 100, {}, [])
    before = files_below(tmp_path / "o.partial")
    for restart in (False, True):
        with pytest.raises(UserError, match=r"o\.partial is being written by another process"):
            tokenize(inputs, tokenizer, tmp_path / "o", restart=restart)
    assert files_below(tmp_path / "o.partial") == before
    assert not first.abandon()
    tokenize(inputs, tokenizer, tmp_path / "o", on_error="skip")


SCRIPT = """
import sys
from llmjp import cli
from llmjp.data import segments, streams, workers
segments.SEGMENT = 9000
streams.BLOCK = 2000
send = workers.Workers.segments
def slowly(self):
    import time
    for number, segment in enumerate(send(self)):
        yield segment
        if number == 2:
            print("begun", flush=True)
            time.sleep(60)
workers.Workers.segments = slowly
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("count", [1, 2])
def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, inputs: list[Path], tokenizer: Tokenizer, whole, count: int
) -> None:
    """SIGINT to the group of processes, as a terminal sends it: one line, exit code 130, no process
    is left, and the same command continues."""
    arguments = ("--tokenizer", trained_directory(), "--on-error", "skip", "--workers", count)
    arguments = (*arguments, "--out", tmp_path / "out" / "o")
    path = os.pathsep.join([str(ROOT), str(ROOT / "python")])
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "tokenize", *map(str, (*inputs, *arguments))],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert printed.count("\n") == 1 and "the same command continues with what" in printed
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"o.partial"}
    assert run(*inputs, "--on-error", "skip", "--out", tmp_path / "out" / "o") == 0
    assert files_below(tmp_path / "out") == whole


def test_a_signal_before_a_worker_has_its_handlers_is_not_answered_by_it(
    tmp_path: Path, inputs: list[Path], tokenizer: Tokenizer, whole, monkeypatch
) -> None:
    """SIGINT in the moment after a fork: it is the parent's to answer, and the worker goes on."""
    original = workers._work

    def interrupted(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        original(*arguments)

    monkeypatch.setattr(workers, "_work", interrupted)
    written(tmp_path / "o", inputs, tokenizer, 2)
    assert files_below(tmp_path / "o") == whole
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_worker_that_is_killed_is_told(
    tmp_path: Path, inputs: list[Path], tokenizer: Tokenizer, whole, monkeypatch
) -> None:
    """The kernel's way with too much memory: a sentence, and the same command goes on."""
    parent = os.getpid()
    original = workers.segments

    def killed(job: segments.Job, task: int, *rest: object):
        if task == 3 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(job, task, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(workers, "segments", killed)
        with pytest.raises(UserError, match=r"killed by signal 9 .*fewer --workers"):
            written(tmp_path / "o", inputs, tokenizer, 2)
    written(tmp_path / "o", inputs, tokenizer, 2)
    assert files_below(tmp_path / "o") == whole


def test_workers_end_when_their_parent_is_killed(
    tmp_path: Path, inputs: list[Path], tokenizer: Tokenizer, whole, monkeypatch
) -> None:
    """Orphans do not stay: the lock that they hold is free again before the next run gives up."""
    add = output.Output.add

    def kill(self: output.Output, segment: segments.Segment) -> None:
        add(self, segment)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(output.Output, "add", kill)
        assert in_child(lambda: written(tmp_path / "o", inputs, tokenizer, 3)) == KILLED
    began = time.monotonic()
    written(tmp_path / "o", inputs, tokenizer, 3)
    assert time.monotonic() - began < files._LOCK_SECONDS
    assert files_below(tmp_path / "o") == whole


def test_pipes_cannot_be_continued(tmp_path: Path, tokenizer: Tokenizer, monkeypatch) -> None:
    """A pipe is read once: it works, and what was begun with one asks for --restart."""
    monkeypatch.setattr(segments, "SEGMENT", 2000)
    monkeypatch.setattr("llmjp.data.streams.BLOCK", 500)
    path = tmp_path / "a.jsonl"
    os.mkfifo(path)

    def feed() -> None:
        path.write_text(json_lines(LINES))

    def attempt(**options: object) -> object:
        context = multiprocessing.get_context("fork")
        feeder = context.Process(target=feed)
        feeder.start()
        try:
            return tokenize([path], tokenizer, tmp_path / "o", workers=1, **options)
        finally:
            feeder.kill()
            feeder.join()

    append = Journal.append

    def interrupted(self: Journal, record: dict) -> None:
        append(self, record)
        if record.get("segment", {}).get("number") == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", interrupted)
        with pytest.raises(Interrupted, match="the same command continues"):
            attempt()
    with pytest.raises(UserError, match="is a pipe, which cannot be read again"):
        attempt()
    assert attempt(restart=True).documents == len(LINES)


def test_journal_lines_are_checked(tmp_path: Path) -> None:
    """Records before a damaged one are kept, it and what follows are cut off."""
    path = tmp_path / "journal"
    journal = Journal(path)
    for number in range(3):
        journal.append({"number": number, "name": "\udce3"})
    journal.close()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    journal = Journal(path)
    assert [record["number"] for record in journal.records] == [0]
    journal.append({"number": 9})
    journal.close()
    assert [record["number"] for record in Journal(path).records] == [0, 9]
    assert json.loads(path.read_bytes().splitlines()[1][9:]) == {"number": 9}
