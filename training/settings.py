"""The settings of a run: its own, the data's, and those of the three parts that are chosen by name."""

import codecs
import dataclasses
import os
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal
from unittest import mock

import torch
import yaml

from triptych.encoders import Backbone, Encoder, EncoderSettings, GridEmbedding, Pooling
from triptych.encoders.encoder import PRESETS
from triptych.encoders.native import family_of, make
from triptych.modalities import MODALITIES, Image
from triptych.modalities.domains import (
    Count,
    NotNegative,
    Number,
    Part,
    Positive,
    Within,
    arguments,
    build,
    check,
    defaults,
)
from triptych.objectives import OBJECTIVES
from triptych.training.errors import UserError, one_line

# Where a value may come from, the strongest last. What is in neither is a default.
CHOSEN = ("chosen", "checkpoint", "recipe", "data", "found")  # not by the user: they may be overruled
GIVEN = ("file", "command line")
GROUPS = ("data", "modality", "encoder", "objective")
PARTS = ("train", "training", "data", "test", "validation", "val")  # names that say nothing of what a file holds
CONFIGS = Path(__file__).parents[1] / "configs"  # they are installed along
# What a run may change when it continues: none of it moves the sequence of samples or the schedule.
FREE = {
    "output_dir",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "save_steps",
    "save_minutes",
    "max_steps",  # a run may be made longer; the loop sees to it
    "num_train_epochs",
    "minutes",  # of a run that has begun, the number of steps is settled; the choice says so
    "save_total_limit",
    "logging_steps",
    "eval_steps",
    "report_to",
    "report",
    "dataloader_num_workers",
    "deepspeed",
    "compile",
    "gradient_checkpointing",
    "device",
    "run_name",
    "data.max_bad",
    "data.name",  # data may move; its fingerprint is compared
}


