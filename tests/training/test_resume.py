"""Killed anywhere, the same command goes on by itself, and ends bit for bit where an undisturbed run does."""

import functools
import importlib
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import support

from triptych.training import checkpoint
from triptych.training.errors import UserError

STEPS = 9
STEP = "triptych.training.engine:Engine.step"


def command(folder, data, ranks: int = 1, stage: int = 0, **more) -> list[str]:
    options = {
        "output_dir": folder,
        "data": data,
        "modality.image_size": 8,
        "modality.patch_size": 4,
        "encoder.width": 32,
        "encoder.depth": 1,
        "encoder.heads": 2,
        "objective": "byol",
        "objective.head.hidden": 32,
        "objective.head.out": 16,
        "per_device_train_batch_size": 8 // ranks,
        "max_steps": STEPS,
        "save_steps": 3,
        "logging_steps": 1,
        "eval_steps": 2,
        "data.eval_fraction": 0.2,
        "deepspeed": support.ROOT / f"configs/deepspeed/zero{stage}.json",
        "report_to": "none",
        "device": "cpu",
    } | {key.replace("__", "."): value for key, value in more.items()}
    return [part for key, value in options.items() for part in (f"--{key}", str(value))]


def train(argv: list[str], kill: str | None = None, count: int = 1) -> None:
    """The command line; SIGKILL at the `count`th call of the function `kill` (`module:name`), where it is called."""
    from triptych import train

    if kill is not None:
        module, _, name = kill.partition(":")
        *owner, name = name.split(".")
        owner = functools.reduce(getattr, owner, importlib.import_module(module))
        original, calls = getattr(owner, name), []

        def counted(*args, **kwargs):
            calls.append(0)
            if len(calls) == count:
                if name == "save_file":  # half of the file is on the disk
                    original(*args, **kwargs)
                    os.truncate(args[1], os.path.getsize(args[1]) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, counted)
    train.main(argv)


def outcome(folder, steps: int = STEPS) -> tuple[bytes, bytes, list]:
    """Final weights, moments, and the log without clocks."""
    last = Path(folder) / f"checkpoint-{steps}"
    timed = {"time", "samples_per_second", "data_wait"}
    log = [{k: v for k, v in line.items() if k not in timed} for line in support.metrics(folder)]
    return (last / "model.safetensors").read_bytes(), (last / "optimizer.safetensors").read_bytes(), log


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return support.write_pictures(tmp_path_factory.mktemp("data") / "pictures", 48)


@pytest.fixture(scope="module")
def undisturbed(launch, data, tmp_path_factory):
    @functools.cache
    def get(ranks: int, stage: int):
        folder = tmp_path_factory.mktemp("undisturbed") / "run"
        launch(train, ranks, argv=command(folder, data, ranks, stage)).results()
        return folder

    return get


KILLS = {
    "in a step": ("triptych.training.engine:Engine.step", random.Random(0).randrange(2, STEPS)),
    "in the forward of the first step": ("triptych.training.engine:Engine.forward", 1),
    "half of the second checkpoint's weights written": ("safetensors.torch:save_file", 3),
    "half of the moments written": ("safetensors.torch:save_file", 4),
    "before the manifest is synced": ("triptych.training.checkpoint:sync", 16),
    "before a checkpoint gets its name": ("os:rename", 2),
    "before old checkpoints are deleted": ("triptych.training.checkpoint:prune", 2),
    "at start-up, in an empty folder": ("triptych.training.checkpoint:write_aside", 1),
    "at start-up, configuration half-written": ("os:replace", 1),
    "at start-up, before the environment is written": ("triptych.training.checkpoint:write_aside", 2),
    "at start-up, before the log is open": ("triptych.training.log:Log.__init__", 1),
    "after the last checkpoint": ("triptych.training.loop:Log.close", 1),
}


QUICK = ("in a step", "half of the second", "before a checkpoint", "at start-up, configuration", "before the log")
MARKED = [pytest.param(k, marks=[] if k.startswith(QUICK) else [pytest.mark.slow]) for k in KILLS]


