"""The settings of a run: its own, the data's, and those of the three parts that are chosen by name."""

import dataclasses
import inspect
from dataclasses import dataclass, field
from typing import Any, Literal
from unittest import mock

import torch

from encoders import Backbone, Encoder
from modalities import MODALITIES, Image
from objectives import OBJECTIVES
from training.errors import UserError

GROUPS = ("data", "modality", "encoder", "objective")
# What a run may change when it continues: none of it moves the sequence of samples or the schedule.
FREE = {
    "output_dir",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "eval_steps",
    "report_to",
    "dataloader_num_workers",
    "deepspeed",
    "compile",
    "device",
    "run_name",
    "data.max_bad",
    "data.name",  # data may move; its fingerprint is compared
}


@dataclass
class Run:
    """How to train. Names and meanings are those of `transformers.TrainingArguments` where it has them.

    Args:
        output_dir: folder of the run. The same command again continues from its newest whole checkpoint.
        init_from: hub id or folder of a published checkpoint to start from; sizes and processor come from there.
        learning_rate: peak learning rate.
        base_learning_rate: if given, the peak is this × global batch / 256 instead.
        per_device_train_batch_size: samples a micro-batch on each rank.
        gradient_accumulation_steps: micro-batches a step.
        num_train_epochs: passes over the training part of the data; may be a fraction.
        max_steps: optimizer steps; if positive, it replaces `num_train_epochs`.
        warmup_steps: steps of linear warm-up, or below 1 their fraction; a cosine to 0 follows.
        optim: optimizer.
        weight_decay: decay of weights; never of biases, norms, positions and leads.
        adam_beta1: decay of AdamW's first moment (momentum of `sgd`).
        adam_beta2: decay of AdamW's second moment.
        adam_epsilon: AdamW's epsilon.
        max_grad_norm: gradients are clipped to this global norm; 0 turns clipping off.
        bf16: compute in bfloat16 by autocast; parameters, moments and reductions stay float32.
        compile: compile the objective with `torch.compile`.
        deepspeed: DeepSpeed settings, a JSON file or a dictionary in the YAML. Batch numbers may be left out or `auto`.
        seed: of initialisation, order, views and masks.
        dataloader_num_workers: processes that read and augment, a rank; 0 reads in the training process.
        logging_steps: steps between two lines of `metrics.jsonl`.
        eval_steps: steps between two losses on the held-out part; 0 only at the end.
        save_steps: steps between two checkpoints; 0 only at the end.
        save_total_limit: checkpoints that are kept; at least 2, so that a damaged one has a predecessor.
        report_to: `tensorboard`, `wandb`, `trackio`, `none`, or a list of them. `metrics.jsonl` is always written.
        run_name: name for the trackers. Default: that of the folder.
        device: `auto` takes a GPU if there is one.
    """

    output_dir: str = "runs/default"
    init_from: str | None = None
    learning_rate: float = 1.5e-3
    base_learning_rate: float | None = None
    per_device_train_batch_size: int = 64
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 100.0
    max_steps: int = -1
    warmup_steps: float = 0.05
    optim: Literal["adamw_torch", "sgd"] = "adamw_torch"
    weight_decay: float = 0.05
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    bf16: bool = False
    compile: bool = False
    deepspeed: str | dict[str, Any] | None = None
    seed: int = 42
    dataloader_num_workers: int = 1
    logging_steps: int = 10
    eval_steps: int = 500
    save_steps: int = 500
    save_total_limit: int = 2
    report_to: str | list[str] = "tensorboard"
    run_name: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self):
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} is below 1")
        for name in ("learning_rate", "base_learning_rate", "num_train_epochs"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise UserError(f"{name} {getattr(self, name)} is not above 0")
        for name in (
            "warmup_steps",
            "weight_decay",
            "max_grad_norm",
            "dataloader_num_workers",
            "eval_steps",
            "save_steps",
        ):
            if getattr(self, name) < 0:
                raise UserError(f"{name} {getattr(self, name)} is below 0")
        if self.save_total_limit < 2:
            raise UserError(
                f"save_total_limit {self.save_total_limit}: keep at least 2, lest a damaged one be the last"
            )
        for tracker in self.trackers:
            if tracker not in ("tensorboard", "wandb", "trackio"):
                raise UserError(f"report_to {tracker!r} is not one of tensorboard, wandb, trackio, none")

    @property
    def trackers(self) -> list[str]:
        given = [self.report_to] if isinstance(self.report_to, str) else self.report_to
        return [tracker for tracker in given if tracker != "none"]


@dataclass
class Data:
    """What to train on.

    Args:
        name: a built-in set (`digits`, `tones`, `docstrings`), a folder of files (with or without class folders), a
            parquet, arrow, json, csv or text file or a folder of them, a `save_to_disk` folder, or a hub id.
        subset: configuration of a hub data set.
        revision: branch, tag or commit of a hub data set.
        split: split to train on.
        column: column that holds the samples. Default: the one of the modality's type, if there is just one.
        label_column: column of labels for the probe; pretraining never reads it. Default: the one class label.
        eval_fraction: part that is held out of training for `eval_loss`, chosen by a hash of the row's number.
        max_bad: unusable samples that are replaced before the run stops. Default: 1 %, and at least 10.
    """

    name: str = "digits"
    subset: str | None = None
    revision: str | None = None
    split: str = "train"
    column: str | None = None
    label_column: str | None = None
    eval_fraction: float = 0.01
    max_bad: int | None = None

    def __post_init__(self):
        if not 0 <= self.eval_fraction < 1:
            raise UserError(f"data.eval_fraction {self.eval_fraction} is not in [0, 1)")


@dataclass
class Config:
    """All settings of a run, resolved."""

    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    modality: dict[str, Any] = field(default_factory=lambda: {"name": "image"})
    encoder: dict[str, Any] = field(default_factory=lambda: {"name": "tiny"})
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "mae"})

    def to_dict(self) -> dict[str, Any]:
        groups = {name: dict(getattr(self, name)) for name in GROUPS[1:]}
        return dataclasses.asdict(self.run) | {"data": dataclasses.asdict(self.data)} | groups

    def build_modality(self):
        return MODALITIES[self.modality["name"]](**without_name(self.modality))

    def build_objective(self, modality):
        """The objective with its backbone, initialised from the run's seed."""
        torch.manual_seed(self.run.seed)
        cls, settings = OBJECTIVES[self.objective["name"]], without_name(self.objective)
        return cls(Backbone(modality, Encoder.preset(**self.encoder)), **settings)

    def adopt(self, start) -> None:
        """Take the sizes of a published checkpoint, and its objective's where they were left at their defaults."""
        self.modality |= start.modality
        self.encoder |= start.encoder
        known = inspect.signature(OBJECTIVES[self.objective["name"]]).parameters
        for name, value in start.objective.items():
            if name in known and self.objective.get(name, known[name].default) == known[name].default:
                self.objective[name] = value

    def check(self) -> "Config":
        """Refuse wrong values before anything heavy: build all but the data's part, without memory."""
        # On the meta device `normal_` alone would import torch's compiler, which takes as long as a refusal may.
        with torch.device("meta"), mock.patch.object(torch.nn.init, "normal_", lambda tensor, **_: tensor):
            self.build_modality()
            # Objectives and the encoder know no modality, so any one serves to check them.
            self.build_objective(Image(16, 16))
        return self


def without_name(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "name"}


def flatten(given: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested -> dotted keys; a dictionary that is a value (`deepspeed`) is kept whole."""
    flat: dict[str, Any] = {}
    for key, value in given.items():
        if isinstance(value, dict) and prefix + key in GROUPS:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Options, other than those that a run may change when it continues, in which two configurations differ."""
    old, new = flatten(old), flatten(new)
    return sorted(k for k in old.keys() | new.keys() if k not in FREE and old.get(k) != new.get(k))
