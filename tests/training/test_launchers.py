"""What a launcher announces becomes ranks, or is refused; what the first rank decides reaches all."""

import subprocess
import sys

import pytest
import support

from triptych.training.errors import UserError
from triptych.training.ranks import announce

SLURM = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "7"}
SLURM |= {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "2"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
OPEN_MPI |= {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "prterun-a-12@1"}
INTEL = {"PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "PMI_ID": "1"}


@pytest.mark.fault("srun instead of torchrun", "its processes are ranks of one run", "nothing")
@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[03-07,9],x1", "node03"),
        ("a", "a"),
        ("a,b", "a"),
        ("a,b[1-2]", "a"),
        ("n[5,7]", "n5"),
        ("r1-n[08]", "r1-n08"),
    ],
)
def test_srun_makes_ranks(nodes, first):
    found = SLURM | {"SLURM_STEP_NODELIST": nodes}
    announce(found)
    assert [found[k] for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")] == ["3", "4", "1", first]
    other = SLURM | {"SLURM_STEP_NODELIST": nodes, "SLURM_PROCID": "0"}
    announce(other)
    assert other["MASTER_PORT"] == found["MASTER_PORT"]


@pytest.mark.fault("mpirun instead of torchrun", "its processes are ranks of one run", "nothing")
def test_mpirun_makes_ranks():
    found = dict(OPEN_MPI)
    announce(found)
    assert [found[k] for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")] == ["1", "2", "1", "127.0.0.1"]


@pytest.mark.fault("several processes that cannot meet", "refused", "the line to use")
@pytest.mark.parametrize(
    "environment",
    [
        OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"},  # two machines, and nobody says which is first
        {k: v for k, v in OPEN_MPI.items() if k != "PMIX_NAMESPACE"},
        SLURM,
        {"RANK": "1"},
        {"RANK": "0", "WORLD_SIZE": "2"},
    ],
)
def test_who_cannot_meet_is_refused_with_the_line_to_use(environment):
    with pytest.raises(UserError, match="torchrun .*train.py"):
        announce(dict(environment))


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"},  # sbatch's own shell
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    ],
)
def test_one_process_stays_one(environment):
    found = dict(environment)
    announce(found)
    assert found == environment


def test_torchrun_within_srun_is_torchruns():
    found = SLURM | {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1", "LOCAL_RANK": "0"}
    before = dict(found)
    announce(found)
    assert found == before


def first_decides(folder: str) -> list:
    import torch.distributed as dist

    from triptych.training import engine
    from triptych.training.errors import Told
    from triptych.training.ranks import Team

    engine.start(support.config("image", "mae", folder).run)
    team, made = Team(), []
    made.append(team.first(lambda: {"checkpoint": f"of rank {dist.get_rank()}"}))
    order = []
    team.each(lambda: order.append(0), turns=True)
    for speaker in (0, 1):

        def refuse(speaker=speaker):
            if team.rank == speaker:
                raise UserError("no room")

        try:
            team.each(refuse)
        except UserError as error:
            made.append([type(error) is Told, str(error)])
    try:
        team.agree({"data": str(team.rank)}, "give all the same")
    except UserError as error:
        made.append([type(error) is Told, str(error)])
    with team.files(lambda to: open(f"{to}/a.json", "w").write("ü") and None) as folder:
        made.append(open(f"{folder}/a.json").read())
    return made


@pytest.mark.fault(
    "a refusal on one rank, other options on another",
    "all ranks end, the line is said once",
    "rank 1 has another data than rank 0",
)
def test_what_the_first_rank_decides_or_refuses_is_everyones(launch, tmp_path):
    results = launch(first_decides, 3, folder=str(tmp_path)).results()
    for rank, (decided, *refused, differing, file) in enumerate(results):
        assert decided == {"checkpoint": "of rank 0"} and file == "ü"
        told = rank > 0
        assert refused[0] == [told, "no room"]
        assert refused[1] == [told, "no room" if told else "rank 1: no room"]
        assert differing == [told, "rank 1 has another data than rank 0 (1 against 0); give all the same"]


@pytest.mark.slow
def test_srun_like_processes_are_two_ranks_of_one_run(pictures, tmp_path):
    options = {"output_dir": tmp_path / "run", "data": pictures, "max_steps": 3, "device": "cpu", "report_to": "none"}
    options |= {"modality.image_size": 8, "modality.patch_size": 4, "per_device_train_batch_size": 4}
    argv = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    names = SLURM | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "train.py", *argv],
            cwd=support.ROOT,
            env=support.plain_environment() | names | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert "on 2 rank(s)" in said[0] and "rank(s)" not in said[1], said
