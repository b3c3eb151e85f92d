"""Processes that do the tasks of a job.

They are forked: the tokenizer is shared and nothing has to be loaded again. A process does one
task after another and tells of each segment that it has finished; the ids stay in files.
"""

import multiprocessing
import multiprocessing.connection
import signal
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType

from llmjp.data.segments import Job, Segment, segments
from llmjp.errors import UserError

OpenTask = tuple[int, int, list[int | None] | None]

# Ctrl-C reaches the whole group; the parent answers it and ends the others.
_HANDLERS = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_DFL}


class Workers:
    """Does tasks in several processes, or in this one if one is asked for."""

    def __init__(self, job: Job, tasks: list[OpenTask], count: int) -> None:
        """Starts up to `count` processes; none where one would be idle but for the others."""
        self._job = job
        self._tasks = tasks
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        if count < 2 or len(tasks) < 2:
            return
        # A signal that comes before a new process has set its own handlers would meet this one's.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLERS)
        try:
            for _ in range(min(count, len(tasks))):
                self._start(job, blocked)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _start(self, job: Job, signals: set[int]) -> None:
        """Forks a process, which blocks `signals` as soon as it has handlers for the others."""
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        # A connection ends when no process holds its other side: the ends of older siblings,
        # which fork hands on, are closed by the child.
        foreign = [*self._connections, ours]
        process = context.Process(target=_work, args=(job, theirs, foreign, signals), daemon=True)
        process.start()
        theirs.close()
        self._processes.append(process)
        self._connections.append(ours)

    def segments(self) -> Iterator[Segment]:
        """Segments in the order in which they are finished: each task's own are in order.

        Raises:
            UserError, OSError: as llmjp.data.segments.segments(), or a process was killed.
        """
        if not self._processes:
            for open_task in self._tasks:
                yield from segments(self._job, *open_task)
            return
        left = iter(self._tasks)
        busy: list[Connection] = []
        for connection in self._connections:
            self._send(connection, next(left))
            busy.append(connection)
        while busy:
            ready = multiprocessing.connection.wait(busy)
            for connection in [each for each in busy if each in ready]:
                segment = self._receive(connection)
                if segment.failure is not None:
                    left = iter(())  # tasks are given out in order: none that stands before is left
                if segment.last or segment.failure is not None:
                    task = next(left, None)
                    if task is None:
                        busy.remove(connection)
                    else:
                        self._send(connection, task)
                yield segment

    def _send(self, connection: Connection, task: OpenTask) -> None:
        try:
            connection.send(task)
        except OSError:
            raise self._death(connection) from None

    def _receive(self, connection: Connection) -> Segment:
        try:
            answer = connection.recv()
        except (EOFError, OSError):
            raise self._death(connection) from None
        if isinstance(answer, Segment):
            return answer
        if isinstance(answer, Exception):
            raise answer
        raise RuntimeError(f"a worker process failed:\n{answer}")

    def _death(self, connection: Connection) -> UserError:
        process = self._processes[self._connections.index(connection)]
        process.join(1)
        code = process.exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        hint = " (not enough memory? fewer --workers take less)" if code == -signal.SIGKILL else ""
        return UserError(f"a worker process {how}{hint}")

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the processes, at once after an error."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            if kind is not None:
                process.terminate()
            process.join()


def _work(job: Job, connection: Connection, foreign: list[Connection], signals: set[int]) -> None:
    """What a process does, until the other side of its connection is gone."""
    for number, handler in _HANDLERS.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, signals)
    for other in foreign:
        other.close()
    try:
        while True:
            began = time.perf_counter()
            task, number, resume = connection.recv()
            waited = time.perf_counter() - began
            for segment in segments(job, task, number, resume):
                segment.seconds["waiting"] += waited
                waited = 0.0
                connection.send(segment)
    except (EOFError, ConnectionError):  # the parent has gone, with or without reading all
        return
    except (UserError, OSError) as error:
        connection.send(error)
    except Exception:
        connection.send(traceback.format_exc())
