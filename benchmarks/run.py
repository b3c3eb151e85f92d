"""Runs benchmarks: python3 benchmarks/run.py [NAME ...] [--output RESULTS.jsonl] [--quick].

Tables go to standard output, progress to standard error, and with --output every row is appended
to a file, one JSON object a line. Exit code 1 if any candidate failed. See benchmarks/README.md.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def benchmark_names() -> list[str]:
    """Stems of the benchmarks beside this file, sorted."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(file.stem for file in files if file.stem not in ("run", "__init__"))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; leaves the process with a one-line error where it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/run.py",
        description="Measures llmjp_ext against its peers on this machine.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run (default: all)")
    parser.add_argument(
        "--output", type=Path, metavar="RESULTS.jsonl", help="append a row a measurement"
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="RESULTS.jsonl is made anew, and takes the place of an old one when all has run",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="without the cases that RESULTS.jsonl has from this device and commit",
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        default=[],
        metavar="WORD",
        help="only cases whose title, as the tables have it, contains one of these words",
    )
    parser.add_argument(
        "--quick", action="store_true", help="few small cases and repetitions: not for quoting"
    )
    parser.add_argument("--list", action="store_true", help="list the benchmarks and stop")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU, else cpu"
    )
    arguments = parser.parse_args(argv)
    known = benchmark_names()
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"unknown benchmark {unknown[0]!r}; there are {', '.join(known)}")
    for option in ("replace", "resume"):
        if getattr(arguments, option) and arguments.output is None:
            parser.error(f"--{option} needs --output")
    if arguments.replace and arguments.resume:
        parser.error("--replace and --resume exclude each other")
    arguments.names = arguments.names or known
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Runs what the command line names; returns the exit code."""
    arguments = parse_arguments(argv)
    if arguments.list:
        print("\n".join(arguments.names))
        return 0

    import torch

    from benchmarks.harness.runner import run_benchmarks

    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/run.py: --device cuda, but no CUDA GPU was found", file=sys.stderr)
        return 2
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    output = arguments.output
    if arguments.replace:
        # Beside its place: a run that is stopped leaves the old results alone.
        output = output.with_name(f"{output.name}.partial")
        output.unlink(missing_ok=True)
    failures = run_benchmarks(
        arguments.names,
        device,
        quick=arguments.quick,
        output=output,
        words=arguments.cases,
        resume=arguments.resume,
    )
    if arguments.replace and output.exists():
        output.replace(arguments.output)
    return 1 if failures else 0


if __name__ == "__main__":
    # Python has put this folder first, where benchmarks would hide modules of the same name.
    sys.path[0] = str(ROOT)
    sys.exit(main())
