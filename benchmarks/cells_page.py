"""The tables of docs/benchmarks.md from the lines of `cells.py`: all cells, and those with more than one seed."""

import statistics

from cells import MODALITIES, ROOT, SAMPLES, SCATTER, by_probe, lines, modality_of, names, objective_of
from pages import between


def compared(result: dict, known: dict) -> tuple[list[float], list[float]]:
    """What a cell is judged by: its scores, and those of the encoder without pretraining."""
    kinds = ("probe", "probe") if by_probe(result["cell"]) else ("finetuned", "scratch")
    mine, other = (max(r[kind].values(), key=statistics.mean) for r, kind in zip((result, known), kinds, strict=True))
    return mine, other


def gain_of(result: dict, known: dict) -> float:
    mine, other = compared(result, known)
    return statistics.mean(mine) - statistics.mean(other)


def text_of(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.pstdev(values):.1f}"


def table(done: dict) -> str:
    """The tables of docs/benchmarks.md: all cells, and those with more than one seed."""
    rows = [
        "| cell | samples | CPU min | probe, native / mean | random | fine-tuned | scratch | plain | RankMe | counts |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    count = clear = run = 0
    for name in names():
        known, result = done.get(f"reference_{modality_of(name)}"), done.get(name)
        if name.startswith("reference") or "#" in name or not known or not result:
            continue
        mine, _ = compared(result, known)
        gain = gain_of(result, known)
        counts = gain > statistics.pstdev(mine)
        run, count, clear = run + 1, count + counts, clear + (counts and gain >= 5)
        probe, random = (" / ".join(text_of(r["probe"][p]) for p in ("native", "mean")) for r in (result, known))
        finetuned, scratch = (
            text_of(max(r[kind].values(), key=statistics.mean)) if kind in r else "–"
            for r, kind in ((result, "finetuned"), (known, "scratch"))
        )
        rows.append(
            f"| {modality_of(name)} {objective_of(name)} | {result['samples']:,} | {result['cpu_minutes']:.1f} "
            f"| {probe} | {random} | {finetuned} | {scratch} | {known['plain']:.1f} | {result['rankme'] or 0:.1f} "
            f"| {'yes' if counts else 'no'}, {gain:+.1f} ({'probe' if by_probe(name) else 'fine-tuned'}) |"
        )
    rows += ["", f"{run} of {len(MODALITIES) * len(SAMPLES)} cells run, {count} count, {clear} by 5 points."]
    return "\n".join(rows) + scatter(done)


def scatter(done: dict) -> str:
    """Gains of the cells with more than one seed."""
    rows = ["", "", "| cell | gain by seed | deviation |", "|---|---|---|"]
    for name in SCATTER:
        known = done.get(f"reference_{modality_of(name)}")
        seeds = [done[n] for n in (name, f"{name}#1", f"{name}#2") if n in done]
        if known and len(seeds) > 1:
            gains = [gain_of(line, known) for line in seeds]
            numbers = ", ".join(f"{g:+.1f}" for g in gains)
            rows.append(f"| {name.replace('_', ' ', 1)} | {numbers} | {statistics.stdev(gains):.1f} |")
    return "\n".join(rows) if len(rows) > 4 else ""


BEGIN, END = "<!-- made by benchmarks/cells.py --docs -->", "<!-- end -->"


def with_table(page: str) -> str:
    """The page with the table of the lines that there are."""
    return between(page, BEGIN, END, table(lines()))


def write_docs() -> None:
    page = ROOT / "docs" / "benchmarks.md"
    page.write_text(with_table(page.read_text()))
