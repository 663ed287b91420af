"""Probe: is a run any good? Frozen features, always beside the same encoder untrained, the start, and plain data.

python probe.py runs/mine [--data other] [--labels 2,10] [--draws 20] [--group patient]
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Literal

from triptych.training.errors import UserError, at_home, one_line_exit

Values = dict[tuple[str, str, str], dict[str, dict[str, Any]]]  # by cell, encoder and measure: arrays `[draws u]`
SAMPLES = 2000  # of a fine-tuning, by default
PAGE = "triptych.evaluation.report"  # makes a run's page
FEW_DRAWS = 10  # of few labels, by default; three are luck


def probe(
    run: str | os.PathLike,
    data: str | None = None,
    column: str | None = None,
    label_column: str | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    task: Literal["classes", "several", "regression"] | None = None,
    group: str | None = None,
    metadata: str | None = None,
    labels: list[int] | None = None,
    draws: int = FEW_DRAWS,
    finetune: int | None = None,
    finetune_rate: float = 1e-3,
    most: int = 10_000,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
) -> list[dict]:
    """Linear probe and nearest neighbours on frozen features, beside the same encoder at random initialisation.

    Beside it stand plain data, too (small pixels, means and deviations of log-mel bins, TF-IDF of words: no encoder at
    all), and of a run that started from a published checkpoint that one. All are compared on the same rows, with the
    same draws of labels.

    Args:
        run: folder of the run, or of one of its checkpoints.
        data: data with labels. Default: what the run was trained on. From Python also a `datasets.Dataset`, one a
            split, or a dictionary of columns: the samples', named after the modality, and `label`.
        column: column of samples. Default: the run's own, where the data has it, or the one of the modality's type.
        label_column: column of labels, or several of 0 and 1 with commas between. Default: `label`, or the one class
            label.
        train_split: split whose labels the probe learns from.
        test_split: split it is judged on. Default: `test` or `validation`, by any of their names; where there is none
            with labels, a fifth of each class of the other is held out.
        task: what labels are: one of several `classes`, `several` labels a row, or a quantity (`regression`). Default:
            lists and words with `|` between are several, fractions and many numbers a quantity.
        group: rows of one group (patient, speaker, recording) are never on both sides: a column, `file`, `folder`, or a
            regular expression, whose first parenthesis in a file's path is the group. Default: that of the run's data.
        metadata: a table about the files of a folder, such as their labels, by a column of their names. Default: those
            called `metadata` that lie beside them.
        labels: labels a class, one or more numbers, such as 2,10; where there are no classes, labelled rows. Default:
            all.
        draws: label draws, at least 3; the mean and deviation over them are printed. Of all labels there is one draw.
        finetune: also fine-tune each encoder, from scratch too, on so many training samples, with the same draws and
            one recipe. Without a number: 2,000.
        finetune_rate: its peak learning rate; for a large published encoder try 1e-4.
        most: rows of each split that are used at most.
        device: `auto` takes a GPU if there is one. Features are float32 on both.
        threads: threads for torch. Default: torch's own choice.

    Returns:
        One dictionary a row of the table, also written to `probe.json` in the run's folder, which the run's page shows.
    """
    import dataclasses
    from itertools import product

    import torch

    from triptych.evaluation import plain
    from triptych.evaluation.features import PLAIN, POOLINGS, extract
    from triptych.evaluation.labels import splits
    from triptych.evaluation.load import from_run, published
    from triptych.evaluation.probe_table import KEPT, print_labels, show
    from triptych.evaluation.probes import PROBES, measured, outputs
    from triptych.training.checkpoint import write_aside
    from triptych.training.engine import pick_device
    from triptych.training.finding import elsewhere
    from triptych.training.memory import held
    from triptych.training.once import walked_once
    from triptych.training.sources import known_column

    if draws < 3:
        raise UserError(f"draws {draws}: with fewer than 3 there is no telling luck from gain")
    for name, least in (
        ("most", most),
        ("threads", threads),
        ("finetune", finetune),
        *(("labels", n) for n in labels or ()),
    ):
        if least is not None and least < 1:
            raise UserError(f"{name} {least} is below 1")
    if threads:
        torch.set_num_threads(threads)
    config, objective, checkpoint = from_run(run)
    modality = objective.backbone.modality
    place = pick_device(dataclasses.replace(config.run, device=device))
    with held(config.data.name if data is None else data, modality) as name, walked_once():
        if data is not None:
            known = known_column(name, config.data, modality, train_split)
            other = dataclasses.replace(config.data, group=None, metadata=None)
            config.data = dataclasses.replace(elsewhere(other, name, modality), column=known)
        given = {"column": column, "label_column": label_column, "group": group, "metadata": metadata}
        config.data = dataclasses.replace(config.data, **{k: v for k, v in given.items() if v is not None})
        learn, judge, found, y, test_y, groups = splits(config.data, modality, train_split, test_split, most, task)

    fresh = config.build_modality()
    fresh.load(str(checkpoint / "modality"))
    encoders = {"pretrained": objective.backbone, "random": config.build_objective(fresh).backbone}
    if config.run.init_from and (start := published(config, checkpoint)) is not None:
        encoders["published"] = start
    values: Values = {}
    each: dict[tuple[str, str, str], dict[str, dict]] = {}

    def judge_by(encoder: str, kind: str, few: int | None, x, t, poolings) -> None:
        made = outputs(found, kind, x, y, t, few, draws if few else 1)
        parts = measured(found, made, test_y, groups)
        for pooling in poolings:
            cell = str(few or "all"), kind, pooling
            values.setdefault(cell, {})[encoder] = parts
            if found.name == "several":
                each.setdefault(cell, {})[encoder] = by_label(found, made, test_y)

    for encoder, backbone in encoders.items():
        first = encoder == "pretrained"
        x, t = (extract(backbone, rows, device=place, plain=first) for rows in (learn, judge))
        if first:
            for split, rows, got in (("to learn from", learn, x), ("to judge", judge, t)):
                report_lost(split, len(rows), got)
            y, test_y, groups = y[x.row], test_y[t.row], groups if groups is None else groups[t.row]
            report_rare(found, y, test_y, labels)
            without = plain.taken(learn.select(x.row), judge.select(t.row), x, t)
        assert len(x.row) == len(y) and len(t.row) == len(test_y)  # paired
        check_finite(encoder, x, t)
        for few, kind in product(labels or [None], PROBES):
            for pooling in x.x:
                judge_by(encoder, kind, few, x.x[pooling], t.x[pooling], [pooling])
        for few in labels or [None] if finetune else []:
            how = {"samples": finetune, "rate": finetune_rate, "pooling": "native", "device": place}
            kept = learn.select(x.row), judge.select(t.row)
            made = fine_tuned(backbone, found, *kept, y, few, draws if few else 1, how)
            values.setdefault((str(few or "all"), "finetune", "native"), {})[encoder] = measured(
                found, made, test_y, groups
            )
    if without is not None:
        for few, kind in product(labels or [None], PROBES):
            judge_by(PLAIN, kind, few, *without, POOLINGS)  # the same beside each of them
    none = measured(found, [found.constant(test_y)], test_y, groups)
    rows, step = compared(found, values, none), json.loads((checkpoint / "state.json").read_text())["step"]
    for row in rows:
        if (by_encoder := each.get((row["labels"], row["probe"], row["pooling"]))) is not None:
            row["by_label"] = by_encoder[row["encoder"]]
        row |= {"data": config.data.name, "step": step}
    where = "" if groups is None else f" of {len(set(groups.tolist())):,} groups"
    print(f"{len(y):,} rows to learn from, {len(test_y):,} to judge{where}; {described(found, test_y, none)}")
    if found.name == "several":
        print_labels(found, rows, test_y)
    show(rows, every=found.name != "classes" or uneven(test_y))
    folder = checkpoint.parent if (checkpoint.parent / "config.yaml").is_file() else Path(run)
    write_aside(folder / KEPT, json.dumps(rows, indent=1))
    print(f"{folder / KEPT}: the page of the run shows it when it is written next, python -m {PAGE} {folder}")
    return rows


def fine_tuned(backbone, task, learn, judge, y, few: int | None, draws: int, how: dict[str, Any]) -> list:
    """Outputs `[n k]`, one a draw, of the encoder fine-tuned on that draw's rows."""
    import copy

    from triptych.evaluation.finetune import tuned

    made = []
    for seed in range(draws):
        i = task.draw(y, few, seed)
        made.append(tuned(copy.deepcopy(backbone), task, learn.select(i), y[i], judge, seed=seed, **how))
    return made


