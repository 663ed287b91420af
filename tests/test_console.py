"""`triptych`: the scripts as one command, installed by pip, in folders with a train.py and a training/ of their own."""

import os
import shutil
import subprocess
import sys

import pytest
import support

from triptych.__main__ import COMMANDS, main

# What a user's own folder holds, none of which may be taken for ours.
OWN = ("train.py", "embed.py", "training/__init__.py", "evaluation.py", "configs/image_mae.yaml", "triptych.yaml")
USE = """
from triptych import embed, pretrain
import triptych
from triptych.__main__ import main
assert triptych.__file__.startswith({target!r}), triptych.__file__
assert pretrain.__module__ == "triptych.train"
main(["export", "run", "--to", "exported"])
main(["embed", "exported", "--data", "digits", "--split", "test", "--to", "features.parquet"])
main(["probe", "run", "--most", "60", "--threads", "1"])
print(embed("run", split="test").shape)
"""


def test_the_words_of_the_command_are_the_scripts(capsys):
    main([])
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out and (support.ROOT / f"{name}.py").is_file() for name in COMMANDS)
    with pytest.raises(SystemExit, match="triptych: no command 'trian'; did you mean train"):
        main(["trian"])


@pytest.mark.parametrize("command", ["probe", "export", "embed"])
def test_a_mistake_names_the_command(command, tmp_path):
    with pytest.raises(SystemExit, match=f"^triptych {command}: .*nowhere"):
        main([command, str(tmp_path / "nowhere"), *(["--to", "x.parquet"] if command == "embed" else [])])


@pytest.mark.slow
def test_an_installed_copy_works_in_a_user_s_own_folder(tmp_path):
    copy, target, here = (tmp_path / name for name in ("copy", "target", "here"))
    left = shutil.ignore_patterns(".git", "tests", "runs", "build", "*.egg-info", "__pycache__", ".venv")
    shutil.copytree(support.ROOT, copy, ignore=left)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", target, copy], check=True, timeout=300)
    shutil.rmtree(copy)
    for name in OWN:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("raise SystemExit('a file of the user's was imported')\n")
    environment = support.plain_environment() | {"PYTHONPATH": str(target)}

    def run(*command) -> str:
        done = subprocess.run(
            [str(word) for word in command], cwd=here, env=environment, capture_output=True, text=True, timeout=500
        )
        assert not done.returncode, done.stdout[-1000:] + done.stderr[-3000:]
        return done.stdout

    options = "--config image_digits --max_steps 1 --output_dir run --report_to none --deepspeed zero0 --device cpu"
    small = "--encoder.width 32 --encoder.depth 1 --encoder.heads 2 --per_device_train_batch_size 8 --eval_steps 0"
    run(sys.executable, target / "bin" / "triptych", "train", *options.split(), *small.split())
    (here / "use.py").write_text(USE.format(target=str(target)))
    assert run(sys.executable, "use.py").splitlines()[-1].endswith(", 32)")
    assert (here / "features.parquet").is_file() and (here / "exported" / "model.safetensors").is_file()
    assert not os.path.exists(here / "runs")
