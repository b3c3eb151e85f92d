"""Runs several `llmjp train` commands in one process, or in each of several that torchrun starts.

Starting Python, torch and DeepSpeed takes longer than training a tiny model. Takes a JSON file with
a list of jobs {"arguments": [...], "file_size_limit": bytes or null} and writes <file>.<rank>.out:
a list of {"code": exit code, "out": text, "err": text}.
"""

import contextlib
import io
import json
import resource
import sys
from pathlib import Path

from llmjp import cli
from llmjp.training.processes import end_process, start_processes, stop_processes


def main(jobs_file: Path) -> None:
    """Runs the jobs in order; one group of processes serves all."""
    processes = start_processes()
    results = []
    for job in json.loads(jobs_file.read_text()):
        out, err = io.StringIO(), io.StringIO()
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_size_limit"] or hard, hard))
            code = cli.main(["train", *job["arguments"]])
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        results.append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
    Path(f"{jobs_file}.{processes.rank}.out").write_text(json.dumps(results))
    stop_processes()
    end_process(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
