"""Documentation of the standard library and of installed packages, by subject: prose that every Python machine has.

Read from source files with `ast`; nothing is imported. The subjects share most of their words (an array, an argument, a
model), so that few labels are hard for word counts.
"""

import ast
import hashlib
import importlib.util
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# Where each subject's texts come from: packages that this project's own dependencies bring along, or "" for the
# standard library. Each of a subject's sources gives an equal share.
SUBJECTS = {
    "algebra": ("sympy",),
    "arrays": ("numpy", "scipy"),
    "graphs": ("networkx",),
    "language": ("transformers",),
    "learning": ("sklearn",),
    "networks": ("torch", "torchvision"),
    "python": ("",),
    "tables": ("pandas", "pyarrow", "datasets"),
    "web": ("aiohttp", "huggingface_hub", "fsspec"),
}
SKIPPED = {"test", "tests", "testing", "site-packages", "dist-packages", "idlelib", "lib2to3", "_vendor", "externals"}
SECTION = re.compile(
    r"^\s*(>>>|\.\. |```|:\w+|[-=~]{3,}|(Parameters|Args|Arguments|Attributes|Returns?|Yields|Raises|Examples?|Notes?|"
    r"References|See Also|Usage|Inputs?|Shape|Warnings?)\s*:*\s*$)",
    re.MULTILINE,
)
LEAST_WORDS, MOST_CHARACTERS, LARGEST_FILE = 12, 500, 400_000


def docstrings(count: int = 800):
    """A `DatasetDict` of `text` and `label` (subject), the same on every call in one environment.

    Args:
        count: most texts of a subject; of ten files, the texts of one or two are for testing.
    """
    import datasets

    rows: dict[str, list] = {"train": [], "test": []}
    seen: set[str] = set()
    for subject, packages in SUBJECTS.items():
        for package in packages:
            left = count // len(packages)
            for name, text in texts(package):
                if text not in seen:
                    seen.add(text)
                    rows["test" if digest(name)[0] < 40 else "train"].append({"text": text, "label": subject})
                    left -= 1
                if not left:
                    break
    present = sorted({row["label"] for split in rows.values() for row in split})
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=present)})
    # Scattered, since they come subject by subject, and a head of the rows should be a fair sample.
    scattered = {split: np.random.RandomState(0).permutation(len(made)) for split, made in rows.items()}
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_list([made[i] for i in scattered[split]], features=features)
            for split, made in rows.items()
        }
    )


def texts(package: str) -> Iterator[tuple[str, str]]:
    """(file, prose) of a package's documented things, files in a fixed but scattered order."""
    if package:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return
        root = Path(next(iter(spec.submodule_search_locations)))
    else:
        root = Path(sysconfig.get_path("stdlib"))
    files = [f for f in root.rglob("*.py") if not SKIPPED & set(f.relative_to(root).parts)]
    for file in sorted(files, key=lambda f: digest(f.relative_to(root).as_posix())):
        name = f"{package}/{file.relative_to(root).as_posix()}"
        try:
            if file.stat().st_size > LARGEST_FILE:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes in other people's sources
                tree = ast.parse(file.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError, RecursionError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = prose(ast.get_docstring(node) or "")
                if len(text.split()) >= LEAST_WORDS:
                    yield name, text


def prose(documentation: str) -> str:
    """What comes before the first section, code or field list, on one line."""
    text = " ".join(SECTION.split(documentation, maxsplit=1)[0].split())
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS].rsplit(" ", 1)[0]


def digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()
