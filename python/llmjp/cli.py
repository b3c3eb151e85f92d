"""The command line: `llmjp COMMAND ...`, one module a command.

A command's module offers HELP (one line), add_arguments(parser) and run(arguments) -> exit code. It
is imported only when its command is asked for.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from llmjp.errors import UserError

COMMANDS = {
    "demo": ("llmjp.demo.command", "trains a small tokenizer and model, and generates text"),
    "tokenizer-train": ("llmjp.tokenizer_training", "trains a tokenizer on text files"),
    "tokenize": ("llmjp.data.tokenize_command", "turns text into token files for training"),
    "train": ("llmjp.train", "trains a model from token files"),
    "plot": ("llmjp.plot", "draws the loss curves of training runs"),
    "generate": ("llmjp.generate", "continues a prompt with a trained model"),
}
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser, with the arguments of one command; the others are only listed."""
    from llmjp_ext import __version__

    parser = argparse.ArgumentParser(
        prog="llmjp",
        description="Trainer and generator for the LLM-jp v1.0 models.",
        epilog="'llmjp COMMAND --help' explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"llmjp {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module_name, summary) in COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=summary,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        if name == command:
            module = importlib.import_module(module_name)
            subparser.description = module.HELP
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code (argparse itself exits with 2 on wrong usage)."""
    # OpenMP's threads, which torch starts, spin while they wait. Beside other work they then keep
    # the thread that they wait for from running, and small models train many times slower. It is
    # read when torch is imported, which has not happened yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    argv = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in argv if not word.startswith("-")), None)
    arguments = build_parser(command).parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt as interruption:
        words = f"interrupted: {interruption}" if str(interruption) else "interrupted"
        print(f"llmjp: {words}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; Python's own flush at exit would fail too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError, OSError) as error:
        print(f"llmjp: error: {error}", file=sys.stderr)
        return 1
    return code


def run_alone(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command as all that this process does, and ends the process."""
    code = main(argv)
    processes = sys.modules.get("llmjp.training.processes")
    if processes is not None:
        processes.end_process(code)
    sys.exit(code)


if __name__ == "__main__":
    run_alone()
