"""Fine-tune an exported image encoder on labelled pictures, with stock `transformers` only.

    python examples/finetune_image.py me/my-encoder path/to/folder --output_dir finetuned

The folder has one subfolder a class, or `train` and `validation` (or `test`) folders of such; a parquet file with an
image column and a class column serves as well.
"""

import argparse
import os

import numpy as np
from datasets import ClassLabel, Image, load_dataset
from torchvision.transforms import v2
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", help="folder of an export, or hub id")
parser.add_argument("data", help="folder of class folders, or parquet file")
parser.add_argument("--output_dir", default="finetuned")
parser.add_argument("--epochs", type=float, default=20)
parser.add_argument("--learning_rate", type=float, default=1e-3)
parser.add_argument("--batch_size", type=int, default=32)
args = parser.parse_args()

if os.path.isdir(args.data):
    data = load_dataset("imagefolder", data_dir=args.data)
else:
    data = load_dataset("parquet", data_files=args.data)
columns = data["train"].features
image = next(name for name, feature in columns.items() if isinstance(feature, Image))
label = next(name for name, feature in columns.items() if isinstance(feature, ClassLabel))
names = columns[label].names
held_out = next((name for name in ("validation", "test") if name in data), None)
if held_out is None:
    data, held_out = data["train"].train_test_split(0.2, seed=0, stratify_by_column=label), "test"

processor = AutoImageProcessor.from_pretrained(args.model)
id2label = dict(enumerate(names))
model = AutoModelForImageClassification.from_pretrained(
    args.model, id2label=id2label, label2id={name: i for i, name in id2label.items()}
)
if getattr(processor, "value_range", None) or getattr(processor, "float_range", None):
    parser.error(f"{args.model} takes arrays of more than 8 bits: its model card has the lines that read files for it")
view = processor.crop_size if processor.do_center_crop else processor.size
size = (view["height"], view["width"])
augment = v2.Compose([v2.RandomResizedCrop(size, scale=(0.5, 1.0)), v2.RandomHorizontalFlip()])


def encode(rows, training):
    pictures = [augment(p) if training else p for p in rows[image]]
    return dict(processor(pictures, return_tensors="pt")) | {"labels": rows[label]}


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
