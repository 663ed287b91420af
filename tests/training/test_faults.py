"""Wrong commands: each ends in one line that names the thing, exit code 1, nothing written. And docs/faults.md."""

import faults
import pytest
import support

from triptych import export, probe, train
from triptych.training.errors import UserError

PROGRAMS = {"train.py": train.main, "probe.py": probe.main, "export.py": export.main}
TINY = "--per_device_train_batch_size 8 --max_steps 1 --dataloader_num_workers 0 --device cpu --report_to none".split()
TINY += "--encoder.width 32 --encoder.depth 1 --encoder.heads 2".split()


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    support.write_pictures(folder / "pictures", 24)
    (folder / "docs.txt").write_text("\n".join(support.sentences(24)))
    for name, content in {
        "empty.yaml": b"",
        "broken.yaml": b"objective: {name: [}",
        "bytes.yaml": b"seed: \xff\xfe",
        "list.json": b"[1, 2]",
        "stage.json": b'{"zero_optimization": 7}',
        "nothing.yaml": b"learning_rate:",
        "group_of_none.yaml": b"objective:",
        "twice.yaml": b"seed: 1\nseed: 2",
        "cycle.yaml": b"deepspeed: &a {again: *a}",
        "show.yaml": b"show: true",
        "origin.yaml": b"origin: {seed: nowhere}",
    }.items():
        (folder / name).write_bytes(content)
    (folder / "group.yaml").write_text("data: []\n")
    (folder / "old").mkdir()
    (folder / "old" / "config.yaml").write_text("")
    return folder


@pytest.fixture(autouse=True)
def world(monkeypatch):
    """No rank of another test's."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def contents(folder) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def refusal(command: str, here, tmp_path) -> str:
    """The one line with which a command ends."""
    argv = command.format(here=here).split()
    program = argv.pop(0) if argv[0] in PROGRAMS else "train.py"
    if program == "train.py":
        argv = ["--output_dir", str(tmp_path / "run"), *(TINY if "--data" in argv else []), *argv]
        if "--data" in argv and "--modality" not in argv:
            argv = ["--modality.image_size", "8", "--modality.patch_size", "4", *argv]
    with pytest.raises(SystemExit) as ended:
        PROGRAMS[program](argv)
    line = ended.value.code
    assert isinstance(line, str) and line.startswith(f"{program}: "), line
    assert "\n" not in line and len(line) < 600, line
    assert "Traceback" not in line and " object at 0x" not in line and "<class" not in line, line
    return line


@pytest.mark.parametrize(("situation", "command", "says"), faults.WRONG, ids=[f[0] for f in faults.WRONG])
def test_wrong_commands(situation, command, says, here, tmp_path, monkeypatch):
    before = contents(here)
    monkeypatch.chdir(tmp_path)
    line = refusal(command, here, tmp_path)
    assert says.format(here=here) in line, line
    assert not (tmp_path / "run").exists() and contents(here) == before


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "not a list"),
        (None, "not a NoneType"),
        ({"learning_rate": None}, "learning_rate has no value"),
        ({"data": None}, "data.name has no value"),
        ({"modality": {"name": None}}, "modality 'None' is not one of"),
        ({"output_dir": "a\0b"}, "holds a NUL"),
        ({"output_dir": ""}, "is an empty word"),
        ({"seed": range(2)}, "seed is a range"),
        ({"objective": {"mask": 3}}, "objective.mask is a group"),
        ({3: 4}, "no option '3'"),
    ],
    ids=str,
)
def test_wrong_dictionaries(given, says):
    with pytest.raises(UserError) as refused:
        train.pretrain(given)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_the_page_says_what_the_tests_hold():
    assert len(faults.WRONG) >= 50
    assert faults.PAGE.read_text() == faults.page(), "write it anew: python tests/faults.py"


def test_every_mark_is_whole():
    for *texts, test in faults.marked():
        assert len(texts) == 3 and all(isinstance(t, str) and t for t in texts), test


def test_no_situation_is_there_twice():
    names = [fault[0] for fault in faults.WRONG]
    assert len(set(names)) == len(names)
