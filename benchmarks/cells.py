"""Every objective on every modality: is the result better than none?

    python benchmarks/cells.py path/to/data [--only image_mae] [--threads 2] [--work runs/cells] [--finetune]
    python benchmarks/cells.py --docs        # write the table of docs/benchmarks.md from the lines that there are

`path/to/data` holds the folders cifar10, fsdd and ag_news with train.parquet and test.parquet. One cell is one config
of configs/ with a number of samples; it pretrains, probes (linear, both poolings, full labels), and adds a line to
`benchmarks/cells.jsonl`, with its resolved settings and their hash; what is there with the same settings is not run
again. The untrained encoder, fine-tuning from scratch and a plain baseline stand beside each. How a cell is judged is
fixed beforehand: those that predict content of hidden pieces (`BY_TUNING`), on pictures and sound, by fine-tuning with
few labels against scratch; all others, and all on text, by the linear probe against random initialisation. It counts
when its mean minus one deviation (over label draws) is above the reference. Fine-tuning costs as much as pretraining:
the cells that it does not judge are fine-tuned with `--finetune` only. `NAME#1` is a cell with another seed.
"""

import argparse
import hashlib
import json
import os
import time
from pathlib import Path

from pages import lines_of

ROOT = Path(__file__).resolve().parents[1]
LINES = ROOT / "benchmarks" / "cells.jsonl"
BY_TUNING = ("mae", "masked", "data2vec", "position", "codes")
# Cells with two more seeds, named before any was run: the scatter that a reader has to expect.
SCATTER = ("image_mae", "image_simclr", "image_vicreg", "audio_masked", "audio_simclr", "audio_lejepa")
SCATTER += ("text_masked", "text_simclr", "text_dino")
# DIET learns a class once an epoch: so many rows of training, or minutes would be three epochs.
ROWS = {"diet": 5_000}
# Samples of pretraining, by modality: about three to four minutes of one core.
SAMPLES = {
    "mae": (250_000, 200_000, 110_000), "masked": (150_000, 120_000, 110_000), "simclr": (80_000, 50_000, 47_000),
    "byol": (70_000, 50_000, 140_000), "moco": (70_000, 50_000, 40_000), "simsiam": (80_000, 50_000, 47_000),
    "dino": (40_000, 30_000, 30_000), "swav": (50_000, 40_000, 35_000), "diet": (160_000, 100_000, 90_000),
    "barlow_twins": (80_000, 50_000, 47_000), "vicreg": (80_000, 50_000, 47_000), "lejepa": (60_000, 40_000, 40_000),
    "visreg": (60_000, 40_000, 40_000), "data2vec": (60_000, 50_000, 40_000), "ijepa": (100_000, 80_000, 60_000),
    "position": (200_000, 160_000, 110_000), "codes": (150_000, 120_000, 110_000),
    "frozen_teacher": (120_000, 80_000, 60_000),
}  # fmt: skip
# Spoken digits last 0.4 s: a window of 1 s would be padding for the most part.
SIZES = {"audio": {"seconds": 0.64, "mel_bins": 64, "tile": [64, 4]}}
# data, column, labels a class of fine-tuning, two numbers of its samples of which the better counts
DATA = {
    "image": ("cifar10", "image", 50, 8_000, 24_000),
    "audio": ("fsdd", "audio", 20, 2_560, 7_680),
    "text": ("ag_news", "text", 50, 4_000, 12_000),
}
MODALITIES = tuple(DATA)
DRAWS, PROBE_ROWS, TEST_ROWS = 5, 10_000, 2_000
TEST_SPEAKERS = ("theo", "yweweler")  # of fsdd's six: nobody is in both parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--only", nargs="+", default=[""], help="cells whose name has one of these")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/cells"))
    parser.add_argument(
        "--teacher", type=Path, help="native folder of a text encoder, for text_frozen_teacher; else it is our SimCLR's"
    )
    parser.add_argument("--finetune", action="store_true", help="also the cells that the probe judges")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="float32 on either")
    parser.add_argument("--to", type=Path, default=LINES, help="file of the lines")
    parser.add_argument("--docs", action="store_true", help="write the table of docs/benchmarks.md, and run nothing")
    arguments = parser.parse_args()
    from cells_page import table, write_docs

    if arguments.docs:
        return write_docs()
    arguments.work.mkdir(parents=True, exist_ok=True)

    import torch

    torch.set_num_threads(arguments.threads)
    done = lines(arguments.to)
    for name in names():
        modality = modality_of(name)
        if not any(only in name or name == f"reference_{modality}" and modality in only for only in arguments.only):
            continue
        if name in done and agrees(done[name]):
            continue
        run = reference if name.startswith("reference") else cell
        settings = resolved(name)
        line = {"cell": name, "config": fingerprint(settings)} | run(name, modality, arguments) | {"settings": settings}
        done = lines(arguments.to) | {name: line}
        arguments.to.write_text("".join(json.dumps(done[n]) + "\n" for n in names() if n in done))
        print(json.dumps({k: v for k, v in line.items() if k != "settings"}), flush=True)
    print(table(done))


