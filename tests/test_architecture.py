"""What the design forbids: imports against the arrow, names where none belong, unlisted packages."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from triptych.encoders.native import FAMILIES
from triptych.modalities import MODALITIES
from triptych.objectives import OBJECTIVES
from triptych.training.command_line import schema

ROOT = Path(__file__).parents[1]
# A file may import its own layer and those after it.
LAYERS = (
    ("train", "probe", "export", "embed", "__main__"),
    ("training", "evaluation"),
    ("objectives",),
    ("encoders",),
    ("modalities",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(
    file.relative_to(ROOT)
    for file in ROOT.rglob("*.py")
    if file.relative_to(ROOT).parts[0].removesuffix(".py") in LEVEL
)
EXAMPLES = sorted(file.name for file in (ROOT / "examples").glob("*.py"))
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


# Families by the `model_type` that is their name, in any case, and the native classes that they list. A method that is
# cited in a comment (BERT, Devlin et al. 2019) is none, nor is a processor or tokenizer: those are the modality's. So
# is the file that `sentence-transformers` writes for any family.
PROCESSOR = re.compile(r"\w+_(Tokenizer|Processor|Extractor)|sentence_bert_config")
NAMED = [name for name in FAMILIES if name not in OBJECTIVES]  # I-JEPA is a method, too
SPELT = "|".join(re.escape(name).replace("_", "[_-]?") for name in NAMED)
FAMILY = re.compile(rf"(?<![a-z0-9])({SPELT})(?![a-z0-9])", re.IGNORECASE)
CLASSES = {
    getattr(family, kind, None)
    for family in FAMILIES.values()
    for kind in ("config_class", "base_class", "classifier", "masked_class")
} - {None}
ABROAD = [f for f in FILES if f.parts[:2] != ("encoders", "native")] + [Path("examples", n) for n in EXAMPLES]


@pytest.mark.parametrize("file", ABROAD, ids=str)
def test_no_family_is_named(file):
    text = (ROOT / file).read_text()
    found = [
        f"{file}:{line}: {word!r}"
        for word, line in words(ast.parse(text))
        if FAMILY.search(PROCESSOR.sub("", word)) or any(name in word.replace("_", "") for name in CLASSES)
    ]
    # In prose, too, it is a name when it is written as one.
    found += [f"{file}: {name}" for name in NAMED if re.search(rf"(?<![\w./-]){name}(?![\w-])", text)]
    assert not found, found


@pytest.mark.parametrize("modality", MODALITIES)
def test_an_option_s_help_names_families_from_the_table_alone(modality):
    parsers = [schema(modality, objective) for objective in OBJECTIVES]
    helps = {action.dest: str(action.help) for parser in parsers for action in parser._actions}
    said = helps.pop("family")
    assert all(name in said for name, family in FAMILIES.items() if family.modality == modality)
    found = {option: said for option, said in helps.items() if FAMILY.search(said)}
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