def by_label(task, made: list, test_y) -> dict[str, dict[str, float | None]]:
    """Each measure of each label by itself, the mean over draws, × 100; None where all rows have the label, or none."""
    import numpy as np

    found = {name: np.mean([task.parts(name, output, test_y) for output in made], axis=0) for name in task.measures}
    return {
        label: {name: None if np.isnan(values[i]) else 100 * float(values[i]) for name, values in found.items()}
        for i, label in enumerate(task.names)
    }


def compared(task, values: Values, none: dict[str, Any]) -> list[dict]:
    """A row an encoder and cell: the measure that decides and others; of the pretrained, gains over all others.

    `none`: what an answer without a look at the row is made of.
    """
    import numpy as np

    from triptych.evaluation.probes import score

    rows = []
    for (few, kind, pooling), by_encoder in values.items():
        for encoder, mine in by_encoder.items():
            found = {}
            for name, made in mine.items():
                own = score(made)
                # Of one draw, the deviation is that of so many test rows.
                deviation = own.error if own.deviation is None else own.deviation
                found[name] = {name: own.mean, "deviation": deviation, "none": 100 * float(none[name].mean())}
                if encoder == "pretrained":
                    others = {other: its[name] for other, its in by_encoder.items() if other != encoder}
                    others[task.none] = np.broadcast_to(none[name], made.shape)
                    above = {other: score(made, its) for other, its in others.items()}
                    found[name]["above"] = {o: its._asdict() | {"sure": its.sure} for o, its in above.items()}
            row = {"encoder": encoder, "pooling": pooling, "probe": kind, "labels": few, "task": task.name}
            rows.append(row | {"measure": task.decides} | found.pop(task.decides) | {"others": found})
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


