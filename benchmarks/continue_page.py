"""The tables of docs/benchmarks.md from the lines of `continue.py`: the shipped recipes, and all that was tried."""

from pathlib import Path

from pages import between, lines_of

ROOT = Path(__file__).parents[1]
LINES = ROOT / "benchmarks" / "continue.jsonl"
SHIPPED = "recipe"  # the name of the recipe that `--init_from` takes by itself

Line = dict


def lines(file: Path = LINES) -> list[Line]:
    return lines_of(file)


def gain_of(line: Line) -> str:
    """`+9.8 ± 1.2`, with a word where it is not surely above nothing."""
    word = "" if line["sure"] else " (loss)" if line["gain"] < -2 * line["error"] else " (no difference)"
    return f"{line['gain']:+.1f} ± {line['error']:.1f}{word}"


def shipped(found: list[Line]) -> list[str]:
    """What the recipes that are shipped do: every figure."""
    rows = ["| set | labels a class | untrained | start | last | best | gain of the last |", "|---" * 7 + "|"]
    for name in dict.fromkeys(line["set"] for line in found):
        title = name
        for line in found:
            if (line["set"], line["recipe"], line.get("pooling")) == (name, SHIPPED, "native"):
                labels = str(line["labels"])
                labels = labels if labels.isdigit() or labels == "all" else f"kept: {labels}"
                values = " | ".join(f"{line[key]:.1f}" for key in ("untrained", "start", "continued", "best"))
                rows.append(f"| {title} | {labels} | {values} | {gain_of(line) if 'gain' in line else ''} |")
                title = ""
    return rows


def tried(found: list[Line]) -> list[str]:
    """Gains of the last checkpoint by each recipe, and by the peers."""
    rows = ["| set | recipe | 5 labels a class | 20 | all | kept, 20 labels |", "|---" * 6 + "|"]
    sets = list(dict.fromkeys(line["set"] for line in found))
    cells = dict.fromkeys((line["set"], line["recipe"]) for line in found)
    for name, recipe in sorted(cells, key=lambda cell: sets.index(cell[0])):
        mine = [line for line in found if (line["set"], line["recipe"]) == (name, recipe)]
        by = {str(line["labels"]): gain_of(line) for line in mine if line.get("pooling") == "native" and "gain" in line}
        values = [by.get(key, "–") for key in ("5", "20", "all")]
        kept = [f"{key.removeprefix('20, on ')}: {text}" for key, text in by.items() if key.startswith("20, on")]
        rows.append(f"| {name} | {recipe} | {' | '.join(values)} | {', '.join(kept) or '–'} |")
    return rows


def verdicts(found: list[Line]) -> list[str]:
    """What the runs of the shipped recipes said at their end."""
    mine = [line for line in found if line["recipe"] == SHIPPED and "verdict" in line]
    return [f"- {line['set']}: {line['verdict']}" for line in mine]


def tables(found: list[Line]) -> str:
    return "\n".join([*shipped(found), "", "What the runs said at their end:", "", *verdicts(found), "", *tried(found)])


BEGIN, END = "<!-- made by benchmarks/continue.py --docs -->", "<!-- end of continue.py -->"


def with_tables(page: str) -> str:
    return between(page, BEGIN, END, tables(lines()))


def write_docs() -> None:
    page = ROOT / "docs" / "benchmarks.md"
    page.write_text(with_tables(page.read_text()))
