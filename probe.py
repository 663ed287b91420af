"""Probe: is a run any good? Frozen features, always beside the same encoder untrained, and the published start.

python probe.py runs/mine [--data other] [--labels 2,10] [--draws 20]
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Literal

from triptych.training.errors import UserError, at_home, one_line_exit

FEW_DRAWS = 10  # of few labels, by default; three are luck


def probe(
    run: str | os.PathLike,
    data: str | None = None,
    column: str | None = None,
    label_column: str | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    labels: list[int] | None = None,
    draws: int = FEW_DRAWS,
    most: int = 10_000,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
) -> list[dict]:
    """Linear probe and nearest neighbours on frozen features, beside the same encoder at random initialisation.

    A run that started from a published checkpoint is shown beside that, too. Encoders are compared on the same rows,
    with the same draws of labels.

    Args:
        run: folder of the run, or of one of its checkpoints.
        data: data with labels. Default: what the run was trained on. From Python also a `datasets.Dataset`, one a
            split, or a dictionary of columns: the samples', named after the modality, and `label`.
        column: column of samples. Default: the run's own, where the data has it, or the one of the modality's type.
        label_column: column of labels. Default: `label`, or the one class label.
        train_split: split whose labels the probe learns from.
        test_split: split it is judged on. Default: `test` or `validation`, by any of their names; where there is none
            with labels, a fifth of each class of the other is held out.
        labels: labels a class, one or more numbers, such as 2,10. Default: all.
        draws: label draws, at least 3; the mean and deviation over them are printed. Of all labels there is one draw.
        most: rows of each split that are used at most.
        device: `auto` takes a GPU if there is one. Features are float32 on both.
        threads: threads for torch. Default: torch's own choice.

    Returns:
        One dictionary a row of the table, also written to `probe.json` in the run's folder.
    """
    import dataclasses

    import numpy as np
    import torch

    from triptych.evaluation.features import extract
    from triptych.evaluation.labels import number, splits
    from triptych.evaluation.load import from_run, published
    from triptych.evaluation.probes import PROBES, over_draws, score
    from triptych.training.engine import pick_device
    from triptych.training.memory import held
    from triptych.training.sources import known_column

    if draws < 3:
        raise UserError(f"draws {draws}: with fewer than 3 there is no telling luck from gain")
    for name, least in (("most", most), ("threads", threads), *(("labels", n) for n in labels or ())):
        if least is not None and least < 1:
            raise UserError(f"{name} {least} is below 1")
    if threads:
        torch.set_num_threads(threads)
    config, objective, checkpoint = from_run(run)
    modality = objective.backbone.modality
    place = pick_device(dataclasses.replace(config.run, device=device))
    with held(config.data.name if data is None else data, modality) as name:
        if data is not None:
            known = known_column(name, config.data, modality, train_split)
            config.data = dataclasses.replace(config.data, name=name, subset=None, revision=None, column=known)
        given = {"column": column, "label_column": label_column}
        config.data = dataclasses.replace(config.data, **{k: v for k, v in given.items() if v is not None})
        train, test, words = splits(config.data, modality, train_split, test_split, most)
    classes, (y, test_y) = number(words, train.label)

    fresh = config.build_modality()
    fresh.load(str(checkpoint / "modality"))
    encoders = {"pretrained": objective.backbone, "random": config.build_objective(fresh).backbone}
    if config.run.init_from and (start := published(config, checkpoint)) is not None:
        encoders["published"] = start
    hits: dict[tuple, dict[str, np.ndarray]] = {}
    for encoder, backbone in encoders.items():
        learn, judge = extract(backbone, train, device=place), extract(backbone, test, device=place)
        if encoder == "pretrained":
            for split, rows, found in (("to learn from", train, learn), ("to judge", test, judge)):
                report_lost(split, len(rows), found)
            kept_y, kept_test_y = y[learn.row], test_y[judge.row]
            report_rare(classes, kept_y, kept_test_y, labels)
        assert len(learn.row) == len(kept_y) and len(judge.row) == len(kept_test_y)  # paired
        for per_class in labels or [None]:
            for kind, judged in PROBES.items():
                for pooling, x in learn.x.items():
                    hits.setdefault((str(per_class or "all"), kind, pooling), {})[encoder] = over_draws(
                        judged, x, kept_y, judge.x[pooling], kept_test_y, per_class, draws if per_class else 1
                    )
    largest = np.bincount(kept_test_y).argmax()
    constant = (kept_test_y == largest)[None]
    rows = []
    for (per_class, kind, pooling), found in hits.items():
        for encoder in encoders:
            mine = score(found[encoder])
            row = {"encoder": encoder, "pooling": pooling, "probe": kind, "labels": per_class}
            # Of one draw, the deviation is that of so many test rows.
            row |= {"accuracy": mine.mean, "deviation": mine.error if mine.deviation is None else mine.deviation}
            row["largest_class"] = 100 * float(constant.mean())
            if encoder == "pretrained":
                others = {other: found[other] for other in encoders if other != encoder}
                others["largest class"] = np.broadcast_to(constant, found[encoder].shape)
                above = {other: score(found[encoder], its) for other, its in others.items()}
                row["above"] = {other: its._asdict() | {"sure": its.sure} for other, its in above.items()}
            rows.append(row)
    print(
        f"accuracy, %; {len(kept_y):,} rows to learn from, {len(kept_test_y):,} to judge, {len(classes)} classes; "
        f"always answering the largest ({classes[largest]}): {100 * constant.mean():.1f}"
    )
    show(rows)
    (Path(run) / "probe.json").write_text(json.dumps(rows, indent=1))
    return rows


def report_lost(split: str, count: int, found) -> None:
    """Say which rows have no features."""
    if found.bad:
        row, (name, reason) = next(iter(found.bad.items()))
        print(f"{len(found.bad):,} of {count:,} rows {split} cannot be read: left out, such as {name}: {reason}")
    blank = count - len(found.row) - len(found.bad)
    if blank:
        print(f"{blank:,} of {count:,} rows {split} are blank: left out")
    if not len(found.row):
        raise UserError(f"none of {count:,} rows {split} can be used")


def report_rare(classes: list[str], y, test_y, labels: list[int] | None) -> None:
    """Say which classes are smaller than what is asked of them."""
    import numpy as np

    learn, judge = (np.bincount(values, minlength=len(classes)) for values in (y, test_y))
    if (learn > 0).sum() < 2:
        raise UserError("the rows to learn from are of one class only: name another --train_split, or raise --most")
    for what, missing in (("to learn from", (learn == 0) & (judge > 0)), ("to judge", (judge == 0) & (learn > 0))):
        if missing.any():
            print(f"no row {what} of {some(classes, missing)}")
    most = max(labels or [0])
    if (few := (learn > 0) & (learn < most)).any():
        print(f"fewer than {most} rows to learn from of {some(classes, few)}: all of them are taken")


def some(classes: list[str], which) -> str:
    names = [c for c, it in zip(classes, which, strict=True) if it]
    if len(names) == 1:
        return f"class {names[0]}"
    return f"{len(names)} classes: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def show(rows: list[dict]) -> None:
    """Print the table, and what it says."""
    from rich.console import Console
    from rich.table import Table

    mine = [r for r in rows if r["encoder"] == "pretrained"]
    others = [name for name in mine[0]["above"] if name != "largest class"]
    table = Table(
        "labels a class", "probe", "pooling", "pretrained", *others, "largest", *(f"over {o}" for o in others)
    )
    for row in mine:
        key = (row["labels"], row["probe"], row["pooling"])
        same = {r["encoder"]: r for r in rows if (r["labels"], r["probe"], r["pooling"]) == key}
        cells = [f"{same[e]['accuracy']:.1f} ± {same[e]['deviation']:.1f}" for e in ("pretrained", *others)]
        table.add_row(*key, *cells, f"{row['largest_class']:.1f}", *(difference(row["above"][o]) for o in others))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    print(
        "over: the mean of paired differences (same rows, same draws), ± their deviation over draws, and the standard "
        "error of the mean, of draws and test rows; sure where it is more than two of these"
    )
    for other in mine[0]["above"]:
        count = sum(r["above"][other]["sure"] for r in mine)
        what = "always answering the largest class" if other == "largest class" else f"the {other} encoder"
        what = what.replace("random", "untrained").replace("published encoder", "published start")
        print(f"{count} of {len(mine)} cells are above {what} by more than two standard errors")
    print("pooling: native is what the exported model's own head reads, mean that of all pieces (of text: tokens)")
    if "all" in {r["labels"] for r in mine} and not all(r["above"]["random"]["sure"] for r in mine):
        print(
            "with many labels an untrained encoder may do as well: try --labels 2,10, or a test split of other sources"
        )


def difference(above: dict) -> str:
    """`+3.1 ± 2.0 (error 0.7): gain`."""
    deviation = "" if above["deviation"] is None else f" ± {above['deviation']:.1f}"
    text = f"{above['mean']:+.1f}{deviation} (error {above['error']:.1f})"
    if above["sure"]:
        return f"{text}: gain"
    return f"{text}: {'loss' if -above['mean'] > 2 * above['error'] else 'not sure'}"


def listed(argv: list[str]) -> list[str]:
    """`--labels 2 10`, `--labels 2,10` -> `--labels [2,10]`, which the parser reads. `--data.column` is `--column`."""
    text = re.sub(r"(?m)^--data\.(?=(label_)?column\b)", "--", "\n".join(argv))
    return re.sub(
        r"(?<=--labels)[\n=]([\d,\n]+)(?=\n|$)", lambda m: "\n[" + ",".join(re.findall(r"\d+", m[1])) + "]", text
    ).split("\n")


def main(argv: list[str] | None = None, program: str = "probe.py") -> None:
    from jsonargparse import auto_cli

    with one_line_exit(program):
        argv = listed(at_home(sys.argv[1:] if argv is None else argv))
        auto_cli(probe, args=argv, as_positional=True, exit_on_error=False, prog=program)


if __name__ == "__main__":
    main()
