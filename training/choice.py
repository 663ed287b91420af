"""The choice: sizes and a recipe from the data, this machine and the minutes, where nobody said. One rule for all.

    ideal = sqrt(work / (6 · 10))       parameters of the encoder
    pieces = 10 · ideal                 that are encoded in the whole run

`work` is what the machine computes in the minutes, in floating-point operations. A parameter costs six of them a piece,
forward and backward, and wants about ten pieces: then parameters and data grow alike (Hoffmann et al. 2022; the ten
are about those of the runs of docs/benchmarks.md). The encoder is the largest rung of `LADDER` that is no larger; a
sample gets as many pieces as leave 100,000 samples for the run. docs/sizes.md has the rule as a table, and what it
gives for ten data sets.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch

from triptych.encoders.encoder import PRESETS
from triptych.encoders.native import PUBLISHED
from triptych.modalities import MODALITIES
from triptych.modalities.survey import Survey, few
from triptych.training import memory
from triptych.training.command_line import read, unfold
from triptych.training.engine import global_batch, pick_device
from triptych.training.finding import find
from triptych.training.loader import Order
from triptych.training.ranks import Team
from triptych.training.run_folder import read_config
from triptych.training.settings import GIVEN, Config, flatten, folder_for, shipped_recipe
from triptych.training.sources import print_once, rows_of

LADDER = ((128, 2, 4), (192, 2, 4), (192, 4, 4), (256, 6, 4), (384, 12, 6), (768, 12, 12), (1024, 24, 16))
PER_PARAMETER = 10  # pieces that are encoded, for each parameter
OPERATIONS = 6  # floating-point operations of a parameter on a piece, forward and backward
SHARE = 0.4  # of a product of matrices' speed that training reaches
SAMPLES, VIEWS = 100_000, 2  # that a run is to see, and how often each is encoded: as two views, or whole and decoded
WIDTH = 128  # of the shipped recipes: their rate is divided by the width over it (Yang et al. 2022, table 3, Adam)
BATCHES = ((0, 1), (4e6, 2), (2e7, 4), (8e7, 8))  # parameters from which on the recipe's batch is so many times larger
TRAINED = 0.93  # of the minutes are steps; the rest reads, looks, evaluates and writes
EPOCHS, EPOCHS_OF_FEW = 100, 30  # at most: what is seen more often is learned by heart, the few of `OF_FEW` sooner
JUDGED = 5  # minutes from which on the data's own labels, where it has some, judge the encoder beside its start
SHORT = 300  # steps below which little can be learned from nothing
# Of few samples of a modality, another objective than `simclr`: contrast tells each from every other, learns these by
# heart, and evens out the few directions by which classes differ (docs/sizes.md).
OF_FEW = {"audio": "byol"}
NAMES = ("modality.name", "objective.name", "minutes")  # chosen while arguments are parsed


def suited(config: Config, data: Any, team: Team) -> Config:
    """The configuration with the objective that suits few samples, where nobody named one; the first rank decides.

    It comes before the run's folder, which is named by it. A run that has begun keeps its own.
    """
    usual, other = config.objective["name"], OF_FEW.get(config.modality["name"])
    named = config.origin.get("objective.name") != "chosen" or any(k.startswith("objective.") for k in config.given)
    if other is None or named or not left_open(config):
        return config

    def place(name: str) -> str:
        return config.run.output_dir if "output_dir" in config.given else folder_for(config.data.name, name)

    def found() -> str:
        for file in (Path(place(name)) / "config.yaml" for name in (usual, other)):
            if file.is_file():
                return read_config(file).get("objective", {}).get("name", usual)
        survey, _ = surveyed(config, data)
        return other if survey is not None and few(survey.rows, config.build_modality().samples_of(survey)) else usual

    if (name := team.first(found)) not in (usual, other):
        return config  # the folder holds a run that was told its own, which is refused there
    made = chosen_for(config, {"objective.name": name})
    made.run.output_dir = place(name)
    return made


def decide(config: Config, data: Any, team: Team) -> tuple[Config, Survey | None]:
    """The configuration with all that is left open chosen, and what the data measures; the first rank decides.

    Sizes are chosen where nobody said any; with `minutes` the encoder, the batch and the rate, too. A configuration
    that was stored has all that it needs.
    """
    if not left_open(config):
        return config, None
    found = team.first(lambda: look(config, data, team.count))
    if found is None:
        return config, None
    chosen = found.pop("chosen")
    return chosen_for(config, chosen), Survey(**found)


def sizes_alone(config: Config) -> Config:
    """The configuration with the sizes that are left open chosen, in this process; nothing is timed."""
    config.run.minutes = None
    found = look(config, None, 1) if left_open(config) else None
    return config if found is None else chosen_for(config, found["chosen"])


def left_open(config: Config) -> bool:
    """Is there something to choose? Without minutes, only if nobody said the size of a view."""
    view = [f"modality.{name}" for name in MODALITIES[config.modality["name"]].sizes[:1]]
    settled = any(origin == "chosen" for key, origin in config.origin.items() if key not in NAMES)
    some = config.run.minutes is not None or any(size not in config.origin for size in view)
    return not (config.run.init_from or settled) and some


def look(config: Config, data: Any, ranks: int) -> dict[str, Any] | None:
    """What the data measures, as plain data, and what is `chosen` for it; None where nothing can be told of it."""
    run = config.run
    survey, label = surveyed(config, data)
    if survey is None:
        return None
    speed = None if run.minutes is None else reached(pick_device(run), run.bf16 is True) * ranks
    chosen = options(config, survey, speed, ranks)
    judged = data is None and run.minutes is not None and run.minutes >= JUDGED
    if judged and label and "probe_data" not in config.given:
        chosen["probe_data"] = config.data.name
    return vars(survey) | {"chosen": chosen}


def surveyed(config: Config, data: Any) -> tuple[Survey | None, str | None]:
    """What the data measures, where anything can be told of it, and its column of labels, if it has one."""
    adapter = config.build_modality()
    with memory.held(config.data.name if data is None else data, adapter) as name:
        config.data.name, before = name, config.data.name
        try:
            source = find(config.data, adapter)
            rows, _ = rows_of(source, config.data, adapter, config.data.split)
            return adapter.survey(rows.table.select_columns([rows.column]), rows.column), rows.label
        finally:
            config.data.name = before


def chosen_for(config: Config, options: dict[str, Any]) -> Config:
    """A configuration with options that were chosen put under those that were given."""
    flat = flatten(config.to_dict())
    given = {key: flat[key] for key in config.origin if key in flat} | options
    origin = config.origin | dict.fromkeys(options, "chosen")
    made = read(
        unfold({"output_dir": config.run.output_dir, "data.name": config.data.name} | given | {"origin": origin})
    )
    # A place that was not given is no choice, but it must not change either.
    made.run.output_dir, made.data, made.origin = config.run.output_dir, config.data, origin
    made.run.bf16, made.run.tf32 = config.run.bf16, config.run.tf32
    return made


def options(config: Config, survey: Survey, speed: float | None, ranks: int = 1) -> dict[str, Any]:
    """What is chosen, by dotted name. `speed`: operations a second, of all ranks; None chooses sizes alone."""
    given = config.given
    name, objective = config.modality["name"], config.objective["name"]
    usual = shipped_recipe(name, objective)

    def of_modality(known: dict[str, Any]) -> dict[str, Any]:
        return {key.partition(".")[2]: value for key, value in known.items() if key.startswith("modality.")}

    ideal = pieces = math.inf
    if speed is not None:
        ideal = math.sqrt(speed * 60 * config.run.minutes / (OPERATIONS * PER_PARAMETER))
        pieces = PER_PARAMETER * ideal / (SAMPLES * VIEWS)
    default = config.build_modality()
    sizes = default.sized(survey, pieces if speed is not None else 200, of_modality(given), of_modality(usual))
    scale = sizes.pop("objective.scale", None)
    made = {f"modality.{key}": value for key, value in sizes.items()}
    if scale and "objective.scale" in usual.keys() - given.keys() and "objective.mask.ratio" not in usual:
        made["objective.scale"] = scale
    if speed is None:
        return made
    modality = MODALITIES[name](**{k: v for k, v in (config.modality | sizes).items() if k != "name"})
    samples = modality.samples_of(survey)
    most = samples * modality.pieces_of(survey) * VIEWS * EPOCHS / PER_PARAMETER
    size = size_of_encoder(given, min(ideal, most))
    if "encoder.name" not in given:
        made |= {key: value for key, value in size.items() if key not in given}
    width, depth = size["encoder.width"], size["encoder.depth"]
    run = {
        key: value for key, value in usual.items() if "." not in key and key not in ("num_train_epochs", "max_steps")
    }
    parameters = 12 * width**2 * depth
    times = max(times for least, times in BATCHES if parameters >= least)
    wanted = run.get("per_device_train_batch_size", 64) * times
    wanted = min(wanted, 2 ** math.floor(math.log2(max(2, samples * (1 - config.data.eval_fraction) / 4))))
    run["per_device_train_batch_size"] = max(2, wanted // ranks)
    if "base_learning_rate" not in given:
        run["learning_rate"] = float(f"{run.get('learning_rate', 1e-3) * min(1.0, WIDTH / width):.2g}")
    return made | {key: value for key, value in run.items() if key not in given}


def size_of_encoder(given: dict[str, Any], ideal: float) -> dict[str, int]:
    """Width, depth and heads, by dotted name: those given, those of a preset that is given, else what suits."""
    keys = ("encoder.width", "encoder.depth", "encoder.heads")
    width, depth, heads = PRESETS.get(given.get("encoder.name")) or rung(ideal)
    if "encoder.name" not in given:
        if "encoder.width" in given:  # fewer heads, until they divide it
            heads = next(n for n in range(heads, 0, -1) if given["encoder.width"] % n == 0)
        elif "encoder.heads" in given:  # a little wider; four, for sines and cosines of two axes
            step = 4 * given["encoder.heads"]
            width = math.ceil(width / step) * step
    return dict(zip(keys, (width, depth, heads), strict=True)) | {k: v for k, v in given.items() if k in keys}


def rung(ideal: float) -> tuple[int, int, int]:
    """Width, depth and heads of the largest encoder of the ladder that has at most so many parameters, or its first."""
    return [LADDER[0], *(r for r in LADDER if 12 * r[0] ** 2 * r[1] <= 1.05 * ideal)][-1]


def reached(device: torch.device, half: bool) -> float:
    """Floating-point operations a second that training will reach, about: a share of a product of matrices."""
    size, kind = (4096, torch.bfloat16 if half else torch.float32) if device.type == "cuda" else (768, torch.float32)
    x, best = torch.ones(size, size, device=device, dtype=kind), math.inf
    for _ in range(8):
        began = time.perf_counter()
        torch.mm(x, x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return SHARE * 2 * size**3 / best


def settle(
    config: Config, survey: Survey | None, begun: bool, objective, divided, rows, device: torch.device, team: Team
) -> None:
    """Time a few steps, choose how many there will be, and print what was chosen. All ranks take part.

    Of a run that has begun all this is settled, which is said where `minutes` are given.
    """
    from triptych.training.trial import Trial, rehearse

    run, origin, found = config.run, config.origin, None
    if begun:
        if origin.get("minutes") in GIVEN and origin.get("max_steps") == "chosen":
            print_once(f"minutes {run.minutes:g}: a run that has begun keeps its {run.max_steps:,} steps (--max_steps)")
        return
    if run.minutes is not None and run.max_steps < 0:
        found = rehearse(config, objective, divided[0], rows, device, team)
        found = Trial(*team.first(lambda: list(found)))
        if strength(origin, "minutes") >= strength(origin, "num_train_epochs"):
            an_epoch = max(1, len(divided[0].table) // global_batch(run, team.count))
            steps = int(60 * run.minutes * TRAINED / found.seconds)
            epochs = EPOCHS_OF_FEW if of_few(config) else EPOCHS
            run.max_steps, origin["max_steps"] = max(1, min(steps, epochs * an_epoch)), "chosen"
    if survey is not None:
        for line in table(config, survey, objective, len(divided[0].table), found, device, team.count):
            print_once(line)
    if found is not None:
        for line in warnings(config, len(rows), len(divided[0].table), found):
            print_once(line)


def of_few(config: Config) -> bool:
    """Was the objective chosen because samples are few?"""
    chosen = config.origin.get("objective.name") == "chosen"
    return chosen and config.objective["name"] == OF_FEW.get(config.modality["name"])


def strength(origin: dict[str, str], key: str) -> int:
    """How surely an option is the user's: 0 for a default."""
    order = ("chosen", *GIVEN)
    return order.index(origin[key]) + 1 if origin.get(key) in order else 0


