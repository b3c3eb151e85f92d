"""The command line itself: help, exit codes, one-line errors, interruption."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmjp import cli
from llmjp.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | int]:
    """Makes `llmjp demo` do what the list says: raise its exception, or return its number."""
    outcome: list[BaseException | int] = [0]

    def run(_: object) -> int:
        if isinstance(outcome[0], int):
            return outcome[0]
        raise outcome[0]

    module = SimpleNamespace(HELP="help", add_arguments=lambda parser: None, run=run)
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)
    return outcome


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`llmjp COMMAND --help` exits with 0 and names its flags."""
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: llmjp {name}" in out and out.count("--") > 3


def test_help_lists_the_commands_without_importing_them() -> None:
    """`llmjp --help` is quick: neither torch nor a command is loaded."""
    program = (
        "import sys\nfrom llmjp import cli\n"
        "try:\n    cli.main(['--help'])\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "assert 'torch' not in sys.modules and 'llmjp.train' not in sys.modules\n"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "python")])
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert all(name in result.stdout for name in cli.COMMANDS)


@pytest.mark.parametrize("argv", [[], ["trian"], ["--nothing"]], ids=str)
def test_wrong_usage_exits_with_two(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """argparse's own exit code and a usage line."""
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert "usage: llmjp" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("outcome", "code", "words"),
    [
        (0, 0, ""),
        (3, 3, ""),
        (UserError("vocab_size is wrong"), 1, "llmjp: error: vocab_size is wrong\n"),
        (
            OSError(28, "No space left on device", "x.bin"),
            1,
            "llmjp: error: [Errno 28] No space left on device: 'x.bin'\n",
        ),
        (KeyboardInterrupt(), 130, "llmjp: interrupted\n"),
    ],
    ids=["success", "code", "user error", "full disk", "ctrl-c"],
)
def test_outcomes_become_exit_codes(
    command: list[BaseException | int],
    capsys: pytest.CaptureFixture[str],
    outcome: BaseException | int,
    code: int,
    words: str,
) -> None:
    """What a command returns or raises becomes its exit code and at most one line."""
    command[0] = outcome
    assert cli.main(["demo"]) == code
    assert capsys.readouterr().err == words


@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_sleep_while_they_wait(given: str | None, used: str) -> None:
    """OpenMP is told not to spin, before torch is there to read it; the user's choice stands."""
    program = (
        "import os, sys\nfrom types import SimpleNamespace\nfrom llmjp import cli\n"
        "def run(_):\n"
        "    assert 'torch' not in sys.modules\n"
        "    print(os.environ['OMP_WAIT_POLICY'])\n    return 0\n"
        "module = SimpleNamespace(HELP='', add_arguments=lambda parser: None, run=run)\n"
        "cli.importlib.import_module = lambda name: module\n"
        "sys.exit(cli.main(['demo']))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "python")])
    if given is not None:
        environment["OMP_WAIT_POLICY"] = given
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == used


def test_defects_keep_their_traceback(command: list[BaseException | int]) -> None:
    """Other exceptions are ours, and are not dressed up as the user's mistakes."""
    command[0] = RuntimeError("a defect")
    with pytest.raises(RuntimeError, match="a defect"):
        cli.main(["demo"])


def test_reader_that_goes_away_is_no_traceback() -> None:
    """`llmjp ... | head -1`: exit without a word when nobody reads on."""
    program = (
        "import sys\nfrom types import SimpleNamespace\nfrom llmjp import cli\n"
        "def run(_):\n    for _ in range(100000):\n        print('line')\n    return 0\n"
        "module = SimpleNamespace(HELP='', add_arguments=lambda parser: None, run=run)\n"
        "cli.importlib.import_module = lambda name: module\n"
        "sys.exit(cli.main(['demo']))\n"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "python")])
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1
    process.stderr.close()