@pytest.mark.fault("killed in any moment of a save", "the same command continues, equal bit for bit", "continuing")
@pytest.mark.parametrize("where", MARKED)
def test_killed_is_as_not_killed(launch, undisturbed, data, tmp_path, where):
    kill, count = KILLS[where]
    argv = command(tmp_path / "run", data)
    assert launch(train, 1, argv=argv, kill=kill, count=count).wait() == [-signal.SIGKILL]
    launch(train, 1, argv=argv).results()
    assert outcome(tmp_path / "run") == outcome(undisturbed(1, 0))
    assert not list((tmp_path / "run").glob("*.partial"))


@pytest.mark.fault("two ranks killed again and again", "equal to undisturbed, bit for bit", "continuing")
@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_two_ranks_killed_again_and_again(launch, undisturbed, data, tmp_path, stage):
    argv = command(tmp_path / "run", data, 2, stage)
    for kill, count in (
        ("triptych.training.checkpoint:write_aside", 2),
        ("triptych.training.engine:Engine.step", 5),
        ("os:rename", 1),
        ("safetensors.torch:save_file", 2),
    ):
        assert -signal.SIGKILL in launch(train, 2, argv=argv, kill=kill, count=count).wait()
    launch(train, 2, argv=argv).results()
    assert outcome(tmp_path / "run") == outcome(undisturbed(2, stage))


@pytest.mark.fault("killed while the log is rewritten", "no line is lost, none is there twice", "continuing")
def test_killed_while_the_log_is_rewritten(launch, undisturbed, data, tmp_path):
    argv = command(tmp_path / "run", data)
    launch(train, 1, argv=argv, kill=STEP, count=6).wait()
    # config, environment, then the log
    assert launch(train, 1, argv=argv, kill="os:replace", count=3).wait() == [-signal.SIGKILL]
    launch(train, 1, argv=argv).results()
    assert outcome(tmp_path / "run") == outcome(undisturbed(1, 0))


def test_a_finished_run_is_left_alone(launch, undisturbed, data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed(1, 0), folder)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    again = launch(train, 1, argv=command(folder, data))
    again.results()
    assert "nothing to do" in again.output()
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


@pytest.mark.fault("a damaged checkpoint", "found by size and hash", "the damaged file's name")
@pytest.mark.parametrize("how", ["flip", "truncate", "delete"])
def test_any_damage_is_found_and_named(undisturbed, tmp_path, how):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed(1, 0), folder)
    newest, before = checkpoint.folders(folder)
    assert checkpoint.newest(folder) == newest
    for file in [p for p in newest.rglob("*") if p.is_file()]:
        whole = file.read_bytes()
        damage(file, how)
        said = []
        assert checkpoint.newest(folder, said.append) == before, file
        assert len(said) == 1 and newest.name in said[0], said
        # A manifest that was changed accuses a file that was not.
        assert file.name in said[0] or file.name == "manifest.json", said
        file.write_bytes(whole)
    assert checkpoint.newest(folder) == newest


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "delete":
        file.unlink()
    elif how == "truncate":
        file.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


def test_every_byte_of_the_manifest_counts(undisturbed, tmp_path):
    folder = tmp_path / "checkpoint-9"
    shutil.copytree(undisturbed(1, 0) / "checkpoint-9", folder)
    whole = (folder / "manifest.json").read_bytes()
    for i in range(len(whole)):
        changed = bytearray(whole)
        changed[i] ^= 1
        (folder / "manifest.json").write_bytes(changed)
        assert checkpoint.damage(folder) is not None, whole[max(0, i - 10) : i + 10]
    for content in ("[]", "{}", "null", '{"model.safetensors": 1}'):
        (folder / "manifest.json").write_text(content)
        assert checkpoint.damage(folder) is not None


@pytest.mark.fault(
    "the newest checkpoint is damaged",
    "the one before is used",
    "checkpoint-9 is damaged (optimizer.safetensors has another SHA-256)",
)
def test_the_one_before_a_damaged_checkpoint_is_used(launch, undisturbed, data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed(1, 0), folder)
    damage(folder / f"checkpoint-{STEPS}" / "optimizer.safetensors", "flip")
    again = launch(train, 1, argv=command(folder, data))
    again.results()
    assert f"checkpoint-{STEPS} is damaged (optimizer.safetensors has another SHA-256)" in again.output()
    assert "continuing from" in again.output() and "step 6 of 9" in again.output()
    assert outcome(folder) == outcome(undisturbed(1, 0))


