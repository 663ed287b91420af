"""Code of the user's own: named on the command line it is used, named by a file it is not."""

import json

import pytest
import support
import yaml

from triptych import export, probe, train
from triptych.embed import main as embed_main
from triptych.evaluation import report
from triptych.training import own
from triptych.training.command_line import from_command_line, read
from triptych.training.errors import UserError

CODE = """
from triptych.modalities import Image
from triptych.objectives import SimCLR

open({mark!r}, "a").write("x")


class Mine(SimCLR):
    def __init__(self, backbone, cold: float = 0.1):
        super().__init__(backbone, temperature=cold)


class Prints(Image):
    pass


def helper():
    pass
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A file, and the mark that it leaves each time it is run. Afterwards nobody knows it."""
    (tmp_path / "code").mkdir()
    file, mark = tmp_path / "code" / "mine.py", tmp_path / "mark"
    mark.touch()
    file.write_text(CODE.format(mark=str(mark)))
    monkeypatch.chdir(tmp_path)
    yield file, mark, support.forget_own
    support.forget_own()


TINY = "--encoder.width 16 --encoder.depth 1 --encoder.heads 2 --modality.image_size 8 --modality.patch_size 4"
TINY += " --max_steps 2 --per_device_train_batch_size 4 --report_to none --device cpu --dataloader_num_workers 0"


@pytest.mark.fault("code that a configuration or a checkpoint names", "never run", "the option to give")
def test_code_is_run_for_its_user_alone(code, tmp_path, monkeypatch, capsys):
    file, mark, forget = code
    monkeypatch.setenv("TRIPTYCH_REPORT", "0")
    flag, there = "code/mine.py:Mine", ["--output_dir", "run"]
    train.main([*TINY.split(), "--objective", flag, "--objective.cold", "0.2", *there])
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["objective"] == {"name": "mine.py:Mine", "cold": 0.2} and mark.read_text() == "x"
    commands = {
        probe.main: ["run", "--data", "digits", "--most", "60"],
        export.main: ["run", "--to", "out"],
        embed_main: ["run", "--data", "digits", "--to", "v.parquet"],
        train.main: ["--config", "run/config.yaml"],
    }
    forget()
    for command, argv in commands.items():
        with pytest.raises(SystemExit) as ended:
            command(argv)
        said = f"{ended.value} {capsys.readouterr().err}"
        assert "mine.py:Mine is code of its author's own" in said and "give --objective mine.py:Mine" in said, command
    for source in ({"objective": "code/mine.py:Mine"}, tmp_path / "run" / "config.yaml"):
        with pytest.raises(UserError, match="no file may have it run"):
            read(source)
    page = tmp_path / "run" / "report.html"
    report.main(["run"])  # without what takes the encoder
    assert "no file may have it run" in page.read_text() and mark.read_text() == "x"
    for command, argv in {**commands, report.main: ["run"]}.items():
        command([*argv, "--objective", flag])
    assert own.options() == ["--objective", str(file) + ":Mine"]
    assert json.loads((tmp_path / "run" / "probe.json").read_text()) and (tmp_path / "v.parquet").is_file()
    assert (tmp_path / "out" / "model.safetensors").is_file() and "no file may have it run" not in page.read_text()


def test_a_modality_of_one_s_own(code):
    config = from_command_line(
        ["--modality", "code/mine.py:Prints", *TINY.split()[6:], "--modality=code/mine.py:Prints"]
    )
    assert config.modality["name"] == "mine.py:Prints" and type(config.build_modality()).__name__ == "Prints"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("code/other.py:Mine", "no such file"),
        ("code/mine.py:Mind", "no Objective of that name; did you mean Mine.; there are Mine"),
        ("code/mine.py:Prints", "no Objective of that name"),
        ("code/broken.py:Mine", "SyntaxError"),
        ("else/mine.py:Mine", "another mine.py is in use"),
    ],
)
def test_what_is_no_class_is_refused(name, message, code, tmp_path):
    (tmp_path / "code" / "broken.py").write_text("class Mine(")
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "mine.py").write_text("")
    own.use("objective", "code/mine.py:Mine")
    with pytest.raises(SystemExit, match=message):
        from_command_line(["--objective", name])
