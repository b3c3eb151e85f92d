"""Ranks from the variables of torchrun, DeepSpeed's launcher and SLURM."""

import pytest

from llmjp.errors import UserError
from llmjp.training.launchers import first_node, gpu, place, translate_slurm

STEP = {
    "SLURM_PROCID": "13",
    "SLURM_STEP_NUM_TASKS": "96",
    "SLURM_LOCALID": "5",
    "SLURM_STEP_NODELIST": "mdx[003-014]",
    "SLURM_JOB_ID": "40123",
}


def test_srun_gives_ranks_and_a_meeting_place() -> None:
    """Task 13 of 96 is the sixth of its machine; all meet at the first machine of the step."""
    environment = dict(STEP)
    translate_slurm(environment)
    assert place(environment) == (13, 96, 5)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("mdx003", "20123")


def test_what_is_set_stays() -> None:
    """torchrun's ranks inside a SLURM step win, and a meeting place that the user chose."""
    environment = {**STEP, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    translate_slurm(environment)
    assert place(environment) == (1, 2, 1) and "MASTER_ADDR" not in environment
    environment = {**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    translate_slurm(environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.1", "29500")


@pytest.mark.parametrize(
    "changes", [{"SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_STEP_NUM_TASKS": ""}], ids=["one", "batch"]
)
def test_one_task_or_a_batch_script_is_a_process_alone(changes: dict[str, str]) -> None:
    """Where srun started no others, nobody is waited for."""
    environment = {**STEP, **changes}
    translate_slurm(environment)
    assert place(environment) is None


def test_incomplete_variables_are_told() -> None:
    """The names of what is missing."""
    with pytest.raises(UserError, match="SLURM_LOCALID is not set"):
        translate_slurm({name: value for name, value in STEP.items() if name != "SLURM_LOCALID"})
    with pytest.raises(UserError, match="SLURM_STEP_NODELIST is not set"):
        translate_slurm({**STEP, "SLURM_STEP_NODELIST": ""})
    with pytest.raises(UserError, match="sets RANK but not WORLD_SIZE, LOCAL_RANK"):
        place({"RANK": "0"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("node7,node9", "node7"),
        ("gpu[003-010,12],big1", "gpu003"),
        ("gpu[12,14]", "gpu12"),
        ("rack1-[5-6]-ib", "rack1-5-ib"),
        ("a.b.org", "a.b.org"),
        ("rack[1-2,5]n[03-04,07]x,big", "rack1n03x"),
    ],
)
def test_first_machine_of_a_list(nodes: str, first: str) -> None:
    """SLURM's compressed lists of host names."""
    assert first_node(nodes) == first


def test_each_process_has_a_gpu() -> None:
    """Its own number among all of the machine's, or the one that srun lets it see."""
    assert [gpu(rank, 8, {}) for rank in (0, 7)] == [0, 7]
    assert gpu(5, 1, {"SLURM_LOCALID": "5"}) == 0
    for visible, environment in ((1, {}), (4, {"SLURM_LOCALID": "5"}), (0, {})):
        with pytest.raises(UserError, match=f"process 5 of this machine has no GPU.* {visible};"):
            gpu(5, visible, environment)


def test_no_list_of_machines_is_told() -> None:
    """The variable and what it holds."""
    with pytest.raises(UserError, match=r"SLURM_STEP_NODELIST '\[1-2\]' is no list"):
        first_node("[1-2]")
