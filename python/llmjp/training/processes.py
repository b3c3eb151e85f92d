"""The processes of a run: who this one is, how it meets the others, and failing together."""

import atexit
import datetime
import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from llmjp.errors import UserError
from llmjp.training import launchers

Result = TypeVar("Result")
_TIMEOUT = datetime.timedelta(minutes=30)


class SharedError(UserError):
    """An error that every process raises at the same place: the first process tells it."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        local_rank: its number on its machine.
        device: where its model lives.
    """

    rank: int
    world: int
    local_rank: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes common files."""
        return self.rank == 0

    def mean(self, value: Tensor) -> float:
        """The mean of a scalar over all processes."""
        value = value.detach().to(torch.float32)
        if self.world > 1:
            value = value.clone()
            torch.distributed.all_reduce(value)
        return float(value) / self.world

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.world == 1:
            return flag
        flags = torch.tensor(float(flag), device=self.device)
        torch.distributed.all_reduce(flags)
        return float(flags) > 0

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.world > 1:
            torch.distributed.barrier()

    def shared(self, value: Result) -> list[Result]:
        """The values that all processes give, by rank, in each of them."""
        values = [value] * self.world
        if self.world > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def together(self, action: Callable[[], Result]) -> Result:
        """Runs an action in every process; if any fails, all fail with the first one's message.

        Raises:
            SharedError: the action raised UserError or OSError somewhere.
        """
        result: Any = None
        message: str | None = None
        try:
            result = action()
        except (UserError, OSError) as error:
            message = str(error)
        for found in self.shared(message):
            if found is not None:
                raise SharedError(found)
        return result

    def first_alone(self, action: Callable[[], Result]) -> Result | None:
        """Runs an action in the first process while the others wait; as together() otherwise.

        Returns:
            The action's result in the first process, None in the others.
        """

        def act() -> Result | None:
            return action() if self.first else None

        return self.together(act)


def start_processes() -> Processes:
    """Joins the other processes that torchrun, DeepSpeed's launcher or srun started, if any did.

    Uses NCCL with one GPU a process where there is CUDA, else gloo on the CPU. Nothing is compiled.

    Raises:
        UserError: the launcher's variables are incomplete, or there are fewer GPUs than processes.
    """
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported
    rank, world, local_rank = _place()
    device = torch.device("cpu")
    if cuda:
        number = launchers.gpu(local_rank, torch.cuda.device_count(), os.environ)
        os.environ["LOCAL_RANK"] = str(number)  # DeepSpeed takes it for the GPU's number
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        backend = "nccl" if cuda else "gloo"
        if world == 1:
            # No port, no host name: nothing of the network can fail or collide.
            store = torch.distributed.HashStore()  # type: ignore[attr-defined]
            torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
            # DeepSpeed keeps hold of the first group that it sees: a second run in this process,
            # such as a notebook's, must find it.
            atexit.register(stop_processes)
        else:
            torch.distributed.init_process_group(backend, timeout=_TIMEOUT)
    _start_deepspeed(rank)
    return Processes(rank, world, local_rank, device)


def stop_processes() -> None:
    """Leaves the group and what DeepSpeed keeps of it."""
    if torch.distributed.is_initialized():
        import deepspeed

        deepspeed.comm.destroy_process_group()


def end_process(code: int) -> NoReturn:
    """Ends this process like sys.exit(), but without taking the interpreter apart.

    gloo's threads live on while anything still refers to their group, as DeepSpeed does after
    ZeRO-3. A thread in C++ that asks for the interpreter's lock while the interpreter ends is
    unwound, which C++ answers with std::terminate(): a good run would end in an abort.

    Args:
        code: the exit code.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def launched_rank() -> int:
    """This process's number as the launcher gave it, 0 without one."""
    text = os.environ.get("RANK", "")
    if not text and "SLURM_STEP_NUM_TASKS" in os.environ:
        text = os.environ.get("SLURM_PROCID", "")
    return int(text) if text.isdigit() else 0


def _place() -> tuple[int, int, int]:
    """Rank, world and local rank: the launcher's, or those of a process alone."""
    launchers.translate_slurm(os.environ)
    found = launchers.place(os.environ)
    if found is None:
        # DeepSpeed looks at these variables too.
        os.environ.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "0")
        return 0, 1, 0
    return found


def _start_deepspeed(rank: int) -> None:
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    # DeepSpeed calls collectives by names that newer versions of torch warn about, at each call.
    warnings.filterwarnings(
        "ignore", r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning
    )
    # On a CPU DeepSpeed would compile this op on the spot, with a command line that breaks at a
    # space in any path, for a collective that gloo has too.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), verbose=False)