@dataclass
class Run:
    """How to train. Names and meanings are those of `transformers.TrainingArguments` where it has them.

    Args:
        output_dir: folder of the run. The same command again continues from its newest whole checkpoint. Default:
            `runs/DATA-OBJECTIVE`.
        family: native class that the encoder is trained as and exported to, by the `model_type` of its configuration.
            Default: that of the checkpoint, else the modality's usual one.
        pooling: what a sample's vector is: its first `lead` (CLS), the mean of its `leads`, of its `pieces`, the first
            lead and that mean (`lead+pieces`), or the mean of all `tokens`. Default: what the family's classifier
            reads.
        init_from: hub id or folder of a published checkpoint to start from; sizes and processor come from there.
        init_revision: branch, tag or commit of that checkpoint on the hub.
        probe_data: data that judges the encoder before the first step and at every evaluation, beside its start;
            training never sees it. With labels: k-NN and a linear probe of 10 labels a class; with columns
            `sentence1`, `sentence2` and `score`: Spearman's correlation of the pairs' cosines with it. Default: of a
            run with `init_from`, only figures of the features themselves.
        probe_keep: a second set of that kind, on which the start must not be lost.
        keep: `best` also keeps, and exports, the checkpoint that was best by `probe_data` (the linear probe, or the
            correlation), judged on other rows than the figures that are printed; none that lost on `probe_keep`.
        train_last: blocks of the encoder that are trained, the last ones, with its last norm; the others stand still.
            Default: all, and the embedding.
        lora_rank: if given, these blocks stand still too, and an update of this rank beside each of their matrices is
            trained instead (LoRA, by peft); export adds it to them. Not with a teacher that is an average.
        layer_decay: factor of the learning rate of each block relative to the next one.
        head_steps: steps in which heads learn and the encoder stands still; its own warm-up begins then.
        trunk_scale: learning rate of the encoder relative to that of the heads.
        preserve: weight of a term of the loss that keeps each sample's vector near the one that the start gives it: the
            squared distance of both at unit length, of the first view. It takes a forward more of the encoder and of
            its start.
        learning_rate: peak learning rate.
        base_learning_rate: if given, the peak is this × global batch / 256 instead.
        per_device_train_batch_size: samples a micro-batch on each rank.
        gradient_accumulation_steps: micro-batches a step, whose losses count equally. What a loss takes of its batch
            (the mean over tokens, negatives, statistics) is of one micro-batch of all ranks.
        num_train_epochs: passes over the training part of the data; may be a fraction.
        max_steps: optimizer steps; if positive, it replaces `num_train_epochs`.
        minutes: time that the run may take on this machine: a few steps are timed before it begins, and `max_steps`
            follows. Of a command line without a configuration it also decides the size of the encoder, and is 20 by
            default.
        warmup_steps: steps of linear warm-up, or below 1 their fraction; a cosine to 0 follows.
        optim: optimizer.
        weight_decay: decay of weights; never of biases, norms, positions and leads.
        adam_beta1: decay of AdamW's first moment (momentum of `sgd`).
        adam_beta2: decay of AdamW's second moment.
        adam_epsilon: AdamW's epsilon.
        max_grad_norm: gradients are clipped to this global norm; 0 turns clipping off.
        bf16: compute in bfloat16 by autocast; parameters, moments, losses and reductions stay float32. `auto`: on a
            GPU that has it.
        tf32: let a GPU round the factors of float32 products; never in losses. `auto`: on a GPU that has it.
        gradient_checkpointing: keep each block's input only and compute the block again in the backward pass: a
            fraction of the memory, for about a third more time. Gradients are the same.
        compile: compile the objective with `torch.compile`.
        deepspeed: DeepSpeed settings: a JSON file, `zero0` to `zero3`, or a dictionary in the YAML. Batch numbers may
            be left out or `auto`.
        seed: of initialisation, order, views and masks.
        dataloader_num_workers: processes that read and augment, a rank; 0 reads in the training process. `auto`: one
            less than the rank's share of the cores, at least 1 and at most 8.
        logging_steps: steps between two lines of `metrics.jsonl`.
        eval_steps: steps between two losses on the held-out part; 0 only at the end. Of a run with `init_from` it is a
            tenth of the run, where nobody says.
        save_steps: steps between two checkpoints; 0 not by steps. There is always one at the end.
        save_minutes: minutes between two checkpoints; 0 not by time.
        save_total_limit: checkpoints that are kept; at least 2, so that a damaged one has a predecessor.
        report_to: `tensorboard`, `wandb`, `trackio`, `none`, or several with commas. `metrics.jsonl` is always written.
        report: write `report.html` and `curves.png` into the run's folder at saves and at the end, by a process of its
            own. `python -m triptych.evaluation.report` makes them of any run, and puts several side by side.
        run_name: name for the trackers. Default: that of the folder.
        device: `auto` takes a GPU if there is one.
    """

    output_dir: str = "runs/default"
    family: str | None = None
    pooling: Pooling | None = None
    init_from: str | None = None
    init_revision: str | None = None
    probe_data: str | None = None
    probe_keep: str | None = None
    keep: Literal["last", "best"] = "last"
    train_last: Number | None = None
    lora_rank: Count | None = None
    layer_decay: Annotated[float, Within("(0, 1]")] | None = None
    head_steps: Number = 0
    trunk_scale: Positive = 1.0
    preserve: NotNegative = 0.0
    learning_rate: Positive = 1.5e-3
    base_learning_rate: Positive | None = None
    per_device_train_batch_size: Count = 64
    gradient_accumulation_steps: Count = 1
    num_train_epochs: Positive = 100.0
    max_steps: Annotated[int, Within("[-1, inf)")] = -1
    minutes: Positive | None = None
    warmup_steps: NotNegative = 0.05
    optim: Literal["adamw_torch", "sgd"] = "adamw_torch"
    weight_decay: NotNegative = 0.05
    adam_beta1: Part = 0.9
    adam_beta2: Part = 0.95
    adam_epsilon: Positive = 1e-8
    max_grad_norm: NotNegative = 1.0
    bf16: bool | Literal["auto"] = "auto"
    tf32: bool | Literal["auto"] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    deepspeed: str | dict[str, Any] | None = None
    seed: Annotated[int, Within("[0, 9e18)")] = 42  # a generator of torch has 64 bits
    dataloader_num_workers: Annotated[int, Within("[0, 512]")] | Literal["auto"] = "auto"
    logging_steps: Count = 10
    eval_steps: Number = 500
    save_steps: Number = 500
    save_minutes: NotNegative = 10.0
    save_total_limit: Annotated[int, Within("[2, inf)")] = 2
    report_to: str | list[str] = "tensorboard"
    report: bool = True
    run_name: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self):
        said(check, Run, vars(self))
        if self.warmup_steps > self.max_steps > 0:
            raise UserError(
                f"warmup_steps {self.warmup_steps:g} of max_steps {self.max_steps}: the peak is never reached; try "
                f"{Run.warmup_steps}, a fraction of the run"
            )
        for tracker in self.trackers:
            if tracker not in ("tensorboard", "wandb", "trackio"):
                raise UserError(f"report_to {tracker!r} is not one of tensorboard, wandb, trackio, none")

        if self.keep == "best" and self.probe_data is None:
            raise UserError("keep best: without labels nothing says which is best; give --probe_data")
        if self.init_revision is not None and self.init_from is None:
            raise UserError(f"init_revision {self.init_revision}: there is nothing that it is of; give --init_from")
        if self.preserve and self.init_from is None:
            raise UserError(f"preserve {self.preserve:g}: there is no start to keep to; give --init_from")

    @property
    def trackers(self) -> list[str]:
        given = self.report_to.split(",") if isinstance(self.report_to, str) else self.report_to
        return [tracker for tracker in map(str.strip, given) if tracker != "none"]


