"""Fine-tune an exported audio encoder on labelled sounds, with stock `transformers` only.

    python examples/finetune_audio.py me/my-encoder path/to/folder --output_dir finetuned

The folder has one subfolder a class, or `train` and `validation` (or `test`) folders of such; a parquet file with an
audio column and a class column serves as well.
"""

import argparse
import io
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, Trainer, TrainingArguments

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", help="folder of an export, or hub id")
parser.add_argument("data", type=Path, help="folder of class folders, or parquet file")
parser.add_argument("--output_dir", default="finetuned")
parser.add_argument("--epochs", type=float, default=20)
parser.add_argument("--learning_rate", type=float, default=2e-4)
parser.add_argument("--batch_size", type=int, default=32)
args = parser.parse_args()


def read(folder):
    """Paths of the files in class folders. (`audiofolder` wants torchcodec and ffmpeg; soundfile does without.)"""
    files = sorted(file for file in folder.glob("*/*") if file.is_file())
    cell = {"bytes": Value("binary"), "path": Value("string")}
    features = Features({"audio": cell, "label": ClassLabel(names=sorted({file.parent.name for file in files}))})
    cells = [{"bytes": None, "path": str(file)} for file in files]
    return Dataset.from_dict({"audio": cells, "label": [file.parent.name for file in files]}, features=features)


if args.data.is_dir():
    folders = [args.data / name for name in ("train", "validation", "test") if (args.data / name).is_dir()]
    data = DatasetDict({folder.name: read(folder) for folder in folders} or {"train": read(args.data)})
    audio = "audio"
else:
    data = load_dataset("parquet", data_files=str(args.data))
    audio = next(name for name, feature in data["train"].features.items() if isinstance(feature, Audio))
    data = data.cast_column(audio, Audio(decode=False))
columns = data["train"].features
label = next(name for name, feature in columns.items() if isinstance(feature, ClassLabel))
names = columns[label].names
held_out = next((name for name in ("validation", "test") if name in data), None)
if held_out is None:
    data, held_out = data["train"].train_test_split(0.2, seed=0, stratify_by_column=label), "test"

processor = AutoFeatureExtractor.from_pretrained(args.model)
id2label = dict(enumerate(names))
model = AutoModelForAudioClassification.from_pretrained(
    args.model, id2label=id2label, label2id={name: i for i, name in id2label.items()}
)


def waveform(cell):
    """Mono, at the processor's rate."""
    wave, rate = soundfile.read(io.BytesIO(cell["bytes"]) if cell["bytes"] else cell["path"], dtype="float32")
    wave = torch.from_numpy(wave if wave.ndim == 1 else wave.mean(1))
    return torchaudio.functional.resample(wave, rate, processor.sampling_rate).numpy()


def encode(rows, training):
    waves = [waveform(cell) for cell in rows[audio]]
    inputs = processor(waves, sampling_rate=processor.sampling_rate, return_tensors="pt")
    if training:
        inputs["input_values"] += (torch.rand(len(waves), 1, 1) - 0.5) * 0.2  # loudness
    return dict(inputs) | {"labels": rows[label]}


train = data["train"].with_transform(lambda rows: encode(rows, True))
test = data[held_out].with_transform(lambda rows: encode(rows, False))
trainer = Trainer(
    model,
    TrainingArguments(
        args.output_dir,
        num_train_epochs=args.epochs,
        learning_rate=args.learning_rate,
        per_device_train_batch_size=args.batch_size,
        warmup_steps=0.1,
        eval_strategy="epoch",
        save_strategy="no",
        logging_steps=10,
        remove_unused_columns=False,
        report_to="none",
    ),
    train_dataset=train,
    eval_dataset=test,
    compute_metrics=lambda result: {"accuracy": np.mean(result.predictions.argmax(1) == result.label_ids)},
)
trainer.train()
trainer.save_model()
processor.save_pretrained(args.output_dir)
print(f"accuracy {trainer.evaluate()['eval_accuracy']:.3f}; saved in {args.output_dir}")