def table(
    config: Config, survey: Survey, objective, samples: int, trial, device: torch.device, ranks: int
) -> list[str]:
    """What was chosen, a line each, and the option that changes it."""
    from triptych.training.loop import total_steps

    flat, origin, run = flatten(config.to_dict()), config.origin, config.run
    modality, encoder = objective.backbone.modality, objective.backbone.encoder

    def ways(*keys: str) -> str:
        return " ".join(f"--{key.removesuffix('.name')} {word(flat[key])}" for key in keys if flat.get(key) is not None)

    size = sum(p.numel() for p in objective.backbone.parameters())
    batch = global_batch(run, ranks)
    sizes = [f"modality.{name}" for name in modality.sizes if f"modality.{name}" in origin]
    amount = f", {survey.amount}" if survey.amount else ""
    lines = [
        ("data", f"{survey.rows:,} rows: {survey.native}", ways("data.name")),
        ("trained on", modality.trained(), ways(*sizes)),
        ("an epoch", f"{samples:,} samples{amount}", ways("data.eval_fraction")),
    ]
    if run.minutes is not None:
        made = encoder.architecture
        lines += [
            (
                "encoder",
                f"{made.width} wide, {made.depth} deep, {made.heads} heads: {size / 1e6:.2g} M parameters",
                ways("encoder.width", "encoder.depth", "encoder.heads"),
            ),
            ("objective", config.objective["name"], ways("objective.name")),
            (
                "batch",
                f"{batch} samples, learning rate {run.learning_rate:.2g}",
                ways("per_device_train_batch_size", "learning_rate"),
            ),
        ]
    if trial is not None:
        steps = total_steps(config, Order(samples, batch, run.seed))
        clock = f"about {steps * trial.seconds / 60:.3g} minutes, at {trial.seconds:.2g} s a step"
        epochs = f"{steps:,} steps, {steps * batch / samples:.2g} epochs: {clock}"
        lines += [("length", epochs, ways("minutes")), ("memory", trial.words(device), "")]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    lines += [("device", f"{name}, {ranks} rank(s)", ways("device")), ("folder", run.output_dir, ways("output_dir"))]
    wide = min(76, max(len(text) for _, text, _ in lines))
    return ["chosen from the data (what you give is kept; docs/sizes.md has the rule):"] + [
        f"  {title:10} {text:{wide}}  {way}".rstrip() for title, text, way in lines
    ]


def word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def warnings(config: Config, rows: int, samples: int, trial: Any) -> list[str]:
    """What a budget cannot help."""
    name, said = config.modality["name"], []
    start = f"start from a published encoder: --init_from {PUBLISHED[name]}" if name in PUBLISHED else ""
    if config.run.init_from:
        return said
    if few(rows, samples):
        these = f"{rows:,} rows, {samples:,} samples" if samples > rows else f"{samples:,} samples"
        said.append(
            f"{these}, {config.run.minutes:g} minutes: too few to learn much from nothing, and an encoder may "
            f"become worse than it was untrained; {start or 'more data helps'}"
        )
    if 0 < config.run.max_steps < SHORT:
        more = math.ceil(SHORT * trial.seconds / 60 * 1.1)
        longer = f" or minutes (--minutes {more})" if more > config.run.minutes else ""  # else there are few samples
        said.append(
            f"{config.run.max_steps} steps are hardly enough to learn from nothing: give more samples{longer}"
            f"{f', or {start}' if start else ''}"
        )
    return said
