"""What the design forbids: imports against the arrow, modalities' names where none belongs, unlisted packages."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A file may import its own layer and those after it.
LAYERS = (("train", "probe", "export"), ("training", "evaluation"), ("objectives",), ("encoders",), ("modalities",))
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(
    file.relative_to(ROOT)
    for file in ROOT.rglob("*.py")
    if file.relative_to(ROOT).parts[0].removesuffix(".py") in LEVEL
)
# Whole words, also within identifiers. `token`, `position` and `piece` are the encoder's own terms.
MODAL = re.compile(
    r"(?<![a-z])(images?|pictures?|pixels?|patch(es)?|colou?rs?|audio|sounds?|wave(form)?s?|spectrogram|mel|clips?|texts?"
    r"|words?|sentences?|documents?|vocab(ulary)?|tokeni[sz]er|roberta|bert|vit|ast|rgb|hertz|frames?)(?![a-z])",
    re.IGNORECASE,
)


def imports(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module


def test_the_layers_are_all_there():
    assert {f.parts[0].removesuffix(".py") for f in FILES} == set(LEVEL)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_point_one_way(file):
    level = LEVEL[file.parts[0].removesuffix(".py")]
    for name in imports(ast.parse((ROOT / file).read_text())):
        if name == "triptych":
            assert level == 0, f"{file} imports the package that it is a part of"
        first = name.removeprefix("triptych.").split(".")[0]
        assert first not in LEVEL or name.startswith("triptych."), f"{file} imports {name}: the package is triptych"
        assert LEVEL.get(first, level) >= level, f"{file} imports {name}"
        assert first not in ("tests", "benchmarks", "examples"), f"{file} imports {name}"


def words(tree: ast.Module):
    """Identifiers and strings, docstrings left out."""
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value, node.lineno
        for field in ("id", "attr", "name", "arg", "asname", "module"):
            if isinstance(value := getattr(node, field, None), str):
                yield re.sub(r"(?<=[a-z])(?=[A-Z])", "_", value), node.lineno


BLIND = [f for f in FILES if f.parts[0] == "objectives"] + [Path("encoders/encoder.py"), Path("encoders/backbone.py")]


@pytest.mark.parametrize("file", BLIND, ids=str)
def test_no_modality_is_named(file):
    found = [
        f"{file}:{line}: {word!r}" for word, line in words(ast.parse((ROOT / file).read_text())) if MODAL.search(word)
    ]
    assert not found, found


def test_no_dispatch_on_a_modality():
    for file in FILES:
        for number, line in enumerate((ROOT / file).read_text().splitlines(), 1):
            assert not re.search(r"""\bmodality(\.name|\["name"\])?\s*(==|in)\s*[("']""", line), (
                f"{file}:{number}: {line}"
            )


def test_every_package_is_listed_and_is_one():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {".".join(("triptych", *f.parent.parts)) for f in FILES}
    assert listed == folders
    assert all((ROOT / Path(*name.split(".")[1:]) / "__init__.py").is_file() for name in listed)


def test_files_end_as_files_do():
    """No test folder is a package, and train.py reads top to bottom on a few screens."""
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert len((ROOT / "train.py").read_text().splitlines()) <= 150
