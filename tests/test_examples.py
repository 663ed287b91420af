"""The fine-tuning examples run on exports, in processes that know nothing of this project."""

import ast
import csv
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import support
from finished import finished
from PIL import Image

from triptych.export import export

EXAMPLES = support.ROOT / "examples"
OURS = {"triptych"}


def pictures(folder):
    """Bright and dark ones."""
    random = np.random.default_rng(0)
    for name, level in (("bright", 128), ("dark", 0)):
        (folder / name).mkdir(parents=True)
        for i in range(20):
            array = (random.integers(0, 128, (12, 12, 3)) + level).astype(np.uint8)
            Image.fromarray(array).save(folder / name / f"{i}.png")
    return folder


def sounds(folder):
    """Loud and soft ones."""
    random = np.random.default_rng(0)
    for name, level in (("loud", 0.5), ("soft", 0.001)):
        (folder / name).mkdir(parents=True)
        for i in range(20):
            rate = (16_000, 8_000)[i % 2]
            soundfile.write(folder / name / f"{i}.wav", level * random.standard_normal(rate // 4), rate)
    return folder


def texts(folder):
    """Of two vocabularies, with words for labels."""
    folder.mkdir()
    random = np.random.default_rng(0)
    words = {"nature": "river stone garden winter forest".split(), "house": "light table paper window child".split()}
    with open(folder / "all.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for _ in range(20):
            writer.writerows([" ".join(random.choice(known, 6)), name] for name, known in words.items())
    return folder / "all.csv"


DATA = {"image": (pictures, "mae"), "audio": (sounds, "mae"), "text": (texts, "masked")}


@pytest.mark.slow
@pytest.mark.parametrize("modality", DATA)
def test_it_learns_from_an_export(modality, tmp_path):
    make, objective = DATA[modality]
    settings = {"channels": 3} if modality == "image" else {}
    finished(modality, objective, tmp_path / "run", settings)
    folder, data = export(tmp_path / "run"), make(tmp_path / "data")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    script = EXAMPLES / f"finetune_{modality}.py"
    command = [sys.executable, "-I", script, folder, data, "--output_dir", "finetuned", "--epochs", "25"]
    command += ["--batch_size", "8"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr[-3000:]
    assert float(re.search(r"^accuracy ([\d.]+);", done.stdout, re.M)[1]) > 0.8, done.stdout[-2000:]
    assert (tmp_path / "finetuned" / "model.safetensors").is_file()


@pytest.mark.parametrize("script", [*(f"finetune_{modality}" for modality in DATA), "walk_classify"])
def test_it_imports_nothing_of_ours(script):
    tree = ast.parse((EXAMPLES / f"{script}.py").read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in names} & OURS