def names() -> list[str]:
    """All that can be run, in the order of the table."""
    cells = [f"{modality}_{objective}" for modality in MODALITIES for objective in SAMPLES]
    again = [f"{name}#{seed}" for name in SCATTER for seed in (1, 2)]
    return [f"reference_{modality}" for modality in MODALITIES] + cells + again


def modality_of(name: str) -> str:
    first, _, second = name.partition("_")
    return second if first == "reference" else first


def objective_of(name: str) -> str:
    return name.partition("_")[2].partition("#")[0]


def lines(file: Path = LINES) -> dict[str, dict]:
    """Finished cells by name."""
    return {line["cell"]: line for line in lines_of(file)}


def samples_of(name: str) -> int:
    return SAMPLES[objective_of(name)][MODALITIES.index(modality_of(name))]


def settings_of(name: str) -> dict:
    """What a cell is run with, but for its folder and the place of its data: its shipped recipe, so many samples."""
    from triptych.training.command_line import load_yaml, merge, unfold

    name, _, seed = name.partition("#")
    modality = modality_of(name)
    given = unfold(load_yaml(ROOT / "configs" / f"{name}.yaml"))
    changes = {"seed": int(seed)} if seed else {}
    changes |= {"max_steps": samples_of(name) // given["per_device_train_batch_size"]}
    changes |= {"modality": SIZES.get(modality, {}), "data": {"name": DATA[modality][0], "column": DATA[modality][1]}}
    return merge(given, changes)


# Options of the run that decide figures; all of the modality, the encoder and the objective do.
DECIDE = ["learning_rate", "optim", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"]
DECIDE += ["warmup_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "seed"]


def resolved(name: str) -> dict:
    """The settings of a cell that decide its figures, by their dotted names."""
    from triptych.training.settings import defaults_of, flatten, plain

    if name.startswith("reference"):
        name = f"{modality_of(name)}_simclr"
    found = plain(defaults_of(modality_of(name), objective_of(name))) | flatten(settings_of(name))
    kept = {k: v for k, v in found.items() if v is not None and (k in DECIDE or k.partition(".")[1])}
    return kept | ({"rows": ROWS[objective_of(name)]} if objective_of(name) in ROWS else {})


def fingerprint(settings: dict) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def agrees(line: dict) -> bool:
    """Whether a line was measured with what is shipped. An option that came later has what the code always did."""
    from triptych.training.settings import plain, signatures

    now, was = json.loads(json.dumps(resolved(line["cell"]))), line["settings"]
    always = json.loads(json.dumps(plain(signatures(now["modality.name"], now["objective.name"]))))
    return line["config"] == fingerprint(was) and now == {k: always.get(k, v) for k, v in now.items()} | was


def config_of(name: str, modality: str, data: Path, folder: Path, teacher: Path | None = None):
    from triptych.training.command_line import merge, read

    source = DATA[modality][0]
    path = data / source / "train.parquet" if modality != "audio" else folder.parent / "fsdd_train.parquet"
    if objective_of(name) in ROWS:
        path = fewer(path, ROWS[objective_of(name)], folder.parent)
    changes = {"output_dir": str(folder), "logging_steps": 50, "save_steps": 0, "eval_steps": 0, "report_to": "none"}
    changes |= {"data": {"name": str(path)}}
    if teacher is not None:
        changes |= {"objective": {"teacher": str(teacher)}}
        if modality == "text":
            changes |= {"modality": {"tokenizer": str(teacher)}}
    return read(merge(settings_of(name), changes))


def rows_of(config, modality_name: str, modality, data: Path, work: Path):
    """Training and test rows, and their labels; fsdd is cut by speaker."""
    import dataclasses

    import numpy as np

    from triptych.training.sources import load

    source, *_ = DATA[modality_name]
    if modality_name == "audio":
        split_by_speaker(data / source, work)
        paths = [work / f"fsdd_{part}.parquet" for part in ("train", "test")]
    else:
        paths = [data / source / f"{part}.parquet" for part in ("train", "test")]
    loaded = [load(dataclasses.replace(config.data, name=str(path)), modality) for path in paths]
    random = np.random.RandomState(0)
    train, test = (
        r.select(random.permutation(len(r))[:most]) for r, most in zip(loaded, (PROBE_ROWS, TEST_ROWS), strict=True)
    )
    return train, train.labels(), test, test.labels()


def fewer(path: Path, rows: int, work: Path) -> Path:
    """Some rows of a table, the same each time."""
    import datasets

    to = work / f"{path.parent.name}_{rows}.parquet"
    if not to.exists():
        table = datasets.load_dataset("parquet", data_files=str(path), split="train").shuffle(seed=0)
        table.select(range(min(rows, len(table)))).to_parquet(str(to))
    return to


def split_by_speaker(folder: Path, work: Path) -> None:
    import datasets

    if (work / "fsdd_test.parquet").exists():
        return
    files = {part: str(folder / f"{part}.parquet") for part in ("train", "test")}
    both = datasets.concatenate_datasets(list(datasets.load_dataset("parquet", data_files=files).values()))
    both = both.cast_column("audio", datasets.Audio(decode=False))
    known = [speaker in TEST_SPEAKERS for speaker in both["speaker"]]
    for part, wanted in (("train", False), ("test", True)):
        both.select([i for i, k in enumerate(known) if k == wanted]).to_parquet(str(work / f"fsdd_{part}.parquet"))


def fitted(config):
    """The modality with what it takes from the training rows."""
    from triptych.training.sources import load

    modality = config.build_modality()
    rows = load(config.data, modality)
    modality.fit(rows.table, rows.column)
    return modality


def tuned(make, train, y, test, test_y, modality: str, samples: int, rate: float, device: str) -> list[float]:
    from triptych.evaluation.finetune import finetune
    from triptych.evaluation.probes import draw

    scores = []
    for seed in range(DRAWS):
        index = draw(y, DATA[modality][2], seed)
        backbone = make(seed)
        rows = [train.select(index), test]
        for part in rows:
            part.modality = backbone.modality
        given = backbone, rows[0], y[index], rows[1], test_y, samples, rate
        scores.append(finetune(*given, batch=32, seed=seed, device=device))
    return scores


def budgets(make, train, y, test, test_y, modality: str, device: str) -> dict[str, list[float]]:
    """Fine-tuning with fewer and more samples, and for sound at two rates; the best one counts, also from scratch."""
    rates = (1e-3, 3e-3) if modality == "audio" else (1e-3,)
    return {
        f"{samples} {rate}": tuned(make, train, y, test, test_y, modality, samples, rate, device)
        for samples in DATA[modality][3:]
        for rate in rates
    }


def probed(backbone, train, y, test, test_y, device: str = "cpu") -> dict[str, list[float]]:
    """Linear probe over draws of nine tenths of the labels, by pooling."""
    import numpy as np

    from triptych.evaluation.features import extract
    from triptych.evaluation.probes import linear

    (x, kept, _), (t, test_kept, _) = (extract(backbone, rows, device=device) for rows in (train, test))
    scores: dict[str, list[float]] = {pooling: [] for pooling in x}
    for seed in range(DRAWS):
        part = np.random.RandomState(seed).permutation(len(kept))[: int(0.9 * len(kept))]
        for pooling in x:
            hits = linear(x[pooling][part], y[kept][part], t[pooling], test_y[test_kept])
            scores[pooling].append(100 * hits.mean())
    return scores


def reference(name: str, modality: str, arguments) -> dict:
    """What needs no pretraining: the untrained encoder, fine-tuning from scratch, the data itself."""
    source = f"{modality}_simclr"
    if modality == "audio":
        split_by_speaker(arguments.data / "fsdd", arguments.work)
    config = config_of(source, modality, arguments.data, arguments.work / name)
    fit = fitted(config)

    def fresh(seed: int):
        import copy

        config.run.seed = seed
        return config.build_objective(copy.deepcopy(fit)).backbone

    backbone = fresh(0)
    train, y, test, test_y = rows_of(config, modality, backbone.modality, arguments.data, arguments.work)
    return {
        "probe": probed(backbone, train, y, test, test_y, arguments.device),
        "plain": plain(modality, train, y, test, test_y),
        "scratch": budgets(fresh, train, y, test, test_y, modality, arguments.device),
    }


def plain(modality: str, train, y, test, test_y) -> float:
    """Pixels, log-mel mean and deviation, or TF-IDF, under the same probe."""
    import numpy as np

    from triptych.evaluation.probes import linear

    if modality == "text":
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        vectors = TfidfVectorizer(min_df=2, sublinear_tf=True)
        x = vectors.fit_transform(train.table[train.column])
        model = LogisticRegression(max_iter=500, C=10).fit(x, y)
        return 100 * model.score(vectors.transform(test.table[test.column]), test_y)
    if modality == "image":
        train, y = train.select(range(2_000)), y[:2_000]
    values = [plain_features(r) for r in (train, test)]
    if modality == "audio":
        bins = train.modality.mel_bins
        mels = [v.reshape(len(v), -1, bins, train.modality.tile[1]) for v in values]
        values = [np.concatenate([m.mean((1, 3)), m.std((1, 3))], axis=1) for m in mels]
    return 100 * linear(values[0], y, values[1], test_y).mean()


def plain_features(rows):
    """What the data gives without any encoder: `[n, values]` of the modality's evaluation view."""
    import numpy as np
    import torch

    from triptych.modalities import EVALUATION
    from triptych.training.loader import Samples

    samples = Samples(rows.table, rows.column, rows.modality, (EVALUATION,), 0, len(rows))
    parts = []
    for at in range(0, len(rows), 250):
        made = samples.__getitems__([(0, i) for i in range(at, min(at + 250, len(rows)))])
        view = rows.modality.prepare(made["views"][0])
        parts.append(torch.as_tensor(view.data).flatten(1).float().numpy())
    return np.concatenate(parts)


def cell(name: str, modality: str, arguments) -> dict:
    """Pretrain, probe, fine-tune."""
    from triptych.evaluation.load import from_run
    from triptych.train import pretrain

    if modality == "audio":
        split_by_speaker(arguments.data / "fsdd", arguments.work)
    teacher = None
    if objective_of(name) == "frozen_teacher":
        teacher = arguments.teacher if modality == "text" else exported(f"{modality}_simclr", arguments)
    config = config_of(name, modality, arguments.data, arguments.work / name, teacher)
    config.run.device = arguments.device
    if arguments.device == "cuda":
        config.run.bf16 = config.run.tf32 = False
    began, cpu = time.perf_counter(), cpu_seconds()
    figures = pretrain(config)
    minutes, cpu = (time.perf_counter() - began) / 60, (cpu_seconds() - cpu) / 60
    backbone = from_run(config.run.output_dir)[1].backbone
    train, y, test, test_y = rows_of(config, modality, backbone.modality, arguments.data, arguments.work)
    result = {
        "device": arguments.device,
        "samples": samples_of(name),
        "minutes": minutes,
        "cpu_minutes": cpu,
        "loss": figures.get("loss"),
        "rankme": figures.get("rankme"),
        "verdict": figures.get("verdict"),
        "probe": probed(backbone, train, y, test, test_y, arguments.device),
    }
    if arguments.finetune or not by_probe(name):
        again = lambda _: from_run(config.run.output_dir)[1].backbone  # noqa: E731
        result["finetuned"] = budgets(again, train, y, test, test_y, modality, arguments.device)
    return result


def exported(name: str, arguments) -> Path:
    """A run of this script as a native folder."""
    from triptych import export

    folder = arguments.work / f"{name}_exported"
    if not folder.is_dir():
        export.main([str(arguments.work / name), "--to", str(folder)])
    return folder


def cpu_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def by_probe(name: str) -> bool:
    return objective_of(name) not in BY_TUNING or modality_of(name) == "text"


if __name__ == "__main__":
    main()
