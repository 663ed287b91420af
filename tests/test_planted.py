"""A recipe is code: changes of recipes, and of AST, that are planted here, one at a time, must each turn a test red.

Each is a file, what stands there, what is planted instead, and the tests that are to fail; they run in a copy.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IMAGE, AUDIO, TEXT = "modalities/image.py", "modalities/audio.py", "modalities/text.py"
VIEWS = "modalities/image_views.py"
ENGINE, PICTURES = "training/engine.py", "tests/modalities/test_image_views.py"
SOUNDS, WRITING, STEPS = (
    "tests/modalities/test_audio.py",
    "tests/modalities/test_text.py",
    "tests/training/test_engine.py",
)
AST, TILES = "encoders/native/ast.py", "tests/encoders/test_ast.py"
PLANTED = {
    "crop aspect 1/9 to 9": (VIEWS, "math.log(3 / 4), math.log(4 / 3)", "math.log(1 / 9), math.log(9)", PICTURES),
    "crop area": (VIEWS, "random.uniform(*scale)\n", "scale[0]\n", PICTURES),
    "crop in the corner": (VIEWS, "random.integers(0, width - w + 1)", "0", PICTURES),
    "hue times ten": (VIEWS, "255 * strong.hue", "2550 * strong.hue", PICTURES),
    "no solarise": (VIEWS, "random.random() < strong.solarize", "False", PICTURES),
    "always flip": (IMAGE, "random.random() < self.flip", "self.flip > 0", PICTURES),
    "shear times three": (IMAGE, "shear * self.shear", "3 * shear * self.shear", PICTURES),
    "turns twice as far": (IMAGE, "turn * self.rotation", "2 * turn * self.rotation", PICTURES),
    "no zoom": (IMAGE, "math.log1p(self.zoom)", "0", PICTURES),
    "no contrast": (VIEWS, "strong.contrast * random", "0 * random", PICTURES),
    "no brightness": (VIEWS, "strong.brightness * random", "0 * random", PICTURES),
    "no saturation": (VIEWS, "strong.saturation * random", "0 * random", PICTURES),
    "grey always": (VIEWS, "random.random() < strong.grey", "strong.grey > 0", PICTURES),
    "no blur": (VIEWS, "random.random() < strong.blur", "False", PICTURES),
    "weak views distorted": (IMAGE, 'if spec.strength == "strong":', "if True:", PICTURES),
    "no gain": (AUDIO, "random.uniform(-1, 1) * self.gain / 2", "0 * self.gain", SOUNDS),
    "stretch twice": (AUDIO, "np.log1p([self.stretch,", "np.log1p([2 * self.stretch,", SOUNDS),
    "no roll": (AUDIO, "random.uniform(-1, 1) * self.roll", "0 * self.roll", SOUNDS),
    "long time masks": (AUDIO, "[self.time_mask, 1,", "[2 * self.time_mask, 1,", SOUNDS),
    "mixed half": (AUDIO, "random.random() * self.mixup", "0.5 * random.random() * self.mixup", SOUNDS),
    "uneven halves": (TEXT, "random.random(length) < 0.5", "random.random(length) < 0.7", WRITING),
    "short spans": (TEXT, "round(random.uniform(*scale) * len", "round(scale[0] * len", WRITING),
    "no deletion": (TEXT, "draw >= self.deletion", "draw >= 0", WRITING),
    "no warm-up": (ENGINE, "return peak * min(1.0, (step + 1) / warmup)", "return peak", STEPS),
    "no cosine": (ENGINE, "return peak * (1 + math.cos(", "return peak * (1 + 0 * math.cos(", STEPS),
    "decay on everything": (ENGINE, "decay = 0.0 if", "decay = weight_decay if", STEPS),
    "decay on positions": (ENGINE, " or id(parameter) in exempt", "", STEPS),
    "base rate by 64": ("training/loop.py", "self.batch / 256", "self.batch / 256 / 64", STEPS),
    "corners for centres": (AST, 'mode="bilinear")', 'mode="bilinear", align_corners=True)', TILES),
    "table cut at its head": (AST, "extent[axis] // 2 - grid[axis] // 2", "0", TILES),
    "leads exchanged": (AST, *("cls_token", "distillation_token"), TILES),
    "one of two leads pooled": (AST, 'pooling = "leads"', 'pooling = "lead"', TILES),
    "values not normalised": (AST, "processor.std if normal else 0.5", "processor.std", TILES),
    "no rate scale": (ENGINE, 'rate) * group["scale"]', "rate)", STEPS),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_change_turns_a_test_red(name, tmp_path):
    file, good, bad, tests = PLANTED[name]
    copy = tmp_path / "triptych"  # the package's name
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "runs", "__pycache__", "docs"))
    text = (copy / file).read_text()
    assert good in text, f"{file} has no {good!r} any more: plant this change elsewhere"
    (copy / file).write_text(text.replace(good, bad))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", tests]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert ran.returncode == 1 and "AssertionError" in ran.stdout, ran.stdout[-2000:]