@pytest.mark.fault("other settings at a resume", "refused", "the settings' names")
def test_other_settings_are_refused_by_name(undisturbed, data, tmp_path):
    from triptych import train

    folder = tmp_path / "run"
    shutil.copytree(undisturbed(1, 0), folder)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    argv = command(folder, data, learning_rate=1e-4, encoder__width=64)
    with pytest.raises(SystemExit, match="other settings.*encoder.width, learning_rate") as refused:
        train.main(argv)
    assert "\n" not in refused.value.code
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


@pytest.mark.fault("other data, or another global batch, at a resume", "refused", "what differs")
def test_other_data_and_another_batch_are_refused(launch, undisturbed, data, tmp_path):
    folder, other = tmp_path / "run", tmp_path / "data"
    shutil.copytree(undisturbed(1, 0), folder)
    refused = launch(train, 1, argv=command(folder, data, per_device_train_batch_size=7))
    assert refused.wait() == [1]
    assert "trained with 8 samples a step, now it would be 7" in refused.output()
    shutil.copytree(data, other)
    (other / "000.png").unlink()
    refused = launch(train, 1, argv=command(folder, other))
    assert refused.wait() == [1]
    assert "fingerprint" in refused.output()


@pytest.mark.fault("pickles among a checkpoint's files", "never opened", "nothing")
def test_no_pickle_is_opened(launch, undisturbed, data, tmp_path):
    folder, marker = tmp_path / "run", tmp_path / "executed"
    shutil.copytree(undisturbed(1, 0), folder)
    shutil.rmtree(folder / f"checkpoint-{STEPS}")
    newest = folder / "checkpoint-6"
    payload = pickle.dumps(Payload(str(marker)))
    for name in ("optimizer.bin", "pytorch_model.bin", "model.pt", "latest", "rng_state.pth", "training_args.bin"):
        (newest / name).write_bytes(payload)
        (folder / name).write_bytes(payload)
    launch(train, 1, argv=command(folder, data)).results()
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "config.yaml"):  # even with a right hash
        (newest / name).write_bytes(payload)
    shutil.rmtree(folder / f"checkpoint-{STEPS}")
    files = [p for p in newest.rglob("*") if p.is_file() and p.name != "manifest.json"]
    manifest = {str(p.relative_to(newest)): {"size": p.stat().st_size, "sha256": checkpoint.digest(p)} for p in files}
    (newest / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoint.newest(folder) == newest
    assert launch(train, 1, argv=command(folder, data)).wait() != [0]
    assert not marker.exists()
    pickle.loads(payload)
    assert marker.exists(), "the payload is harmless, so this test shows nothing"


class Payload:
    def __init__(self, marker: str):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


def test_product_code_reads_no_pickle_and_runs_no_code_of_others():
    forbidden = re.compile(
        r"pickle\.load|torch\.load\(|weights_only\s*=\s*False|trust_remote_code\s*=\s*True|yaml\.(load|unsafe_load)\("
        r"|(?<![\w.])(eval|exec)\(|joblib|allow_pickle\s*=\s*True|all_gather_object|broadcast_object|__reduce__"
    )
    files = [
        p
        for p in support.ROOT.rglob("*.py")
        if not {"tests", ".venv", "build"} & set(p.relative_to(support.ROOT).parts)
    ]
    assert len(files) > 30
    found = [
        f"{p.relative_to(support.ROOT)}:{n}: {line.strip()}"
        for p in files
        for n, line in enumerate(p.read_text().splitlines(), 1)
        if forbidden.search(line)
    ]
    assert not found, found


def test_write_aside_leaves_no_half_file(tmp_path, monkeypatch):
    file = tmp_path / "config.yaml"
    checkpoint.write_aside(file, "old")
    monkeypatch.setattr(checkpoint, "sync", lambda path: (_ for _ in ()).throw(UserError("disk full")))
    with pytest.raises(UserError):
        checkpoint.write_aside(file, "new")
    assert file.read_text() == "old"


# The programs that users start, not forks of one that has imported everything.


@pytest.mark.slow
def test_the_program_killed_while_it_starts(undisturbed, data, tmp_path):
    argv = [sys.executable, "train.py", *command(tmp_path / "run", data)]
    begin = time.monotonic()
    for moment in (0.15, 0.5, 0.8, 0.95):
        started = subprocess.Popen(argv, cwd=support.ROOT, start_new_session=True, env=support.plain_environment())
        try:
            started.wait(moment * 8)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
    assert time.monotonic() - begin > 1
    ended = subprocess.run(
        argv, cwd=support.ROOT, capture_output=True, text=True, env=support.plain_environment(), check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "/ld" not in ended.stderr and "gcc" not in ended.stderr
    assert outcome(tmp_path / "run") == outcome(undisturbed(1, 0))


@pytest.mark.slow
def test_torchrun_killed_and_started_again(undisturbed, data, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py"]
    argv = [*torchrun, *command(tmp_path / "run", data, 2, 0, save_steps=1)]
    started = subprocess.Popen(argv, cwd=support.ROOT, start_new_session=True, env=support.plain_environment())
    while started.poll() is None and not (tmp_path / "run" / "checkpoint-3").exists():
        time.sleep(0.01)
    assert started.poll() is None
    for process in (started.pid, *children(started.pid)):
        os.kill(process, signal.SIGKILL)
    started.wait()
    ended = subprocess.run(
        argv, cwd=support.ROOT, capture_output=True, text=True, env=support.plain_environment(), check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "continuing from" in ended.stdout
    assert outcome(tmp_path / "run") == outcome(undisturbed(2, 0))


@pytest.mark.slow
def test_the_deepspeed_launcher_gives_the_same(undisturbed, data, tmp_path):
    launcher = shutil.which("deepspeed", path=Path(sys.executable).parent)
    environment = support.plain_environment() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    argv = [launcher, "--num_gpus", "2", "train.py", *command(tmp_path / "run", data, 2, 0)]
    ended = subprocess.run(argv, cwd=support.ROOT, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert outcome(tmp_path / "run") == outcome(undisturbed(2, 0))


def finish(argv: list[str]) -> subprocess.CompletedProcess:
    environment = support.plain_environment()
    return subprocess.run(argv, cwd=support.ROOT, capture_output=True, text=True, env=environment, check=False)


def children(parent: int) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = process.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == parent:
            found.append(int(process.parent.name))
    return found


# Longer, moved, damaged: what may go on, and what may not.


@pytest.mark.fault(
    "a run made longer",
    "continues on the new schedule",
    "15 steps instead of 9: the learning rate follows the new length",
)
def test_a_run_made_longer_is_said_and_killed_is_as_not_killed(launch, undisturbed, data, tmp_path):
    runs = [tmp_path / "whole", tmp_path / "killed"]
    for folder in runs:
        shutil.copytree(undisturbed(1, 0), folder)
    longer = [command(folder, data, max_steps=15, report_to="tensorboard") for folder in runs]
    first = launch(train, 1, argv=longer[0])
    first.results()
    assert "15 steps instead of 9: the learning rate follows the new length, with 1 steps of warm-up" in first.output()
    assert launch(train, 1, argv=longer[1], kill=STEP, count=2).wait() == [-signal.SIGKILL]
    assert launch(train, 1, argv=longer[1], kill=STEP, count=5).wait() == [-signal.SIGKILL]
    launch(train, 1, argv=longer[1]).results()
    assert outcome(runs[0], 15) == outcome(runs[1], 15)
    assert points(runs[0]) == points(runs[1])
    rates = [line["learning_rate"] for line in support.metrics(runs[0])]
    assert rates[8] < rates[9]  # it had come down for the shorter length
    shorter = launch(train, 1, argv=command(runs[0], data, max_steps=12))
    assert shorter.wait() == [1]
    assert "max_steps 12 makes 12 steps, but" in shorter.output() and "has 15 already" in shorter.output()


def points(folder) -> dict[str, list]:
    """All points in TensorBoard's files, as they lie there: none is taken away or put together."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: dict[str, list] = {}
    for file in sorted((Path(folder) / "tensorboard").glob("events*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag.split("/")[1] not in ("samples_per_second", "data_wait"):
                    number = value.tensor.float_val[0] if value.HasField("tensor") else value.simple_value
                    found.setdefault(value.tag, []).append((event.step, number))
    return found


def test_a_key_that_an_older_version_did_not_have_is_at_its_default(launch, undisturbed, data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed(1, 0), folder)
    shutil.rmtree(folder / f"checkpoint-{STEPS}")
    lines = (folder / "config.yaml").read_text().splitlines(keepends=True)
    (folder / "config.yaml").write_text("".join(line for line in lines if not line.startswith("adam_epsilon")))
    launch(train, 1, argv=command(folder, data)).results()
    assert outcome(folder) == outcome(undisturbed(1, 0))


@pytest.mark.fault("another micro-batch where samples are compared", "refused", "set per_device_train_batch_size to 8")
def test_micro_batches_of_samples_that_are_compared_stay_as_large(launch, undisturbed, data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed(1, 0), folder)
    more = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    refused = launch(train, 1, argv=command(folder, data, **more))
    assert refused.wait() == [1]
    assert "8 samples (per device × ranks) that objective byol compares" in refused.output()
    assert "set per_device_train_batch_size to 8" in refused.output()


@pytest.mark.fault("all checkpoints are damaged", "refused, nothing is touched", "all checkpoints are damaged")
def test_if_all_checkpoints_are_damaged_no_run_starts_anew(launch, undisturbed, data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed(1, 0), folder)
    for saved in checkpoint.folders(folder):
        damage(saved / "state.json", "truncate")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    refused = launch(train, 1, argv=command(folder, data))
    assert refused.wait() == [1]
    assert "all checkpoints are damaged (checkpoint-9: state.json has" in refused.output()
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_the_checkpoint_just_written_is_kept(tmp_path):
    for step in (3, 6, 9, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    checkpoint.prune(tmp_path, 2, 6)  # 9 and 12 were found damaged, and the run went on from 3
    assert [f.name for f in checkpoint.folders(tmp_path)] == ["checkpoint-6", "checkpoint-3"]


def test_a_disk_that_is_full_for_the_tokenizer_is_a_full_disk(tmp_path):
    """`tokenizers` raises a bare `Exception`."""

    def save(folder):
        raise Exception("No space left on device (os error 28)")

    with pytest.raises(UserError, match="checkpoint-3 cannot be written .No space left on device .os error 28.*; make"):
        checkpoint.write(tmp_path, 3, {}, {}, {}, {}, SimpleNamespace(save=save))
    assert not list(tmp_path.iterdir())


@pytest.mark.fault(
    "a full disk at a save",
    "ends; whole checkpoints stay",
    "checkpoint-9 cannot be written; continues from checkpoint-6",
)
def test_a_full_disk_is_one_line_and_leaves_what_was_whole(launch, undisturbed, data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed(1, 0), folder)
    shutil.rmtree(folder / f"checkpoint-{STEPS}")
    refused = launch(full, 1, argv=command(folder, data))
    assert refused.wait() == [1]
    assert "checkpoint-9 cannot be written" in refused.output() and "continues from checkpoint-6" in refused.output()
    assert "Traceback" not in refused.output() and not list(folder.glob(".*.partial"))
    launch(train, 1, argv=command(folder, data)).results()
    assert outcome(folder) == outcome(undisturbed(1, 0))


def full(argv: list[str]) -> None:
    """The command line, on a disk on which no file of more than 20 kB has room."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    train(argv)


def test_tensors_that_an_earlier_version_named_otherwise_are_found():
    from triptych.encoders.native import make
    from triptych.modalities import Image
    from triptych.objectives import MAE, Decoder

    module = MAE(make(Image(8, 4), width=16, depth=1, heads=1), decoder=Decoder(16, 1, 1))
    now = [name for name, _ in module.named_parameters()]
    assert checkpoint.names(module, now) == {name: name for name in now}
    moved = {"decoder.embed.weight": "embed.weight", "decoder.hidden": "hidden", "decoder.places.table": "places.table"}
    moved |= {"decoder.embed.bias": "embed.bias", "predict.weight": "predict.weight"}
    moved |= {"decoder.encoder.blocks.0.mlp.up.weight": "decoder.blocks.0.mlp.up.weight"}
    moved |= {"decoder.encoder.norm.bias": "decoder.norm.bias"}
    before = [n.replace("decoder.", "", 1).replace("encoder.", "decoder.", 1) if "decoder." in n else n for n in now]
    found = checkpoint.names(module, before)
    assert moved.items() <= found.items() and sorted(found.values()) == sorted(before)
    assert checkpoint.names(module, [*now, "queue"]) is None and checkpoint.names(module, now[1:]) is None
