"""Probe: is a run any good? Frozen features, always beside the same encoder untrained.

python probe.py runs/mine [--data other] [--labels 2,10] [--draws 5]
"""

import json
import math
import os
import re
import sys
from pathlib import Path

from training.errors import UserError, at_home, one_line_exit


def probe(
    run: str | os.PathLike,
    data: str | None = None,
    label_column: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    labels: list[int] | None = None,
    draws: int = 3,
    most: int = 10_000,
    threads: int | None = None,
) -> list[dict]:
    """Linear probe and nearest neighbours on frozen features, beside the same encoder at random initialisation.

    Args:
        run: folder of the run, or of one of its checkpoints.
        data: data with labels. Default: what the run was trained on.
        label_column: column of labels. Default: the one class label.
        train_split: split whose labels the probe learns from.
        test_split: split it is judged on; if there is none, a fifth of the other is held out.
        labels: labels a class, one or more numbers, such as 2,10. Default: all.
        draws: label draws, at least 3; the mean and deviation over them are printed. Of all labels there is one draw,
            and the deviation is that of so many test rows.
        most: rows of each split that are used at most.
        threads: threads for torch. Default: torch's own choice.

    Returns:
        One dictionary a row of the table, also written to `probe.json` in the run's folder.
    """
    import dataclasses

    import numpy as np
    import torch

    from evaluation.features import extract
    from evaluation.load import from_run
    from evaluation.probes import PROBES, over_draws
    from training.sources import load, splits_of

    if draws < 3:
        raise UserError(f"draws {draws}: with fewer than 3 there is no telling luck from gain")
    if threads:
        torch.set_num_threads(threads)
    config, objective, checkpoint = from_run(run)
    modality = objective.backbone.modality
    changes = {"label_column": label_column} | ({"name": data, "column": None} if data else {})
    source = dataclasses.replace(config.data, **{k: v for k, v in changes.items() if v is not None or k == "column"})
    train = load(source, modality, train_split).labelled()
    random = np.random.RandomState(0)
    if test_split in splits_of(source, modality):
        test = load(source, modality, test_split).labelled()
        test = test.select(random.permutation(len(test))[:most])
        train = train.select(random.permutation(len(train))[:most])
    else:
        order = random.permutation(len(train))
        cut = max(1, min(len(order) // 5, most))
        train, test = train.select(order[cut : cut + most]), train.select(order[:cut])
        print(f"no split {test_split!r}: {len(test):,} rows held out")

    fresh = config.build_modality()
    fresh.load(str(checkpoint / "modality"))
    untrained = config.build_objective(fresh).backbone
    # Numbered together: a word that one of them lacks must not shift the numbers of the others.
    codes = np.unique(np.concatenate([train.labels(), test.labels()]), return_inverse=True)[1]
    rows, y, test_y = [], codes[: len(train)], codes[len(train) :]
    for name, backbone in (("pretrained", objective.backbone), ("random", untrained)):
        x, kept = extract(backbone, train)
        t, test_kept = extract(backbone, test)
        for pooling in x:
            for kind, judge in PROBES.items():
                for per_class in labels or [None]:
                    mean, deviation = over_draws(
                        judge, x[pooling], y[kept], t[pooling], test_y[test_kept], per_class, draws if per_class else 1
                    )
                    if not per_class:  # binomial
                        deviation = math.sqrt(mean * (100 - mean) / len(test_kept))
                    rows.append(
                        {"encoder": name, "pooling": pooling, "probe": kind, "labels": per_class or "all",
                         "accuracy": mean, "deviation": deviation}
                    )  # fmt: skip
    chance = 100 * np.bincount(test_y).max() / len(test_y)
    print(
        f"accuracy, %; {len(train):,} rows to learn from, {len(test):,} to judge; the largest class alone: {chance:.1f}"
    )
    show(rows)
    (Path(run) / "probe.json").write_text(json.dumps(rows, indent=1))
    return rows


def show(rows: list[dict]) -> None:
    """Print the table, and what it says."""
    from rich.console import Console
    from rich.table import Table

    best = {}
    table = Table("labels a class", "probe", "pooling", "pretrained", "random", "gain")
    keys = sorted({(str(r["labels"]), r["probe"], r["pooling"]) for r in rows})
    for key in keys:
        pair = {r["encoder"]: r for r in rows if (str(r["labels"]), r["probe"], r["pooling"]) == key}
        cells = [f"{pair[e]['accuracy']:.1f} ± {pair[e]['deviation']:.1f}" for e in ("pretrained", "random")]
        gain = pair["pretrained"]["accuracy"] - pair["random"]["accuracy"]
        best[key] = gain - pair["pretrained"]["deviation"]
        table.add_row(*key, *cells, f"{gain:+.1f}" if best[key] > 0 else f"{gain:+.1f} (no gain)")
    Console().print(table)
    count = sum(value > 0 for value in best.values())
    print(f"{count} of {len(best)} cells are above the untrained encoder by more than a deviation")
    print("pooling: native is what the exported model's own head reads, mean that of all pieces")
    if count < len(best) and "all" in {r["labels"] for r in rows}:
        print(
            "with many labels an untrained encoder may do as well: try --labels 2,10, or a test split of other sources"
        )


def listed(argv: list[str]) -> list[str]:
    """`--labels 2 10` and `--labels 2,10` -> `--labels [2,10]`, which the parser reads."""
    text = "\n".join(argv)
    return re.sub(
        r"(?<=--labels)[\n=]([\d,\n]+)(?=\n|$)", lambda m: "\n[" + ",".join(re.findall(r"\d+", m[1])) + "]", text
    ).split("\n")


def main(argv: list[str] | None = None) -> None:
    from jsonargparse import auto_cli

    with one_line_exit("probe.py"):
        argv = listed(at_home(sys.argv[1:] if argv is None else argv))
        auto_cli(probe, args=argv, as_positional=True, exit_on_error=False)


if __name__ == "__main__":
    main()
