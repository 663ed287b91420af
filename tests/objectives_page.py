"""The page docs/objectives.md: made of the objectives' own words, of the shipped recipes and of the measured lines.

python tests/objectives_page.py      writes docs/objectives.md
"""

import inspect
import sys
from pathlib import Path
from typing import Any

import docstring_parser

from triptych.modalities import MODALITIES
from triptych.objectives import OBJECTIVES
from triptych.training.settings import defaults_of, own_defaults

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "objectives.md"
HEAD = """# Objectives: what each is, what it costs, when to take it

Every objective runs on every modality, on any number of ranks, at every ZeRO stage.
`python train.py --data X --objective NAME` is enough: options that are not said are the modality's own, by the shipped
recipe `configs/MODALITY_NAME.yaml`. `frozen_teacher` also wants `--objective.teacher`.

A *piece* is a patch of a picture, a tile of a log-mel spectrogram, or a token of a text. A *lead* is a token in front
that stands for the whole sample (CLS). A *view* is a sample as the encoder gets it: a crop, distorted, or with pieces
hidden. A *teacher* gives targets and has no gradient: it is the student's moving average, or a published encoder. A
*rank* is one process of a run, and the *global batch* is that of all ranks.

*Costs* are a sample's forwards through the encoder, what is held beside it, and what a step gathers from W ranks (B
samples a rank, vectors of d float32). *Gain* is what pretraining of a few minutes is worth in points, beside the
encoder that was not pretrained ([docs/benchmarks.md](benchmarks.md) has both figures); "–" was not measured. The
accumulation of gradients leaves the loss as it is, unless the row *batch* says that an objective compares samples: then
the loss is of one micro-batch of all ranks.

This page is made by `python tests/objectives_page.py`; a test compares them.

"""


def page() -> str:
    gains = measured()
    parts = [HEAD + overview(gains)]
    for name, cls in OBJECTIVES.items():
        text = docstring_parser.parse(inspect.getdoc(cls))
        words = [text.short_description or "", (text.long_description or "").replace("\n\n", "\n")]
        facts = [("cost", cls.cost), ("collapse", cls.collapse), ("choose it for", cls.choose), ("batch", batch(cls))]
        facts.append(("gain", ", ".join(f"{m} {gains.get((m, name), '–')}" for m in MODALITIES)))
        parts.append(
            f"## `{name}`\n\n" + "\n\n".join(" ".join(w.split()) for w in words if w) + "\n\n"
            "| | |\n|---|---|\n" + "\n".join(f"| {k} | {v or '–'} |" for k, v in facts) + "\n\n" + options(name, cls)
        )  # fmt: skip
    return "\n".join(parts)


def overview(gains: dict) -> str:
    rows = ["| objective | choose it for | " + " | ".join(MODALITIES) + " |", "|---" * (2 + len(MODALITIES)) + "|"]
    for name, cls in OBJECTIVES.items():
        found = " | ".join(gains.get((m, name), "–") for m in MODALITIES)
        rows.append(f"| [`{name}`](#{name}) | {cls.choose or '–'} | {found} |")
    return "\n".join(rows) + "\n"


def batch(cls) -> str:
    if cls.compares is True:
        return "compares the samples of a micro-batch of all ranks"
    return f"compares them where {cls.compares_where}" if cls.compares_where else ""


def known(cls) -> dict[str, Any]:
    return dict(inspect.signature(cls).parameters)


def options(name: str, cls) -> str:
    """The arguments with their defaults: the signature's, and a modality's own where its recipe has another."""
    meanings = described(cls)
    usual = {k: v for k, v in defaults_of(next(iter(MODALITIES)), name).items() if k.startswith("objective.")}
    own = {modality: own_defaults(modality, name) for modality in MODALITIES}
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for key in usual:
        option = key.removeprefix("objective.")
        if option == "name":
            continue
        values = {m: plain(own[m].get(key, signature(cls, option))) for m in MODALITIES}
        same = len(set(values.values())) == 1
        shown = next(iter(values.values())) if same else ", ".join(f"{v} ({m})" for m, v in values.items())
        rows.append(f"| `{option}` | {shown} | {meanings.get(option, '')} |")
    return "\n".join(rows) + "\n"


def described(cls) -> dict[str, str]:
    """Meanings of options by dotted name; a nested one's are in its own class."""
    found = {}
    for argument in docstring_parser.parse(inspect.getdoc(cls)).params:
        found[argument.arg_name] = " ".join((argument.description or "").split())
    for name, parameter in known(cls).items():
        if hasattr(parameter.default, "__dataclass_fields__"):
            for argument in docstring_parser.parse(inspect.getdoc(type(parameter.default))).params:
                found[f"{name}.{argument.arg_name}"] = " ".join((argument.description or "").split())
    return found


def signature(cls, option: str) -> Any:
    value: Any = cls
    first, _, rest = option.partition(".")
    value = known(cls)[first].default
    return getattr(value, rest) if rest else value


def plain(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value).replace("|", "\\|")


def measured() -> dict[tuple[str, str], str]:
    """Gains of the measured cells, as docs/benchmarks.md has them."""
    sys.path.append(str(ROOT / "benchmarks"))
    import cells
    import cells_page

    found = {}
    for name, line in (done := cells.lines()).items():
        known = done.get(f"reference_{cells.modality_of(name)}")
        if known and "probe" in line and "#" not in name and not name.startswith("reference"):
            gain = cells_page.gain_of(line, known)
            found[cells.modality_of(name), cells.objective_of(name)] = f"{gain:+.1f}"
    return found


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE}: {len(OBJECTIVES)} objectives")
