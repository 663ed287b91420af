"""Fine-tune an export of docs/walks.md as a classifier of that walk's data, with stock `transformers` only.

    python examples/walk_classify.py exported radiographs

A fifth of the patients, of recordings or of reports' patients is held out, and judged: by accuracy, or, where a row has
several labels, by AUROC over all of them. `finetune_image.py` and the others do it for folders of classes.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from datasets import Dataset
from PIL import Image
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupShuffleSplit
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
)


def radiographs(folder, model):
    """Files of 12 bits, findings a row, patients; and what makes the model's input of a file: an array, no pipeline."""
    processor = AutoImageProcessor.from_pretrained(model)

    def inputs(rows):
        values = [np.asarray(Image.open(folder / name))[None] for name in rows]  # 0 is black, 4095 white
        return processor(values, input_data_format="channels_first", return_tensors="pt")

    with open(folder / "metadata.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    findings = [set(row["findings"].split("|")) - {"clear"} for row in rows]
    names = [row["file_name"] for row in rows]
    return names, findings, [row["patient"] for row in rows], inputs, AutoModelForImageClassification


def recordings(folder, model):
    """Segments, what is heard in each, recordings; and what cuts a segment out, at the model's rate."""
    extractor = AutoFeatureExtractor.from_pretrained(model)

    def cut(row):
        name, start, end = row.rsplit(" ", 2)
        rate = soundfile.info(folder / name).samplerate
        wave, _ = soundfile.read(folder / name, start=int(float(start) * rate), stop=int(float(end) * rate))
        return torchaudio.functional.resample(torch.from_numpy(wave).float(), rate, extractor.sampling_rate).numpy()

    def inputs(rows):
        waves = [cut(row) for row in rows]
        return extractor(waves, sampling_rate=extractor.sampling_rate, return_tensors="pt")

    with open(folder / "segments.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [f"{row['file']} {row['start']} {row['end']}" for row in rows]
    return names, [row["label"] for row in rows], [row["file"] for row in rows], inputs, AutoModelForAudioClassification


def reports(folder, model):
    """Texts, wards, patients; and what makes tokens of a text: its first window."""
    tokenizer = AutoTokenizer.from_pretrained(model)

    def inputs(rows):
        return tokenizer(rows, truncation=True, padding="max_length", return_tensors="pt")

    rows = [json.loads(line) for line in open(folder / "reports.jsonl")]
    texts, wards = ([row["report"][name] for row in rows] for name in ("text", "ward"))
    return texts, wards, [row["patient"]["number"] for row in rows], inputs, AutoModelForSequenceClassification


KINDS = {"metadata.csv": radiographs, "segments.csv": recordings, "reports.jsonl": reports}

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", help="folder of an export")
parser.add_argument("data", type=Path, help="folder that walk_data.py made")
parser.add_argument("--output_dir", default="classifier")
parser.add_argument("--epochs", type=float, default=5)
parser.add_argument("--learning_rate", type=float, default=1e-3)
args = parser.parse_args()

kind = next(kind for file, kind in KINDS.items() if (args.data / file).is_file())
rows, labels, groups, inputs, auto = kind(args.data, args.model)
several = isinstance(labels[0], set)
names = sorted(set().union(*labels)) if several else sorted(set(labels))
if several:
    targets = np.array([[float(name in found) for name in names] for found in labels], dtype=np.float32)
else:
    targets = np.array([names.index(label) for label in labels])
learn, judge = next(GroupShuffleSplit(1, test_size=0.2, random_state=0).split(rows, groups=groups))
model = auto.from_pretrained(
    args.model,
    id2label=dict(enumerate(names)),
    label2id={name: i for i, name in enumerate(names)},
    problem_type="multi_label_classification" if several else "single_label_classification",
)


def part(index):
    data = Dataset.from_dict({"row": [rows[i] for i in index], "target": targets[index]})
    return data.with_transform(
        lambda batch: dict(inputs(batch["row"])) | {"labels": torch.as_tensor(np.array(batch["target"]))}
    )


def score(result):
    output, y = result.predictions, result.label_ids
    if several:
        return {"AUROC": roc_auc_score(y, output)}
    return {"accuracy": np.mean(output.argmax(1) == y), "largest_class": np.bincount(y).max() / len(y)}


trainer = Trainer(
    model,
    TrainingArguments(
        args.output_dir,
        num_train_epochs=args.epochs,
        learning_rate=args.learning_rate,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        warmup_steps=0.1,
        save_strategy="no",
        logging_steps=10,
        remove_unused_columns=False,
        report_to="none",
    ),
    train_dataset=part(learn),
    eval_dataset=part(judge),
    compute_metrics=score,
)
trainer.train()
trainer.save_model()
found = trainer.evaluate()
measures = ("AUROC",) if several else ("accuracy", "largest_class")
said = ", ".join(f"{name.replace('_', ' ')} {100 * found[f'eval_{name}']:.1f}" for name in measures)
print(f"{len(judge):,} rows of groups that it never saw: {said}; saved in {args.output_dir}")
