"""docs/data.md: its commands run as they stand, but for their size."""

import re
import shlex

import numpy as np
import pytest
import support
from finished import finished

from triptych import probe, train
from triptych.embed import main as embed

PAGE = (support.ROOT / "docs/data.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M))
BLOCKS = {title: found for title, text in SECTIONS.items() if (found := re.findall(r"```sh\n(.*?)```", text, re.S))}
PROGRAMS = {"train.py": train.main, "probe.py": probe.main, "embed.py": embed}
TINY = "--max_steps 1 --per_device_train_batch_size 4 --encoder.depth 1 --encoder.width 32 --encoder.heads 2"
TINY += " --report_to none --report false --device cpu"
OF = {
    "audio": "--modality.seconds 0.16 --modality.mel_bins 16 --modality.tile [8,4]",
    "image": "--modality.image_size 8 --modality.patch_size 4",
}
MINE = "from triptych.objectives import VICReg as Published\n\n\nclass VICReg(Published):\n    pass\n"


def pictures(folder):
    """Of twelve patients, in a folder each; the names say who it is, and so does a table."""
    lines = ["file_name,label,patient"]
    for i in range(48):
        name = f"who{i // 4}/p{i // 4}_{i}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(support.picture(np.random.default_rng(i)))
        lines.append(f"{name},{'ab'[i % 2]},{i // 4}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


def recordings(folder):
    folder.mkdir()
    lines = ["file,start,end,label"]
    for i in range(10):
        wave = np.random.default_rng(i).standard_normal(16_000) / 10
        (folder / f"r{i}.wav").write_bytes(support.encoded(wave))
        lines += [f"r{i}.wav,{at / 4},{at / 4 + 0.2},{'ab'[(i + at) % 2]}" for at in range(4)]
    (folder / "marks.csv").write_text("\n".join(lines))
    return folder


@pytest.mark.slow
def test_every_command_runs(tmp_path, monkeypatch, capsys, request):
    request.addfinalizer(support.forget_own)
    made = []
    for title, blocks in BLOCKS.items():
        work = tmp_path / str(len(made))
        work.mkdir()
        monkeypatch.chdir(work)
        (work / "configs").symlink_to(support.ROOT / "configs")
        (work / "mine.py").write_text(MINE)
        data = pictures(work / "pictures")
        recordings(work / "recordings")
        if title == "Groups":
            finished("image", "mae", work / "runs/mine", {"channels": 3}, **{"data.name": str(data)})
        for line in "".join(blocks).splitlines():
            program, script, *rest = shlex.split(line, comments=True)
            assert program == "python"
            if script == "train.py":
                rest += f"{TINY} {OF['audio' if 'recordings' in rest else 'image']}".split()
            PROGRAMS[script](rest)
            made.append(line)
    said = capsys.readouterr().out
    assert len(made) == 8 and "rows are held out to judge, by patient" in said and "by folder" in said
    assert (tmp_path / "5" / "features.parquet").is_file()
