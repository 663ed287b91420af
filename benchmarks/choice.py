"""Is one word enough? `train.py --data X --minutes 10`, and nothing else, on eight sets; and the sizes of ten others.

    python benchmarks/choice.py path/to/data [--minutes 10] [--only fsdd] [--threads 2] [--work runs/choice]
    python benchmarks/choice.py path/to/data --sizes     # what is chosen, without training, into docs/sizes.md
    python benchmarks/choice.py --docs                   # the table of docs/sizes.md from the lines that there are

`path/to/data` holds folders with train.parquet and test.parquet. A set that is finished is a line of
`benchmarks/choice.jsonl`, and is not run again; a run that was cut off goes on. Judged are ten labels a class, five
draws, linear, the better pooling of each encoder: trained beside untrained of the same size, on the same rows and
draws. A set counts where the difference is more than a deviation (over draws) of the trained one.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from cells import split_by_speaker
from pages import between, lines_of

ROOT = Path(__file__).resolve().parents[1]
LINES, PAGE = ROOT / "benchmarks" / "choice.jsonl", ROOT / "docs" / "sizes.md"
# By set, the column of labels.
SETS = dict.fromkeys("cifar10 clothing fsdd an4 esc10 ag_news subj imdb".split(), "label") | {"an4": "gender"}
PER_CLASS, DRAWS, MOST = 10, 5, 2000
SPEEDS = {"20 minutes on two cores": (8e10, 20), "20 hours on a GPU": (5e13, 1200)}  # operations a second, minutes
# What ten further sets measure, from 28 px to 2,000 px, half a second to an hour, tweets to books: rows and measures.
MADE = {
    "digits of 28 px": ("image", 60_000, "28×28 px, grey", {"side": 28, "aspect": 1, "alike": 1, "channels": 1}),
    "photographs": ("image", 100_000, "500×375 px", {"side": 375, "aspect": 1.33, "alike": 0.6, "channels": 3}),
    "radiographs": ("image", 1500, "512×512 px, grey", {"side": 512, "aspect": 1, "alike": 1, "channels": 1}),
    "scans": ("image", 20_000, "2000×2800 px, grey", {"side": 2000, "aspect": 0.71, "alike": 1, "channels": 1}),
    "strips": ("image", 5000, "640×128 px, grey", {"side": 128, "aspect": 5, "alike": 1, "channels": 1}),
    "commands": ("audio", 30_000, "0.5 s, 16 kHz", {"seconds": 0.5, "most": 0.5, "mean": 0.5, "rate": 16_000}),
    "birds": ("audio", 30, "2 to 10 min, 44.1 kHz", {"seconds": 360, "most": 480, "mean": 360, "rate": 44_100}),
    "lectures": ("audio", 200, "1 h, 48 kHz", {"seconds": 3600, "most": 3600, "mean": 3600, "rate": 48_000}),
    "tweets": ("text", 1_000_000, "25 tokens", {"tokens": 25, "most": 60, "mean": 28, "whole": 2.8e7}),
    "books": ("text", 2000, "100,000 tokens", {"tokens": 1e5, "most": 2e5, "mean": 1e5, "whole": 2e8}),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/choice"))
    parser.add_argument("--sizes", action="store_true", help="print and write what is chosen, and train nothing")
    parser.add_argument("--docs", action="store_true", help="write the table of the lines that there are")
    arguments = parser.parse_args()
    if arguments.sizes:
        return PAGE.write_text(placed(PAGE.read_text(), "sizes", sizes(arguments.data)))
    if not arguments.docs:
        import torch

        torch.set_num_threads(arguments.threads)
        done = lines()
        for name in arguments.only:
            if name in done:
                continue
            done[name] = {"set": name, "minutes": arguments.minutes} | one(name, arguments)
            with open(LINES, "a") as file:
                file.write(json.dumps(done[name]) + "\n")
            print(json.dumps(done[name]), flush=True)
    print(table(lines()))
    PAGE.write_text(placed(PAGE.read_text(), "learns", table(lines())))


def lines() -> dict[str, dict]:
    return {line["set"]: line for line in lines_of(LINES)}


def place(name: str, data: Path, work: Path) -> Path:
    """The folder of a set; of fsdd one with the speakers apart."""
    if name != "fsdd":
        return data / name
    made = work / "sets" / name
    made.mkdir(parents=True, exist_ok=True)
    split_by_speaker(data / name, made)
    return made


def one(name: str, arguments) -> dict:
    """Train by one word; judge it beside the untrained encoder of the same size."""
    import yaml

    from triptych.probe import probe
    from triptych.train import main as train

    source, folder = place(name, arguments.data, arguments.work), arguments.work / name
    began = time.perf_counter()
    train(["--data", str(source), "--minutes", f"{arguments.minutes:g}", "--output_dir", str(folder)])
    minutes = (time.perf_counter() - began) / 60
    rows = probe(folder, data=str(source), label_column=SETS[name], labels=[PER_CLASS], draws=DRAWS, most=MOST)
    best = {
        encoder: max(
            (r for r in rows if r["encoder"] == encoder and r["probe"] == "linear"), key=lambda r: r["accuracy"]
        )
        for encoder in ("random", "pretrained")
    }
    config = yaml.safe_load((folder / "config.yaml").read_text())
    chosen = {key for key, origin in config["origin"].items() if origin == "chosen"} - {"probe_data"}  # a path
    kept = {key: value for key, value in flat(config).items() if key in chosen}
    return {
        "took": minutes,
        "chosen": kept,
        "untrained": [best["random"]["accuracy"], best["random"]["deviation"], best["random"]["pooling"]],
        "trained": [best["pretrained"]["accuracy"], best["pretrained"]["deviation"], best["pretrained"]["pooling"]],
    }


def flat(config: dict) -> dict:
    from triptych.training.settings import flatten

    return flatten({key: value for key, value in config.items() if key != "origin"})


def table(done: dict[str, dict]) -> str:
    rows = ["| set | chosen | minutes | untrained | trained | gain | counts |", "|---|---|---|---|---|---|---|"]
    for name, line in done.items():
        gain = line["trained"][0] - line["untrained"][0]
        scores = " | ".join(f"{x:.1f} ± {d:.1f} ({p})" for x, d, p in (line["untrained"], line["trained"]))
        counts = "yes" if gain > line["trained"][1] else "no"
        made = said(line["chosen"])
        rows.append(f"| {name} | {made} | {line['took']:.1f} | {scores} | {gain:+.1f} | {counts} |")
    return "\n".join(rows)


def said(chosen: dict) -> str:
    """A choice in a few words."""
    sizes = [f"{key.split('.')[1]} {value}" for key, value in chosen.items() if key.startswith("modality.")][1:]
    encoder = f"{chosen.get('encoder.width')}x{chosen.get('encoder.depth')}"
    batch = f"batch {chosen.get('per_device_train_batch_size')}, rate {chosen.get('learning_rate'):g}"
    return "; ".join([*sizes, encoder, chosen.get("objective.name", ""), batch, f"{chosen.get('max_steps')} steps"])


def sizes(data: Path | None) -> str:
    """What the rule makes of ten sets that are only described and of those that are there, for two budgets."""
    from triptych.modalities.survey import Survey
    from triptych.training.choice import options
    from triptych.training.command_line import read
    from triptych.training.finding import find
    from triptych.training.sources import rows_of

    found = {name: (kind, Survey(rows, native, "", measures)) for name, (kind, rows, native, measures) in MADE.items()}
    for name in SETS if data is not None else ():
        config = read({"data.name": str(data / name), "minutes": 20})
        modality = config.build_modality()
        rows, _ = rows_of(find(config.data, modality), config.data, modality, "train")
        found[name] = config.modality["name"], modality.survey(rows.table, rows.column)
    made = [
        "| data | rows | measures | " + " | ".join(SPEEDS) + " |",
        "|---|---|---|" + "---|" * len(SPEEDS),
    ]
    for name, (kind, survey) in found.items():
        cells = []
        for speed, minutes in SPEEDS.values():
            config = read(
                {"modality.name": kind, "objective.name": "simclr", "minutes": minutes, "data.name": "digits"}
            )
            got = options(config, survey, speed)
            chosen = {key: value for key, value in got.items() if key.startswith("modality.")}
            adapter = read({"modality.name": kind, **chosen}).build_modality()
            encoder = f"{got['encoder.width']}x{got['encoder.depth']}"
            cells.append(f"{adapter.trained()}; {encoder}, batch {got['per_device_train_batch_size']}")
        made.append(f"| {name} | {survey.rows:,} | {survey.native} | " + " | ".join(cells) + " |")
    return "\n".join(made)


def placed(page: str, which: str, text: str) -> str:
    """docs/sizes.md with a table in its place."""
    return between(page, f"<!-- {which}: made by benchmarks/choice.py -->", f"<!-- end of {which} -->", text)


if __name__ == "__main__":
    sys.exit(main())