def check_finite(encoder: str, *found) -> None:
    """Refuse features of an encoder that broke."""
    import numpy as np

    if not all(np.isfinite(values).all() for part in found for values in part.x.values()):
        raise UserError(
            f"features of the {encoder} encoder are not finite: its weights are broken; probe an earlier checkpoint, "
            "by its folder, and train with a lower learning rate"
        )


def report_rare(task, y, test_y, labels: list[int] | None) -> None:
    """Say which classes or labels are smaller than what is asked of them."""
    import numpy as np

    from triptych.evaluation.labels import unfit
    from triptych.evaluation.measures import LEAST

    if why := unfit(task, y, test_y):
        raise UserError(f"{why}: name another --train_split or --test_split, or raise --most")
    if task.name == "regression":
        return
    if task.name == "several":
        learn, judge = y.sum(0), test_y.sum(0)
    else:
        learn, judge = (np.bincount(values, minlength=len(task.names)) for values in (y, test_y))
        most = max(labels or [0])
        if (few := (learn > 0) & (learn < most)).any():
            print(f"fewer than {most} rows to learn from of {some(task.names, few)}: all of them are taken")
    if (rare := (judge > 0) & (judge < LEAST)).any():
        print(f"fewer than {LEAST} rows to judge of {some(task.names, rare)}: not in measures class by class")
    for what, missing in (("to learn from", (learn == 0) & (judge > 0)), ("to judge", (judge == 0) & (learn > 0))):
        if missing.any():
            print(f"no row {what} of {some(task.names, missing)}")


def some(classes: list[str], which) -> str:
    names = [c for c, it in zip(classes, which, strict=True) if it]
    if len(names) == 1:
        return f"class {names[0]}"
    return f"{len(names)} classes: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def described(task, test_y, none) -> str:
    """What the labels are, and what one gets who looks at no row."""
    import numpy as np

    figures = {name: f"{100 * float(values.mean()):.1f}" for name, values in none.items()}
    if task.name == "classes":
        largest = np.bincount(test_y).argmax()
        return f"{len(task.names)} classes; always answering the largest ({task.names[largest]}): {figures['accuracy']}"
    if task.name == "several":
        each = test_y.sum(1).mean()
        return f"{len(task.names)} labels, {each:.1f} a row; mAP at random: {figures['mean_average_precision']}"
    return f"numbers from {test_y.min():g} to {test_y.max():g}, deviation {test_y.std():.3g}"


def uneven(test_y) -> bool:
    """Is accuracy misleading: has the largest class more than twice its even share, or three quarters of the rows?"""
    import numpy as np

    share = np.bincount(test_y) / len(test_y)
    return share.max() > min(0.75, 2 / max(1, (share > 0).sum()))


def listed(argv: list[str]) -> list[str]:
    """`--labels 2 10`, `--labels 2,10` -> `--labels [2,10]`, which the parser reads. `--data.column` is `--column`."""
    argv = [f"--finetune={SAMPLES}" if bare(argv, i) else word for i, word in enumerate(argv)]
    text = re.sub(r"(?m)^--data\.(?=((label_)?column|group|metadata)\b)", "--", "\n".join(argv))
    return re.sub(
        r"(?<=--labels)[\n=]([\d,\n]+)(?=\n|$)", lambda m: "\n[" + ",".join(re.findall(r"\d+", m[1])) + "]", text
    ).split("\n")


def bare(argv: list[str], i: int) -> bool:
    """Is it `--finetune` without a number?"""
    return argv[i] == "--finetune" and not (i + 1 < len(argv) and argv[i + 1].isdigit())


def main(argv: list[str] | None = None, program: str = "probe.py") -> None:
    from jsonargparse import auto_cli

    with one_line_exit(program):
        argv = listed(at_home(sys.argv[1:] if argv is None else argv))
        if any(".py:" in argument for argument in argv):  # code of the user's own
            from triptych.training import own

            argv = own.taken(argv)
        auto_cli(probe, args=argv, as_positional=True, exit_on_error=False, prog=program)


if __name__ == "__main__":
    main()
