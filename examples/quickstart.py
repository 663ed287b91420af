"""The quick start: pretrain on built-in data, export, fine-tune the export with stock transformers from few labels.

    python examples/quickstart.py [image|audio|text]

Prints a small table: fine-tuned from the pretrained encoder and from scratch, linear probes of both, and of the data
itself; 2 and 10 labels a class, five label draws, mean and deviation.
"""

import math
import shutil
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LABELS, DRAWS = (2, 10), 5
CONFIGS = {"image": "image_digits", "audio": "audio_tones", "text": "text_docstrings"}
STEPS, BATCH = {"image": 350, "audio": 150, "text": 100}, 20  # of fine-tuning; from scratch gets as many


def main(modality: str = "image", work: Path = ROOT / "runs", **changes) -> None:
    """Do it all in the folder `work`. `changes` are options of the run that differ from the config's."""
    warnings.filterwarnings("ignore")
    began = time.perf_counter()
    run = work / f"quickstart_{modality}"
    exported, untrained = (run.with_name(f"{run.name}_{kind}") for kind in ("exported", "untrained"))

    from triptych.encoders.native import family_of
    from triptych.evaluation.load import from_run
    from triptych.export import export
    from triptych.train import pretrain
    from triptych.training.command_line import load_yaml

    config = load_yaml(ROOT / "configs" / f"{CONFIGS[modality]}.yaml") | {"output_dir": str(run)} | changes
    pretrain(config)
    shutil.rmtree(exported, ignore_errors=True)
    export(run, to=str(exported))
    # From scratch is the same encoder with the initialisation that pretraining began with, in the same native class.
    resolved, objective, _ = from_run(run)
    fresh = resolved.build_objective(objective.backbone.modality).backbone
    family_of(modality).export(fresh, None).save_pretrained(untrained)

    import numpy as np
    import transformers

    from triptych.evaluation.probes import draw, linear
    from triptych.training.builtin import builtin

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    splits = builtin(config["data"])
    encode, plain, auto = TOOLS[modality](str(exported))
    column = next(c for c in splits["train"].column_names if c != "label")
    labels, inputs, cells, raw = {}, {}, {}, {}
    for split in ("train", "test"):
        rows = splits[split].shuffle(seed=0)[:1200]
        labels[split], cells[split] = np.asarray(rows["label"]), rows[column]
        inputs[split] = encode(cells[split])
    raw["train"], raw["test"] = plain(inputs, [cells["train"], cells["test"]])

    count = len(set(labels["train"].tolist()))
    models = {
        "pretrained": lambda: auto.from_pretrained(str(exported), num_labels=count),
        "from scratch": lambda: auto.from_pretrained(str(untrained), num_labels=count),
    }
    features = {}
    for name, make in models.items():
        model = make()
        features[name] = {split: embed(model, inputs[split]) for split in inputs}
    table: dict[str, dict[int, list[float]]] = {}
    for per_class in LABELS:
        for seed in range(DRAWS):
            index = draw(labels["train"], per_class, seed)
            y = labels["train"][index]
            for name, make in models.items():
                few = {k: v[index] for k, v in inputs["train"].items()}
                score = finetune(make, few, y, inputs["test"], labels["test"], STEPS[modality], seed, modality)
                table.setdefault(f"fine-tuned, {name}", {}).setdefault(per_class, []).append(score)
            for name, x in {**features, "the data itself": raw}.items():
                score = 100 * linear(x["train"][index], y, x["test"], labels["test"]).mean()
                table.setdefault(f"linear probe, {name}", {}).setdefault(per_class, []).append(score)
            print(f"{per_class} labels a class, draw {seed + 1} of {DRAWS} done", flush=True)
    show(table)
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes in all; the exported model is {exported}")


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
    """Print the table; a cell that shows no gain over its untrained counterpart says so."""
    import statistics

    from rich.console import Console
    from rich.table import Table

    view = Table("test accuracy, %", *(f"{n} labels a class" for n in LABELS))
    for name, cells in table.items():
        texts = []
        for per_class, scores in cells.items():
            text = f"{statistics.mean(scores):.1f} ± {statistics.pstdev(scores):.1f}"
            if "pretrained" in name:
                other = table[name.replace("pretrained", "from scratch")][per_class]
                if statistics.mean(scores) - statistics.pstdev(scores) <= statistics.mean(other):
                    text += " (no sure gain)"
            texts.append(text)
        view.add_row(name, *texts)
    Console(width=100).print(view)


if __name__ == "__main__":
    main(*sys.argv[1:])
