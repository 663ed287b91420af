"""What `probe.py` found, as a part of the page: over the number of labels, and as its tables."""

import os
from functools import partial

from triptych.evaluation import probe_table
from triptych.evaluation.report_page import DASHES, MARKERS, OKABE_ITO, Section, drawn, grid, table, words
from triptych.evaluation.report_run import Run, private


def probe_section(run: Run, name: str) -> Section:
    """What `probe.py` printed: the measure that decides, and the others."""
    *others, first = [probe_table.table_of(rows) for rows in probe_table.measures(run.probed).values()]
    kinds = [(kind, probe_table.by_labels(run.probed, kind)) for kind in dict.fromkeys(r["probe"] for r in run.probed)]
    over = [
        drawn(f"{first[0]}, {kind}, best pooling", partial(by_labels, *found, first[1][0]))
        for kind, found in kinds
        if len(found[0]) > 1
    ]
    body = (grid(over) if over else "") + f"<h3>{words(first[0])}</h3>" + table(first[2], first[1])
    more = "".join(f"<h3>{words(title)}</h3>" + table(lines, heads) for title, heads, lines in others)
    body += f"<details><summary>Other measures</summary>{more}</details>" if more else ""
    data = private(run.probed[0]["data"], run)
    data = os.path.basename(data.rstrip("/")) if os.path.isabs(data) else data
    note = f"probe.py on {data}, of step {run.probed[0]['step']:,}. {probe_table.NOTE}"
    return Section(f"Probe{f': {name}' if name else ''}", body, note)


def by_labels(few: list[str], cells: dict[str, list[tuple[float, float]]], what: str, axes) -> list[tuple]:
    """The encoder and what it is beside, over the number of labels."""
    said = []
    for number, (name, line) in enumerate(cells.items()):
        values, deviations = zip(*line, strict=True)
        axes.errorbar(
            range(len(few)), values, deviations, color=OKABE_ITO[number], lw=1.4, label=name, capsize=2,
            marker=MARKERS[number], markersize=4, linestyle=DASHES[number],
        )  # fmt: skip
        said += [(x, y, f"{few[x]} {what}, {name}: {y:.1f} ± {d:.1f}") for x, (y, d) in enumerate(line)]
    axes.set_xticks(range(len(few)), few)
    axes.set_xlabel(what)
    axes.margins(x=0.08)
    axes.legend(fontsize=8)
    return said