@dataclass
class Data:
    """What to train on.

    Args:
        name: a built-in set (`digits`, `tones`, `docstrings`), a folder of files (with or without class folders), a
            parquet, arrow, json, csv or text file or a folder of them, a `save_to_disk` folder, or a hub id.
            `--show` prints how it is read.
        subset: configuration of a hub data set, or of a clone of one.
        revision: branch, tag or commit of a hub data set.
        split: split to train on.
        column: column that holds the samples. Default: the one of the modality's type, if there is just one. Pictures
            whose channels lie in several columns name them in their order, `red,nir`, or in a list: each is read as one
            channel.
        label_column: column of labels for the probe; pretraining never reads it. Several columns of 0 and 1 are named
            with commas. Default: the one class label. A nested field is `column.field`, here and above.
        segments: rows are the segments of recordings that tables mark, not recordings. Default: where a table of them
            is named, and in the probe wherever there are some.
        group: rows of one group (patient, speaker, recording) are all trained on or all held out, and never on both
            sides of the probe's split: a column, `file`, `folder`, or a regular expression, whose first parenthesis in
            a file's path within the data is the group.
        metadata: a table about the files of a folder, such as their labels, by a column of their names. Default: those
            called `metadata` that lie beside them.
        document: of text files, what a sample is: the `file`, a `line`, or a `paragraph` (a blank line is between two).
            Default: in folders the file, else the line.
        encoding: of text files and of csv and json, such as `latin-1`. Default: UTF-8, or UTF-16 with a mark.
        eval_fraction: part that is held out of training for `eval_loss`, chosen by a hash of the row's number, or of
            its group's name. Where it is less than a step's samples, an objective that compares samples has fewer to
            compare there than in training: such an `eval_loss` is another figure than `loss`.
        max_bad: unusable samples that are replaced before the run stops. Default: 1 %, and at least 10.
    """

    name: str = "digits"
    subset: str | None = None
    revision: str | None = None
    split: str = "train"
    column: list[str] | str | None = None
    label_column: str | None = None
    segments: bool | None = None
    group: str | None = None
    metadata: str | None = None
    document: Literal["file", "line", "paragraph"] | None = None
    encoding: str | None = None
    eval_fraction: Part = 0.01
    max_bad: Number | None = None

    def __post_init__(self):
        if isinstance(self.column, list):
            self.column = ",".join(self.column)
        said(check, Data, vars(self), "data.")
        try:
            codecs.lookup(self.encoding or "utf-8")
        except LookupError:
            raise UserError(f"data.encoding {self.encoding!r} is none that Python knows; try latin-1") from None

    def most_bad(self, rows: int) -> int:
        """Unusable samples of so many rows that a run bears."""
        return max(10, rows // 100) if self.max_bad is None else self.max_bad


def said(function, *arguments):
    """Call what refuses by a `ValueError`; here it is the user's mistake."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise UserError(str(error)) from error


@dataclass
class Config:
    """All settings of a run, resolved, and where each came from: a default, or what `origin` says by dotted name."""

    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    modality: dict[str, Any] = field(default_factory=lambda: {"name": "image"})
    encoder: dict[str, Any] = field(default_factory=lambda: {"name": "tiny"})
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "mae"})
    origin: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        groups = {name: dict(getattr(self, name)) for name in GROUPS[1:]}
        return dataclasses.asdict(self.run) | {"data": dataclasses.asdict(self.data)} | groups

    def stored(self) -> dict[str, Any]:
        """What `config.yaml` holds: all settings, and the origin of those that are no defaults."""
        return plain(self.to_dict()) | {"origin": dict(self.origin)}

    def shared(self) -> dict[str, Any]:
        """The options that all ranks of a run must have been given alike: places may differ between machines."""
        options = flatten(plain(self.to_dict()))
        return {key: value for key, value in options.items() if key not in ("output_dir", "data.name", "init_from")}

    @property
    def given(self) -> dict[str, Any]:
        """What the user said, by dotted name, also where it equals the default."""
        flat = flatten(self.to_dict())
        return {key: flat[key] for key, origin in self.origin.items() if origin in GIVEN and key in flat}

    def named(self, data: str) -> None:
        """Other data takes the place of that which was named; a folder that nobody gave is called by it."""
        usual = folder_for(self.data.name, self.objective["name"])
        self.data.name = data
        if "output_dir" not in self.origin and self.run.output_dir == usual:
            self.run.output_dir = folder_for(data, self.objective["name"])

    def build_modality(self):
        return build(MODALITIES[self.modality["name"]], without_name(self.modality), "modality.")

    def build_objective(self, modality, start=None):
        """The objective with its backbone, initialised from the run's seed, and from a published checkpoint's weights.

        These enter the backbone before the objective copies it: a teacher begins where its student does.
        """
        self._find(modality)
        torch.manual_seed(self.run.seed)
        check(EncoderSettings, self.encoder, "encoder.")
        backbone = make(modality, self.run.family, self.run.pooling, **self.encoder)
        if start is not None:
            start.load(backbone)
        objective = build(OBJECTIVES[self.objective["name"]], without_name(self.objective), "objective.", backbone)
        if start is not None:
            start.load_heads(objective)
        return objective

    def count(self, samples: int) -> None:
        """Give an objective that has an argument `samples` the number of those that the run trains on."""
        if "samples" not in (name for name, *_ in arguments(OBJECTIVES[self.objective["name"]])):
            return
        if self.origin.get("objective.samples") in GIVEN and self.objective["samples"] not in (None, samples):
            raise UserError(
                f"objective.samples {self.objective['samples']} was given, but the run trains on {samples}; leave "
                "objective.samples out"
            )
        self.objective["samples"], self.origin["objective.samples"] = samples, "data"

    def _find(self, modality) -> None:
        """Settings of the objective that nobody gave, and that it finds out before it is built."""
        found = OBJECTIVES[self.objective["name"]].found(modality, **without_name(self.objective))
        for name, value in found.items():
            if self.objective.get(name) is None:
                self.objective[name], self.origin[f"objective.{name}"] = value, "found"

    def adopt(self, start) -> str | None:
        """Take what a published checkpoint says, where the user gave nothing; returns what his word changes, in a line.

        What was given, is another and cannot be changed is refused: the user's word is never overruled.
        """
        if self.origin.get("family") in GIVEN and self.run.family != start.family.name:
            raise UserError(f"family {self.run.family}: init_from {self.run.init_from} is of {start.family.name}")
        for name, value in (("family", start.family.name), ("pooling", start.pooling)):
            if self.origin.get(name) not in GIVEN and value is not None:
                setattr(self.run, name, value)
                self.origin[name] = "checkpoint"
        size = dict(zip(("width", "depth", "heads"), PRESETS[self.encoder["name"]], strict=True))
        if self.origin.get("encoder.name") in GIVEN and size != {k: start.encoder.get(k, v) for k, v in size.items()}:
            raise UserError(
                f"encoder {self.encoder['name']} was given, but init_from {self.run.init_from} has another size; leave "
                "encoder out"
            )
        depth = start.encoder.get("depth", 0)
        if self.origin.get("train_last") == "recipe" and self.run.train_last > depth:
            self.run.train_last = depth
        known = defaults_of(self.modality["name"], self.objective["name"])
        prefix = "modality."
        said_of = {key.removeprefix(prefix): value for key, value in self.given.items() if key.startswith(prefix)}
        modality, note = start.adapted(said_of)
        for group in GROUPS[1:]:
            if group == "objective" and start.trained_by not in (None, self.objective["name"]):
                continue
            for name, value in (modality if group == "modality" else getattr(start, group)).items():
                self._adopt(f"{group}.{name}", value, group == "objective" or name in start.free, known)
        return note

    def _adopt(self, key: str, value: Any, free: bool, known: dict[str, Any]) -> None:
        group, *path = key.split(".")
        into = getattr(self, group)
        for part in path[:-1]:
            into = into.setdefault(part, {})
        if self.origin.get(key) in GIVEN:
            if not free and plain(into.get(path[-1])) != plain(value):
                raise UserError(
                    f"{key} {plain(into.get(path[-1]))} was given, but init_from {self.run.init_from} has "
                    f"{plain(value)}, which cannot be changed; leave {key} out"
                )
        elif self.origin.get(key) == "recipe" and free:
            return  # chosen for continuing, where the checkpoint's is what it was made with
        elif group != "objective" or key in known:
            into[path[-1]], self.origin[key] = value, "checkpoint"

    def recall(self, stored: dict[str, Any]) -> None:
        """Take what a checkpoint and the recipe said when this run began, from what the run has stored."""
        flat = flatten({key: value for key, value in stored.items() if key != "origin"})
        for key, origin in stored.get("origin", {}).items():
            if origin not in CHOSEN or self.origin.get(key) in GIVEN:
                continue
            group, *path = key.split(".")
            into = getattr(self, group) if path else vars(self.run)
            for part in path[:-1]:
                into = into.setdefault(part, {})
            into[path[-1] if path else group], self.origin[key] = flat[key], origin
        self.run.init_from = stored.get("init_from", self.run.init_from)
        if self.origin.get("probe_data") == "chosen":  # it is the data's own labels, which may have moved
            self.run.probe_data = self.data.name

    def check(self) -> "Config":
        """Refuse wrong values before anything heavy: build all but the data's part, without memory."""
        # On the meta device `normal_` alone would import torch's compiler, which takes as long as a refusal may.
        try:
            with torch.device("meta"), mock.patch.object(torch.nn.init, "normal_", lambda tensor, **_: tensor):
                if self.run.init_from:  # what fits to what is known when the checkpoint is read
                    check(MODALITIES[self.modality["name"]], without_name(self.modality), "modality.")
                else:
                    self.build_modality()
                check(EncoderSettings, self.encoder, "encoder.")
                made = family_of(self.modality["name"], self.run.family).architecture(**self.encoder)
                # Objectives and the encoder know no modality, so any one serves to check them.
                backbone = Backbone(GridEmbedding(Image(16, 16), made), Encoder(made), self.run.pooling or "leads")
                build(OBJECTIVES[self.objective["name"]], without_name(self.objective), "objective.", backbone)
        except ValueError as error:
            raise UserError(one_line(error)) from error
        return self


def defaults_of(modality: str, objective: str) -> dict[str, Any]:
    """Defaults of all options by dotted name: the signatures', and over them the cell's own (`own_defaults`)."""
    return signatures(modality, objective) | own_defaults(modality, objective)


def signatures(modality: str, objective: str) -> dict[str, Any]:
    """Defaults of all options as the code has them: what an option does that an earlier version did not know."""
    parts = defaults(MODALITIES[modality], "modality.") | defaults(EncoderSettings, "encoder.")
    parts |= defaults(OBJECTIVES[objective], "objective.")
    names = {"modality.name": modality, "objective.name": objective}
    runs = defaults(Run) | defaults(Data, "data.")
    return runs | parts | names


@cache
def own_defaults(modality: str, objective: str) -> dict[str, Any]:
    """What an objective wants on a modality where nothing else is said: a crop of a picture is no span of a text.

    It is what the shipped recipe of the two says of the objective and of views; measures of the data stay open.
    """
    recipe = shipped_recipe(modality, objective)
    known = defaults(MODALITIES[modality], "modality.") | defaults(OBJECTIVES[objective], "objective.")
    measures = {f"modality.{name}" for name in MODALITIES[modality].sizes}
    said = {key: value for key, value in recipe.items() if key in known and key not in measures}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}


