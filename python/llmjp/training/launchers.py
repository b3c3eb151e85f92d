"""Who this process is: what torchrun, DeepSpeed's launcher and SLURM's srun say in variables."""

import re
from collections.abc import Mapping, MutableMapping

from llmjp.errors import UserError

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
# srun's, a task each. A batch script that was not started by srun has SLURM_PROCID too, but no
# SLURM_STEP_NUM_TASKS: there a plain command is one process.
_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
_FIRST_PORT, _PORTS = 20_000, 10_000


def translate_slurm(environment: MutableMapping[str, str]) -> None:
    """Sets the variables of torchrun from srun's, where srun started this and torchrun did not.

    The first machine of the step is where all meet; the port comes from the job's number, so that
    two jobs on one machine do not collide. MASTER_ADDR and MASTER_PORT that are set stay.

    Raises:
        UserError: srun's variables are incomplete.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "")
    if any(name in environment for name in _NAMES) or not tasks.isdigit() or int(tasks) < 2:
        return
    missing = [name for name in _SRUN if not environment.get(name, "").isdigit()]
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    if missing or not nodes:
        raise UserError(
            f"srun started this, but {', '.join(missing) or 'SLURM_STEP_NODELIST'} is not set: "
            "start with torchrun or deepspeed instead"
        )
    environment.update(zip(_NAMES, (environment[name] for name in _SRUN), strict=True))
    environment.setdefault("MASTER_ADDR", first_node(nodes))
    job = environment.get("SLURM_JOB_ID", "0")
    number = int(job) if job.isdigit() else 0
    environment.setdefault("MASTER_PORT", str(_FIRST_PORT + number % _PORTS))


def first_node(nodes: str) -> str:
    """The first machine of a SLURM list such as `gpu[003-010,12],big1`.

    Raises:
        UserError: it is no such list.
    """
    match = re.match(r"[^\[\],\s](?:[^\[\],\s]|\[\d[\d,-]*\])*", nodes)
    if match is None:
        raise UserError(f"SLURM_STEP_NODELIST {nodes!r} is no list of machines")
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", match[0])  # the first of each list of numbers


def place(environment: Mapping[str, str]) -> tuple[int, int, int] | None:
    """Rank, world and local rank as a launcher gave them; None without a launcher.

    Raises:
        UserError: only some are given.
    """
    given = {name: environment[name] for name in _NAMES if name in environment}
    if not given:
        return None
    missing = [name for name in _NAMES if not given.get(name, "").isdigit()]
    if missing:
        raise UserError(
            f"the environment sets {', '.join(given)} but not {', '.join(missing)}: start with "
            "torchrun, deepspeed or srun, or with none"
        )
    return int(given["RANK"]), int(given["WORLD_SIZE"]), int(given["LOCAL_RANK"])


def gpu(local_rank: int, visible: int, environment: Mapping[str, str]) -> int:
    """The number of a process's GPU among those that it sees.

    srun with --gpus-per-task or --gpu-bind lets each task see its own GPU alone.

    Raises:
        UserError: there is none for it.
    """
    if local_rank < visible:
        return local_rank
    if visible == 1 and "SLURM_LOCALID" in environment:
        return 0
    raise UserError(
        f"process {local_rank} of this machine has no GPU: there are {visible}; start as many "
        "processes as there are GPUs"
    )
