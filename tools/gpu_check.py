"""Stages of a check on a GPU machine: build, tests, compute-sanitizer, benchmarks, report.

Run it as tools/gpu_check.sh, which sets the paths. A stage is a process of its own with a time
limit, so that one that fails, hangs or spoils its CUDA context costs the others nothing. Stages
that only have to be correct run side by side; what is measured has the machine for itself.

OUTDIR gets results.jsonl (a row a measurement and a row a stage), gpu_check.log and summary.md. A
call has a budget of time; what it leaves is named at its end, and a next call with the same OUTDIR,
or with --resume and the results.jsonl of the last one, goes on from there: in a benchmark that was
stopped, with the first case that has not been measured.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, LOG, SUMMARY = "results.jsonl", "gpu_check.log", "summary.md"
GROUPS = ("build", "test", "sanitize", "bench")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Benchmarks whose work is the CPU's.
_CPU_BENCHMARKS = ("tokenizer",)
# What a test module that has tests for a GPU says of them: the marker, or the fixture's name.
_GPU_TEST = re.compile(r"mark\.gpu\b|\bdevice: str\b")
# Seconds that a stage may take, by its group or its name.
_LIMITS = {"build": 420, "test": 180, "sanitize": 300, "bench": 240, "bench:attention": 520}
_AT_ONCE = 4  # stages side by side
_LEAST = 20  # seconds under which no stage is started
_NO_TESTS = 5  # pytest's exit code where the marker selects none
_LAST_LINES = 12  # of a failed stage's output, on the screen


@dataclass(frozen=True)
class Stage:
    """One stage, "build" or "GROUP:WHAT"."""

    name: str

    @property
    def group(self) -> str:
        return self.name.partition(":")[0]

    @property
    def what(self) -> str:
        return self.name.partition(":")[2]

    @property
    def beside_others(self) -> bool:
        """Whether it may share the machine."""
        return self.group in ("test", "sanitize")

    @property
    def limit(self) -> float:
        """Seconds that it may take."""
        return _LIMITS.get(self.name, _LIMITS[self.group])

    def command(self, results: Path, again: bool, cases: Sequence[str] = ()) -> list[str]:
        """What the stage runs, in the project's folder.

        Args:
            results: the file that benchmarks add rows to.
            again: also what has been measured.
            cases: of benchmarks only cases whose title has one of these words; all if empty.
        """
        python = sys.executable
        if self.group == "build":
            return [python, str(Path(__file__).resolve()), "--build"]
        if self.group == "test":
            pytest = [
                python,
                "-m",
                "pytest",
                "-m",
                "gpu",
                "-q",
                "-rf",
                "--tb=short",
                "--maxfail=20",
            ]
            return [*pytest, f"tests/test_{self.what}.py"]
        if self.group == "sanitize":
            options = ("--tool", self.what, "--error-exitcode", "9")
            return ["compute-sanitizer", *options, python, "tools/sanitize.py"]
        options = ["--device", "cuda", "--output", str(results), *([] if again else ["--resume"])]
        some = ["--cases", *cases] if cases else []
        return [python, "benchmarks/run.py", self.what, *options, *some]


def test_modules(folder: Path) -> list[str]:
    """Names of the test modules that have tests for a GPU, without "test_"."""
    return [
        path.stem.removeprefix("test_")
        for path in sorted(folder.glob("test_*.py"))
        if _GPU_TEST.search(path.read_text(encoding="utf-8"))
    ]


def benchmarks(folder: Path) -> list[str]:
    """Names of the benchmarks of GPU work."""
    names = (path.stem for path in sorted(folder.glob("*.py")))
    return [name for name in names if name not in ("run", "__init__", *_CPU_BENCHMARKS)]


def members(group: str, root: Path = ROOT) -> list[str]:
    """What a group consists of when it is asked for as a whole."""
    if group == "build":
        return ["build"]
    if group == "sanitize":
        return [f"sanitize:{SANITIZERS[0]}"]
    found = test_modules(root / "tests") if group == "test" else benchmarks(root / "benchmarks")
    return [f"{group}:{name}" for name in found]


def chosen(words: Sequence[str], root: Path = ROOT) -> list[Stage]:
    """The stages that a command line names, in their order and each once.

    Raises:
        ValueError: there is no such stage.
    """
    known = {group: members(group, root) for group in GROUPS}
    singles = {name for names in known.values() for name in names}
    singles |= {f"sanitize:{tool}" for tool in SANITIZERS}
    stages: dict[str, None] = {}
    for word in words or GROUPS:
        if word not in known and word not in singles:
            raise ValueError(
                f"unknown stage {word!r}; supported are {', '.join(GROUPS)} and the parts of them "
                "that --list names"
            )
        stages |= dict.fromkeys(known.get(word, [word]))
    return [Stage(name) for name in stages]


def commit() -> str:
    """$LLMJP_COMMIT where the copy has no history, else what git says."""
    given = os.environ.get("LLMJP_COMMIT")
    if given:
        return given
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def rows_of(results: Path) -> Iterator[dict[str, Any]]:
    """Rows of a results file; a line that a killed process has left half-written is passed over."""
    if not results.exists():
        return
    for line in results.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def succeeded(results: Path, at_commit: str, cases: Sequence[str] = ()) -> set[str]:
    """Stages that this commit's rows call successful, with these cases or all."""
    return {
        row["stage"]
        for row in rows_of(results)
        if "stage" in row
        and row["commit"] == at_commit
        and row["exit_code"] == 0
        and row.get("cases", []) in ([], list(cases))
    }


