"""docs/walks.md: its commands run as they stand, but for their size."""

import re
import shlex
import subprocess
import sys

import pytest
import support

PAGE = (support.ROOT / "docs/walks.md").read_text()
SHARES = {"Radiographs": 0.06, "Recordings": 0.02, "Reports": 0.1}  # of the data; a label wants five rows to judge
WALKS = dict(re.findall(r"## (\w+).*?```sh\n(.*?)```", PAGE, re.S))


def test_there_are_three_walks_of_at_most_six_commands():
    assert list(WALKS) == ["Radiographs", "Recordings", "Reports"]
    assert all(len(commands.splitlines()) <= 6 for commands in WALKS.values())
    for word in ("train.py --data", "probe.py", "embed.py", "--query", "export.py", "walk_classify.py exported"):
        assert all(word in commands for commands in WALKS.values())


@pytest.mark.slow
@pytest.mark.parametrize("walk", WALKS)
def test_every_command_runs(walk, tmp_path):
    maker = [sys.executable, str(support.ROOT / "examples/walk_data.py"), walk.lower()]
    subprocess.run([*maker, str(tmp_path / walk.lower()), "--share", str(SHARES[walk])], check=True)
    for line in WALKS[walk].splitlines():
        program, script, *rest = shlex.split(line, comments=True)
        assert program == "python"
        if script == "train.py":
            tiny = (
                "--max_steps 2 --per_device_train_batch_size 4 --encoder.depth 1 --encoder.width 32 --encoder.heads 2"
            )
            at = rest.index("--minutes")
            (objective,) = set(re.findall(rf"runs/{walk.lower()}-(\w+)", WALKS[walk]))  # that which minutes choose
            rest = [*rest[:at], *rest[at + 2 :], *tiny.split(), "--objective", objective, "--report", "false"]
        command = [sys.executable, str(support.ROOT / script), *rest]
        if script.endswith("classify.py"):
            command = [command[0], "-I", *command[1:], "--epochs", "0.5"]  # knows nothing of this project
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}: {done.stdout[-1500:]}{done.stderr[-1500:]}"
    assert "rows of groups that it never saw" in done.stdout
    assert (tmp_path / "exported" / "model.safetensors").is_file() and (tmp_path / "features.parquet").is_file()
