"""Fine-tune an exported text encoder on labelled texts, with stock `transformers` only.

    python examples/finetune_text.py me/my-encoder data.csv --output_dir finetuned

The csv, json or parquet file has a column `text` and a column `label`, of numbers or words; so does a folder of such
files named `train` and `validation` (or `test`).
"""

import argparse
import os

import numpy as np
from datasets import ClassLabel, load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", help="folder of an export, or hub id")
parser.add_argument("data", help="csv, json or parquet file, or a folder of them")
parser.add_argument("--text_column", default="text")
parser.add_argument("--label_column", default="label")
parser.add_argument("--output_dir", default="finetuned")
parser.add_argument("--epochs", type=float, default=10)
parser.add_argument("--learning_rate", type=float, default=5e-4)
parser.add_argument("--batch_size", type=int, default=32)
args = parser.parse_args()

if os.path.isdir(args.data):
    data = load_dataset(args.data)
else:
    kind = os.path.splitext(args.data)[1].lstrip(".").replace("jsonl", "json")
    data = load_dataset(kind, data_files=args.data)
if not isinstance(data["train"].features[args.label_column], ClassLabel):
    data = data.class_encode_column(args.label_column)
names = data["train"].features[args.label_column].names
held_out = next((name for name in ("validation", "test") if name in data), None)
if held_out is None:
    split = data["train"].train_test_split(0.2, seed=0, stratify_by_column=args.label_column)
    data, held_out = split, "test"

tokenizer = AutoTokenizer.from_pretrained(args.model)
id2label = dict(enumerate(names))
model = AutoModelForSequenceClassification.from_pretrained(
    args.model, id2label=id2label, label2id={name: i for i, name in id2label.items()}
)


def encode(rows):
    return tokenizer(rows[args.text_column], truncation=True) | {"labels": rows[args.label_column]}


data = data.map(encode, batched=True, remove_columns=data["train"].column_names)
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
        report_to="none",
    ),
    train_dataset=data["train"],
    eval_dataset=data[held_out],
    data_collator=DataCollatorWithPadding(tokenizer),
    compute_metrics=lambda result: {"accuracy": np.mean(result.predictions.argmax(1) == result.label_ids)},
)
trainer.train()
trainer.save_model()
tokenizer.save_pretrained(args.output_dir)
print(f"accuracy {trainer.evaluate()['eval_accuracy']:.3f}; saved in {args.output_dir}")