@dataclass
class Check:
    """One call: where it writes, and until when it may run.

    Attributes:
        out: OUTDIR.
        commit: what the rows say.
        deadline: on time.monotonic(); nothing runs past it.
        again: whether cases that have been measured before are measured once more.
        cases: words of which a benchmark's cases must have one; all run if empty.
        failed, left: names of the stages that failed, and of those that there was no time for.
    """

    out: Path
    commit: str
    deadline: float
    again: bool = False
    cases: Sequence[str] = ()
    failed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, stages: Sequence[Stage]) -> None:
        """Builds first; then what may run side by side; then the rest, one after another."""
        for stage in stages:
            if stage.group == "build":
                self.run_stage(stage)
        if "build" in self.failed:
            self.left += [stage.name for stage in stages if stage.group != "build"]
            return
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(self.run_stage, [s for s in stages if s.beside_others]):
                pass
        for stage in stages:
            if stage.group == "bench":
                self.run_stage(stage)

    def run_stage(self, stage: Stage) -> None:
        """One stage, its row, and its part of the log."""
        seconds = min(stage.limit, self.deadline - time.monotonic())
        if seconds < _LEAST:
            with self._lock:
                self.left.append(stage.name)
            return
        began = time.monotonic()
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            command = stage.command(self.out / RESULTS, self.again, self.cases)
            code, timed_out = limited(command, seconds, output)
            output.seek(0)
            text = output.read()
        if stage.group == "test" and code == _NO_TESTS:
            code = 0
        row = {
            "stage": stage.name,
            "commit": self.commit,
            "exit_code": code,
            "timed_out": timed_out,
            "seconds": round(time.monotonic() - began, 1),
        }
        if stage.group == "bench" and self.cases:
            row["cases"] = list(self.cases)
        outcome = f"exit code {code} after {row['seconds']} s{', stopped' if timed_out else ''}"
        with self._lock:
            if code != 0:
                self.failed.append(stage.name)
            with (self.out / LOG).open("a", encoding="utf-8") as log:
                log.write(f"=== {stage.name}, commit {self.commit}: {outcome}\n{text}\n")
            with (self.out / RESULTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"=== {stage.name}: {outcome}", flush=True)
            if code != 0:
                last = [line[:300] for line in text.splitlines()[-_LAST_LINES:]]
                print("\n".join(last), flush=True)