@cache
def shipped_recipe(modality: str, objective: str) -> dict[str, Any]:
    """What the shipped recipe of the two says, by dotted name; nothing where there is none."""
    file = CONFIGS / f"{modality}_{objective}.yaml"
    return flatten(yaml.safe_load(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def shipped(name: str | os.PathLike, suffix: str, folder: Path = CONFIGS) -> Path | None:
    """The shipped file of a name, which has no folder before it and may have the suffix; None where there is none."""
    file = folder / f"{os.fspath(name).removesuffix(suffix)}{suffix}"
    return file if file.parent == folder and file.is_file() else None


def folder_for(data: str, objective: str) -> str:
    """Where a run goes if nobody said: `runs/clothing-simclr` for `shared/clothing/train.parquet`."""
    parts = [part for part in re.split(r"[/\\]", os.path.abspath(data) if data in (".", "..") else str(data)) if part]
    parts = [re.sub(r"\.\w+$", "", part) if part == parts[-1] else part for part in parts]
    while len(parts) > 1 and re.split(r"[^a-z]", parts[-1].lower())[0] in PARTS:
        parts.pop()
    name = re.sub(r"[^\w.-]+", "-", parts[-1] if parts else "").strip("-.")
    return f"runs/{name or 'data'}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', objective.rpartition(':')[2])}"


def without_name(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "name"}


def flatten(given: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested -> dotted keys; a dictionary that is a value (`deepspeed`) is kept whole."""
    flat: dict[str, Any] = {}
    for key, value in given.items():
        if isinstance(value, dict) and (prefix or key in GROUPS):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def plain(value: Any, name: str = "", depth: int = 0) -> Any:
    """As YAML has it: tuples and arrays are lists, paths are words. What YAML has no words for is refused by name."""
    if depth > 50:
        raise UserError(f"{name.split('.')[0]} holds itself: give a number, a word, a list or a dictionary of these")
    if isinstance(value, dict):
        return {str(k): plain(v, f"{name}.{k}" if name else str(k), depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v, name, depth + 1) for v in value]
    if hasattr(value, "tolist") and not isinstance(value, torch.Tensor):  # numpy's numbers and arrays
        return plain(value.tolist(), name)
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError(f"{name} is a {type(value).__name__}: give a number, a word, a list or a dictionary of these")


def home(value: Any) -> Any:
    """`~` at the head of a word is the home folder, which the shell does not say within `--output_dir=~/runs`."""
    if isinstance(value, dict):
        return {key: home(item) for key, item in value.items()}
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Options, other than those that a run may change when it continues, in which two stored configurations differ.

    Compared is what the user gave, then or now. What nobody gave is a default, which another version may have changed.
    A configuration without origins, of an older version, counts as given whole; an option that it did not know had the
    default of the code, whatever a recipe says of it by now.
    """
    given = {key for which in (old, new) for key, origin in which.get("origin", {}).items() if origin in GIVEN}
    before, now = (flatten({k: v for k, v in which.items() if k != "origin"}) for which in (old, new))
    if "origin" not in old:
        given |= before.keys()
    for which in (before, now):  # as a run keeps the name of a folder (`starts.stored`)
        which["init_from"] = str(which.get("init_from") or "").removeprefix("./") or None
    unsaid = plain(signatures(now["modality.name"], now["objective.name"]))
    return sorted(key for key in given - FREE if before.get(key, unsaid.get(key)) != now.get(key, unsaid.get(key)))
