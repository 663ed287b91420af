"""The probe's table and what it says, on the terminal and on a run's page: made of the rows of `probe.json` alone."""

import json
import sys
from pathlib import Path
from typing import Any

from triptych.evaluation.measures import WORDS
from triptych.evaluation.tasks import TASKS

KEPT = "probe.json"  # in a run's folder
OTHERS = {"random": "the untrained encoder", "published": "the published start", "plain": "plain data"}
# What it means not to be surely above them, in the same order; the first that holds is said.
MEANS = {
    "random": "this says nothing for the training",
    "published": "use the start",
    "plain": "the data itself does as well without an encoder",
}

Row = dict[str, Any]


def verdict(rows: list[Row]) -> list[tuple[str, str]]:
    """Whether the score means something: a sentence for each number of labels, each `good` or `look`.

    Of the linear probe, by the pooling that is best for the trained encoder: is it surely above the others?
    """
    said = []
    for few in dict.fromkeys(row["labels"] for row in rows):
        mine = [r for r in rows if (r["encoder"], r["probe"], r["labels"]) == ("pretrained", "linear", few)]
        best = max(mine, key=lambda row: row[row["measure"]])
        above = {other: best["above"][other] for other in OTHERS if other in best["above"]}
        what = "all labels" if few == "all" else f"{few} {TASKS[best['task']].few}"
        how = f"Linear probe of {what}, {WORDS[best['measure']]} {best[best['measure']]:.1f}: "
        words = {o: f"{OTHERS[o]} ({it['mean']:+.1f} ± {it['error']:.1f})" for o, it in above.items()}
        sure, short = ([o for o in above if above[o]["sure"] == wanted] for wanted in (True, False))
        parts = [f"above {' and '.join(words[o] for o in sure)}"] if sure else []
        if short:
            parts.append(f"NOT surely above {' and '.join(words[o] for o in short)}: {MEANS[short[0]]}")
        said.append(("look" if short else "good", f"{how}{'; '.join(parts)}."))
    return said


def table_of(rows: list[Row]) -> tuple[str, tuple[str, ...], list[tuple[str, ...]]]:
    """One measure of all cells, × 100: title, heads, lines."""
    task, mine = TASKS[rows[0]["task"]], [r for r in rows if r["encoder"] == "pretrained"]
    name, others = mine[0]["measure"], [o for o in mine[0]["above"] if o != task.none]
    none = "largest" if task.name == "classes" else task.none
    heads = (task.few, "probe", "pooling", "pretrained", *others, none, *(f"over {o}" for o in others))
    lines = []
    for row in mine:
        key = (row["labels"], row["probe"], row["pooling"])
        same = {r["encoder"]: r for r in rows if (r["labels"], r["probe"], r["pooling"]) == key}
        cells = [
            f"{same[e][name]:.1f} ± {same[e]['deviation']:.1f}" if e in same else "-" for e in ("pretrained", *others)
        ]
        over = [difference(row["above"][o]) if o in row["above"] else "-" for o in others]
        lines.append((*key, *cells, f"{row['none']:.1f}", *over))
    return f"{WORDS[name]} × 100", heads, lines


def by_labels(rows: list[Row], probe: str) -> tuple[list[str], dict[str, list[tuple[float, float]]]]:
    """One probe over the number of labels: these numbers, or `all`, and (value, deviation) x 100 by encoder.

    Of the pooling that is best for the trained encoder, as in `verdict`.
    """
    few, found = list(dict.fromkeys(row["labels"] for row in rows if row["probe"] == probe)), {}
    for labels in few:
        there = [r for r in rows if (r["probe"], r["labels"]) == (probe, labels)]
        best = max((r for r in there if r["encoder"] == "pretrained"), key=lambda row: row[row["measure"]])
        for row in there:
            if row["pooling"] == best["pooling"]:
                found.setdefault(row["encoder"], []).append((row[best["measure"]], row["deviation"]))
    return few, found


def measures(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows with each measure in the place of the one that decides, which comes last."""
    others = {name: [r | r["others"][name] | {"measure": name} for r in rows] for name in rows[0]["others"]}
    return others | {rows[0]["measure"]: rows}


def kept(folder: Path) -> list[Row]:
    """What the probe has left in a run's folder; nothing, where it has not, or an earlier version did."""
    file = folder / KEPT
    rows = json.loads(file.read_text()) if file.is_file() else []
    return rows if rows and "step" in rows[0] else []


def show(rows: list[Row], every: bool) -> None:
    """Print the table of the measure that decides, and what it says; with `every`, the other measures' before it."""
    for part in list(measures(rows).values()) if every else [rows]:
        title, heads, lines = table_of(part)
        printed(title, heads, lines)
    task, mine = TASKS[rows[0]["task"]], [r for r in rows if r["encoder"] == "pretrained"]
    print(NOTE)
    answer = "always answering the largest class" if task.name == "classes" else "an answer without a look at the row"
    for other in mine[0]["above"]:
        there = [r["above"][other]["sure"] for r in mine if other in r["above"]]
        name = (OTHERS | {task.none: answer})[other]
        print(f"{sum(there)} of {len(there)} cells are above {name} by more than two standard errors")
    for _, text in verdict(rows):
        print(text)
    if "all" in {r["labels"] for r in mine} and not all(r["above"]["random"]["sure"] for r in mine):
        print(
            "with many labels an untrained encoder may do as well: try --labels 2,10, or a test split of other sources"
        )


NOTE = (
    "over: the mean of paired differences (same rows, same draws), ± their deviation over draws, and the standard "
    "error of the mean, of draws and test rows; sure where it is more than two of these\n"
    "plain: the data itself, without an encoder: few pixels, mean and deviation of each log-mel bin, TF-IDF of words\n"
    "pooling: native is what the exported model's own head reads, mean that of all pieces (of text: tokens)"
)


def print_labels(task, rows: list[Row], test_y) -> None:
    """What the linear probe of the native vector makes of each label, with the most labelled rows."""
    last = rows[-1]["labels"]
    rows = [r for r in rows if (r["probe"], r["pooling"], r["labels"]) == ("linear", "native", last)]
    heads = (f"{WORDS[name]} × 100, {r['encoder']}" for name in task.measures for r in rows)
    lines = []
    for label, count in zip(task.names, test_y.sum(0), strict=True):
        found = [r["by_label"][label][name] for name in task.measures for r in rows]
        lines.append((label, f"{count:,}", *("-" if value is None else f"{value:.1f}" for value in found)))
    printed("label by label, linear, native", ("label", "rows to judge with it", *heads), lines)


def printed(title: str, heads: tuple[str, ...], lines: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*heads, title=title, title_justify="left")
    for line in lines:
        table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 240).print(table)  # a file has room for all of a line


def difference(above: dict) -> str:
    """`+3.1 ± 2.0 (error 0.7): gain`."""
    deviation = "" if above["deviation"] is None else f" ± {above['deviation']:.1f}"
    text = f"{above['mean']:+.1f}{deviation} (error {above['error']:.1f})"
    if above["sure"]:
        return f"{text}: gain"
    return f"{text}: {'loss' if -above['mean'] > 2 * above['error'] else 'not sure'}"