def limited(command: Sequence[str], seconds: float, output: Any) -> tuple[int, bool]:
    """Runs a command for at most so many seconds, with all that it starts.

    Returns:
        Its exit code, 124 where it was stopped, 127 where it is not installed; and whether it was.
    """
    # Every allocation is torch's own call then, so that the sanitizer sees where each tensor ends.
    sanitized = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if "sanitizer" in command[0] else {}
    try:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **sanitized},
            start_new_session=True,
        )
    except FileNotFoundError:
        output.write(f"{command[0]} is not installed\n")
        return 127, False
    try:
        return process.wait(seconds), False
    except subprocess.TimeoutExpired:
        return 124, True
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(5)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def architecture() -> str:
    """What TORCH_CUDA_ARCH_LIST is to say for the GPU of this machine; "" without one."""
    import torch

    if not torch.cuda.is_available():
        return ""
    major, minor = torch.cuda.get_device_capability()
    return "9.0a" if (major, minor) == (9, 0) else f"{major}.{minor}"


def build() -> int:
    """Compiles for this machine's GPU alone; what has been compiled stays in build/."""
    # CMake directly: an installed setuptools may be too old for pyproject.toml, and nothing has to
    # be installed.
    tree = ROOT / "build" / f"{sys.implementation.cache_tag}-gpu"
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST") or architecture()
    options = {
        "LLMJP_PYTHON": shutil.which(sys.executable) or sys.executable,
        "LLMJP_CUDA": "ON",
        "LLMJP_TESTS": os.environ.get("LLMJP_TESTS", "OFF"),
        "TORCH_CUDA_ARCH_LIST": architectures,
    }
    jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
    print(f"architectures {architectures or '(default)'}, {jobs} jobs", flush=True)
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    for command in (
        ["cmake", "-S", ".", "-B", str(tree), "-G", "Ninja", *definitions],
        ["cmake", "--build", str(tree), "--parallel", jobs],
        ["cmake", "--install", str(tree), "--prefix", "llmjp_ext", "--component", "package"],
        [sys.executable, "-m", "llmjp_ext"],
    ):
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code != 0:
            return code
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; leaves the process with a one-line error where it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="tools/gpu_check.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", nargs="?", type=Path, metavar="OUTDIR")
    parser.add_argument(
        "stages", nargs="*", metavar="STAGE", help=f"{', '.join(GROUPS)} or parts; default: all"
    )
    parser.add_argument(
        "--seconds", type=float, default=560.0, help="time that this call has (%(default)s)"
    )
    parser.add_argument(
        "--resume", type=Path, metavar="RESULTS.jsonl", help="results of an earlier call to go on"
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        default=[],
        metavar="WORD",
        help="of benchmarks only cases whose title has one of these words, such as bfloat16",
    )
    parser.add_argument("--again", action="store_true", help="run what has succeeded before, too")
    parser.add_argument("--list", action="store_true", help="list the stages and stop; no GPU")
    parser.add_argument("--build", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.out is None and not arguments.build:
        parser.error("OUTDIR is missing")
    if arguments.resume is not None and not arguments.resume.is_file():
        parser.error(f"--resume: {arguments.resume} is no file")
    try:
        arguments.stages = chosen(arguments.stages)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stages; exit code 1 where one failed or was left."""
    began = time.monotonic()
    arguments = parse_arguments(argv)
    if arguments.build:
        return build()
    if arguments.list:
        print("\n".join(stage.name for stage in arguments.stages))
        return 0
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = out / RESULTS
    if arguments.resume is not None and not results.exists():
        shutil.copyfile(arguments.resume, results)
    check = Check(out, commit(), began + arguments.seconds, arguments.again, tuple(arguments.cases))
    done = set() if arguments.again else succeeded(results, check.commit, check.cases)
    # A build that is up to date is quick to find so, and a new machine has none.
    stages = [s for s in arguments.stages if s.group == "build" or s.name not in done]
    for stage in arguments.stages:
        if stage not in stages:
            print(f"=== {stage.name}: succeeded before")
    check.run(stages)

    from tools.gpu_report import report

    summary = report(list(rows_of(results)))
    (out / SUMMARY).write_text(summary, encoding="utf-8")
    print(f"\n{summary}")
    if check.failed:
        print(f"failed: {' '.join(check.failed)}")
    if check.left:
        print(f"left for another call: {' '.join(check.left)}")
    return 1 if check.failed or check.left else 0


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    sys.exit(main())
