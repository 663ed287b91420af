"""The configuration: constructors' signatures are its only schema, jsonargparse its only reader.

Four groups (`data`, `modality`, `encoder`, `objective`) beside the run's own options. A group given as one word sets
its `name`: `--objective mae` is `--objective.name mae`, `objective: mae` in YAML likewise. Nothing is imported by a
name in a config: names are those of the literal tables.
"""

import contextlib
import copy
import dataclasses
import difflib
import inspect
import io
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from encoders import Backbone, Encoder
from modalities import MODALITIES, Image
from objectives import OBJECTIVES

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
}


class UserError(ValueError):
    """A mistake of the user's: one line that names the thing and the way out, and no traceback."""


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


def read(source: "Config | dict | str | os.PathLike", overrides: list[str] | None = None) -> Config:
    """A checked `Config` from one, from a dictionary, or from a YAML file, with command-line overrides."""
    if isinstance(source, Config):
        return source.check()
    given = source if isinstance(source, dict) else load_yaml(source)
    return _parse(unfold(given), overrides or [], "train.py")


def from_command_line(argv: list[str], program: str = "train.py") -> Config:
    """A checked `Config` from command-line arguments; prints one line and exits on a mistake."""
    try:
        files, rest = [], []
        arguments = iter(argv)
        for argument in arguments:
            if argument == "--config":
                files.append(next(arguments, ""))
            elif argument.startswith("--config="):
                files.append(argument.split("=", 1)[1])
            else:
                rest.append(argument)
        given: dict[str, Any] = {}
        for name in files:
            merge(given, unfold(load_yaml(name)))
        return _parse(given, rest, program)
    except ValueError as error:
        sys.exit(f"{program}: {one_line(error)}")


def _parse(given: dict[str, Any], argv: list[str], program: str) -> Config:
    argv = [re.sub(rf"^--({'|'.join(GROUPS)})(?==|$)", r"--\1.name", argument) for argument in argv]
    names = {}
    for group, table in (("modality", MODALITIES), ("objective", OBJECTIVES)):
        asked, filed = peek(argv, f"--{group}.name"), given.get(group, {}).get("name")
        names[group] = str(asked or filed or next(iter(table)))
        if names[group] not in table:
            raise UserError(f"{group} {names[group]!r} is not one of {', '.join(table)}{nearest(names[group], table)}")
        if asked:
            merge(given, {group: {"name": asked}})
    parser = schema(names["modality"], names["objective"], program)
    argv = with_values(argv, [f.name for f in dataclasses.fields(Run) if f.type is bool])
    known = {action.dest for action in parser._actions}
    for key in flatten(given):
        if key not in known and not any(key.startswith(f"{whole}.") for whole in ("deepspeed",)):
            raise UserError(f"no option {key!r}{nearest(key, known)}")
    for argument in argv:
        key = argument[2:].split("=")[0]
        if argument.startswith("--") and key not in known | {"help", "print_config"}:
            raise UserError(f"no option {argument.split('=')[0]!r}{nearest(key, known, '--')}")
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            space = parser.parse_args(["--config", yaml.safe_dump(given), *argv] if given else argv)
    except ArgumentError as error:
        raise UserError(one_line(error)) from None
    values = space.as_dict()
    values.pop("config", None)
    groups = {name: values.pop(name) for name in GROUPS}
    run = Run(**{key: value for key, value in values.items() if key in Run.__dataclass_fields__})
    return Config(run, Data(**groups.pop("data")), **groups).check()


def schema(modality: str, objective: str, program: str = "train.py") -> ArgumentParser:
    """The parser for one modality and one objective: all options with docstring, unit and default."""
    parser = ArgumentParser(
        prog=program,
        exit_on_error=False,
        description=f"Pretrain one encoder without labels; now with modality {modality} and objective {objective}.",
    )
    parser.add_argument("--config", action="config", help="YAML file of the same options; may be given several times")
    parser.add_class_arguments(Run)
    parser.add_class_arguments(Data, "data")
    parser.add_argument("--modality.name", choices=list(MODALITIES), default=modality, help="what the samples are")
    parser.add_class_arguments(MODALITIES[modality], "modality")
    parser.add_method_arguments(Encoder, "preset", "encoder")
    parser.add_argument("--objective.name", choices=list(OBJECTIVES), default=objective, help="what is learned")
    parser.add_class_arguments(OBJECTIVES[objective], "objective", skip={"backbone"})
    return parser


def load_yaml(path: str | os.PathLike) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        near = [str(p) for p in Path(__file__).parents[1].glob("configs/*.yaml")]
        raise UserError(f"no config file {str(path)!r}{nearest(path.name, [Path(p).name for p in near])}")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no options (`name: value` lines)")
    return content


def unfold(given: dict[str, Any]) -> dict[str, Any]:
    """Groups given as one word -> their name. Keys may be nested or dotted."""
    result: dict[str, Any] = {}
    for key, value in given.items():
        if key in GROUPS and not isinstance(value, dict):
            value = {"name": value}
        for part in reversed(key.split(".")[1:]):
            value = {part: value}
        merge(result, {key.split(".")[0]: value})
    return result


def merge(into: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Put options over others. Where they name another modality or objective, those of the first are left out."""
    for key, value in more.items():
        old = into.get(key)
        if not (isinstance(value, dict) and isinstance(old, dict)):
            into[key] = copy.deepcopy(value)
            continue
        if key in ("modality", "objective") and "name" in old and value.get("name", old["name"]) != old["name"]:
            left = ", ".join(without_name(old)) or "none"
            line = f"{key} {value['name']} instead of {old['name']}: the file's settings of it are left out ({left})"
            print(line, file=sys.stderr)
            old.clear()
        merge(old, value)
    return into


def flatten(given: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested -> dotted keys; a dictionary that is a value (`deepspeed`) is kept whole."""
    flat: dict[str, Any] = {}
    for key, value in given.items():
        if isinstance(value, dict) and prefix + key in GROUPS:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def peek(argv: list[str], option: str) -> str | None:
    """The last value of an option, before the parser that depends on it can be made."""
    value = None
    for here, following in zip(argv, [*argv[1:], None], strict=False):
        if here == option:
            value = following
        elif here.startswith(option + "="):
            value = here.split("=", 1)[1]
    return value


def with_values(argv: list[str], switches: list[str]) -> list[str]:
    """`--bf16` alone means `--bf16 true`."""
    result = []
    for argument, following in zip(argv, [*argv[1:], "--"], strict=False):
        result.append(argument)
        if argument.removeprefix("--") in switches and argument.startswith("--") and following.startswith("--"):
            result.append("true")
    return result


def nearest(word: str, known, dashes: str = "") -> str:
    """`; did you mean ...?`, or nothing."""
    known = list(known)
    found = difflib.get_close_matches(word, known, 1, 0.5)
    if not found:  # the same last part in another group: mask_ratio for objective.mask_ratio
        found = difflib.get_close_matches(word.split(".")[-1], [k.split(".")[-1] for k in known], 1, 0.7)
        found = [k for k in known if found and k.split(".")[-1] == found[0]]
    return f"; did you mean {dashes}{found[0]}?" if found else ""


def one_line(error: Exception | str) -> str:
    return " ".join(str(error).split())


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Options, other than those that a run may change when it continues, in which two configurations differ."""
    old, new = flatten(old), flatten(new)
    return sorted(k for k in old.keys() | new.keys() if k not in FREE and old.get(k) != new.get(k))
