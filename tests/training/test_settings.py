"""Settings: nested ones, a modality's own defaults, domains, and where each value came from."""

import dataclasses
import inspect
import types
from pathlib import Path
from typing import Literal

import pytest
import support
import yaml

import triptych.modalities.domains
from triptych.modalities import MODALITIES
from triptych.modalities.domains import Each, Probability, Scale, Share, Within, build, defaults
from triptych.objectives import OBJECTIVES, Objective
from triptych.training.command_line import from_command_line, read, schema
from triptych.training.errors import UserError
from triptych.training.settings import Data, Run, differences, flatten, plain


@dataclasses.dataclass(frozen=True)
class Holes:
    """What is hidden.

    Args:
        ratio: part of the pieces.
        kind: how they lie.
        block: side of a block.
    """

    ratio: Share = 0.75
    kind: Literal["random", "block"] = "random"
    block: triptych.modalities.domains.Count | None = None


class Nested(Objective):
    """An objective with a group of settings within its own.

    Args:
        holes: what is hidden.
        scale: smallest and largest part that a view keeps.
        chance: of something.
    """

    def __init__(self, backbone, holes: Holes = Holes(ratio=0.6), scale: Scale = (0.2, 1.0), chance: Probability = 0.5):  # noqa: B008
        super().__init__(backbone, ())
        assert isinstance(holes, Holes)
        self.holes, self.scale = holes, scale


@pytest.fixture(autouse=True)
def table(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "nested", Nested)


def nested(*argv, **given):
    return read(given | {"objective.name": "nested"}, list(argv))


def test_nested_settings_are_options():
    assert nested().objective["holes"] == {"ratio": 0.6, "kind": "random", "block": None}
    config = nested("--objective.holes.ratio", "0.3", objective={"holes": {"block": 3}})
    assert config.objective["holes"] == {"ratio": 0.3, "kind": "random", "block": 3}
    assert nested(**{"objective.holes.block": 3, "objective.holes.ratio": 0.3}).to_dict() == config.to_dict()
    assert config.given == {"objective.name": "nested", "objective.holes.ratio": 0.3, "objective.holes.block": 3}
    assert read(yaml.safe_load(yaml.safe_dump(config.stored()))) == config


def test_nested_settings_are_in_the_help_and_printed(capsys):
    assert "side of a block" in " ".join(schema("image", "nested").format_help().split())
    with pytest.raises(SystemExit):
        from_command_line(["--objective", "nested", "--objective.holes.kind", "block", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["objective"]["holes"]["kind"] == "block"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (
            ["--objective.holes.ratoi", "1"],
            "no option '--objective.holes.ratoi'; did you mean --objective.holes.ratio?",
        ),
        (["--ratio", "0.5"], "did you mean --objective.holes.ratio?"),
        (["--objective.ratio", "0.5"], "did you mean --objective.holes.ratio?"),
        (["--objective.holes", "0.5"], "--objective.holes is a group of options (ratio, kind, block)"),
        (["--objective.holes.ratio", "1"], "objective.holes.ratio 1.0 is not in (0, 1); try 0.75"),
        (["--objective.holes.block", "0"], "objective.holes.block 0 is not in [1, inf); try 1"),
        (["--objective.holes.kind", "blok"], "objective.holes.kind"),
        (
            ["--objective.scale", "[1, .2]"],
            "objective.scale [1.0, 0.2] is not in (0, 1], the smaller first; try [0.2, 1.0]",
        ),
        (["--objective.chance", ".nan"], "objective.chance nan is not in [0, 1]; try 0.5"),
    ],
)
def test_nested_settings_are_refused_by_name(argv, says):
    with pytest.raises(UserError) as refused:
        nested(*argv)
    assert says in str(refused.value)


def test_a_group_wants_its_names():
    with pytest.raises(UserError, match="objective.holes is a group of options"):
        nested(objective={"holes": 0.5})


def test_a_cell_has_the_defaults_of_its_shipped_recipe(tmp_path):
    """Of the objective and of views; measures of the data, the encoder and the run stay as they are."""
    config = from_command_line(["--modality", "text", "--objective", "byol"])
    shipped = read("configs/text_byol.yaml")
    assert config.objective == shipped.objective and config.modality["augmentation"] == "span"
    assert config.modality["deletion"] == shipped.modality["deletion"] == 0.2
    assert config.modality["max_length"] is None and config.encoder["width"] is None
    assert config.run.learning_rate == Run.learning_rate and not config.given.keys() - {
        "modality.name",
        "objective.name",
    }
    help = " ".join(schema("text", "byol").format_help().split())
    assert "(type: Literal['split', 'span'], default: span)" in help
    said = from_command_line(["--modality", "text", "--objective", "byol", "--modality.deletion", "0.0"])
    assert said.modality["deletion"] == 0.0 and said.modality["augmentation"] == "span"


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("modality", MODALITIES)
def test_the_name_of_an_objective_is_enough(modality, objective):
    recipe = flatten(yaml.safe_load(Path(f"configs/{modality}_{objective}.yaml").read_text()))
    sizes = {f"modality.{name}" for name in MODALITIES[modality].sizes}
    more = [f"--{key}={value}" for key, value in support.needed(objective).items()]
    config = flatten(plain(from_command_line(["--modality", modality, "--objective", objective, *more]).to_dict()))
    wanted = {k: v for k, v in recipe.items() if k.startswith(("modality.", "objective.")) and k not in sizes}
    assert wanted and {key: config[key] for key in wanted} == wanted


def start(**parts):
    family = types.SimpleNamespace(name="vit")
    empty = {
        "family": family,
        "pooling": None,
        "modality": {},
        "encoder": {},
        "objective": {},
        "free": (),
        "trained_by": None,
    }
    made = types.SimpleNamespace(**empty | parts)
    made.adapted = lambda given: (made.modality, None)
    return made


def test_where_values_come_from(tmp_path):
    (tmp_path / "my.yaml").write_text("objective.mask.ratio: 0.75\nseed: 1\nmodality: {patch_size: 16}\n")
    config = from_command_line(["--config", str(tmp_path / "my.yaml"), "--seed=1", "--encoder.width", "96"])
    assert config.origin == {
        "objective.mask.ratio": "file",
        "modality.patch_size": "file",
        "seed": "command line",
        "encoder.width": "command line",
    }
    config.adopt(
        start(
            modality={"image_size": 64, "patch_size": 16, "mean": 0.1},
            encoder={"width": 96, "depth": 3},
            objective={"mask.ratio": 0.5, "decoder.depth": 2, "unheard_of": 1},
            free=("mean",),
        )
    )
    # What was given stays, also where it equals a default; the rest is the checkpoint's.
    assert config.objective["mask"]["ratio"] == 0.75 and config.objective["decoder"]["depth"] == 2
    assert "unheard_of" not in config.objective
    assert config.modality["image_size"] == 64 and config.encoder["depth"] == 3
    assert config.origin["modality.image_size"] == config.origin["objective.decoder.depth"] == "checkpoint"
    assert "modality.image_size" not in config.given and config.given["seed"] == 1
    # A stored configuration knows it all again, and what is edited in it is given.
    stored = yaml.safe_load(yaml.safe_dump(config.stored()))
    assert read(stored).origin == config.origin
    stored["learning_rate"] = 1e-5
    assert read(stored).origin == config.origin | {"learning_rate": "file"}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (
            ["--modality.image_size", "16", "--modality.patch_size", "8"],
            "modality.image_size 16 was given, but init_from vit has 64",
        ),
        (
            ["--encoder.depth", "2"],
            "encoder.depth 2 was given, but init_from vit has 12, which cannot be changed; leave",
        ),
    ],
)
def test_a_size_that_was_given_is_not_overruled(argv, says):
    config = read({"init_from": "vit"}, argv)
    with pytest.raises(UserError) as refused:
        config.adopt(start(modality={"image_size": 64}, encoder={"depth": 12}))
    assert says in str(refused.value)


def test_a_preset_that_was_given_is_not_overruled():
    small = {"width": 384, "depth": 12, "heads": 6}
    config = read({"init_from": "vit", "encoder": "small"})
    config.adopt(start(encoder=small, pooling="lead"))
    assert config.origin["family"] == config.origin["pooling"] == "checkpoint" and config.run.pooling == "lead"
    assert read(config.stored()) == config
    with pytest.raises(UserError, match="encoder small was given, but init_from vit has another size"):
        read({"init_from": "vit", "encoder": "small"}).adopt(start(encoder=small | {"depth": 3}))


def test_given_settings_are_what_a_resume_compares():
    old = read({"seed": 7, "objective.mask.ratio": 0.5}).stored()
    assert differences(old, read({"seed": 7, "objective.mask.ratio": 0.5, "save_steps": 3}).stored()) == []
    assert differences(old, read({"seed": 7}).stored()) == ["objective.mask.ratio"]
    assert differences(old, read({"seed": 7, "objective.mask.ratio": 0.5, "weight_decay": 0}).stored()) == [
        "weight_decay"
    ]
    # A default that another version had, and an option that it did not have.
    other = old | {"weight_decay": 0.123}
    assert differences(other, read({"seed": 7, "objective.mask.ratio": 0.5}).stored()) == []
    del other["optim"]
    assert differences(other, read({"seed": 7, "objective.mask.ratio": 0.5, "optim": "adamw_torch"}).stored()) == []
    assert differences(other, read({"seed": 7, "objective.mask.ratio": 0.5, "optim": "sgd"}).stored()) == ["optim"]
    # Of one that it did not have, what the code did, whatever a recipe says by now.
    said = {"modality.name": "image", "objective.name": "simsiam"}
    earlier = read(said).stored()
    assert earlier["objective"].pop("predictor_rate") == 10
    assert differences(earlier, read(said | {"objective.predictor_rate": 10}).stored()) == ["objective.predictor_rate"]
    # A configuration without origins counts as given.
    del other["origin"]
    assert differences(other, read({"seed": 7, "objective.mask.ratio": 0.5}).stored()) == ["weight_decay"]


def test_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = read(
        {"init_from": "~/start", "modality.name": "text", "modality.tokenizer": "~/mine"}, ["--output_dir=~/runs/a"]
    )
    assert (config.run.output_dir, config.run.init_from) == ("/home/me/runs/a", "/home/me/start")
    assert config.modality["tokenizer"] == "/home/me/mine"


def test_what_python_gives_is_written_as_yaml(tmp_path):
    import numpy as np

    given = {"output_dir": tmp_path / "run", "seed": np.int64(3), "learning_rate": np.float32(0.5)}
    given |= {"modality": {"image_size": (32, 64), "patch_size": np.int32(8), "mean": np.zeros(3)}}
    stored = read(given).stored()
    assert yaml.safe_load(yaml.safe_dump(stored)) == stored
    assert stored["output_dir"] == str(tmp_path / "run") and stored["modality"]["image_size"] == [32, 64]
    for wrong in (object(), len, {"a": lambda: 0}, 1j):
        with pytest.raises(UserError, match="^modality.mean.* is a .*: give a number, a word"):
            read({"modality": {"mean": wrong}})
    with pytest.raises(UserError, match="^output_dir is a bytes"):
        plain({"output_dir": b"run"})


# Every number that a user may give has a domain.

OWNERS = {f"modality {n}": c for n, c in MODALITIES.items()} | {f"objective {n}": c for n, c in OBJECTIVES.items()}
OWNERS |= {"run": Run, "data": Data, "nested": Nested}


def numbers(owner, prefix=""):
    """Arguments that are numbers, and their domains."""
    for name, hint, _ in triptych.modalities.domains.arguments(owner):
        if inner := triptych.modalities.domains.nested(hint):
            yield from numbers(inner, f"{prefix}{name}.")
        elif any(kind in str(hint).replace("Literal[1, 3, 4]", "") for kind in ("int", "float")):
            yield prefix + name, list(triptych.modalities.domains.domains(hint))


@pytest.mark.parametrize("name", OWNERS)
def test_every_number_has_a_domain(name):
    without = [n for n, domains in numbers(OWNERS[name]) if not domains]
    assert not without, f"{name}: write their domain in their type (modalities/domains.py)"


@pytest.mark.parametrize("name", OWNERS)
def test_defaults_are_in_their_domains(name):
    owner = OWNERS[name]
    for argument, hint, default in triptych.modalities.domains.arguments(owner):
        if default is not inspect.Parameter.empty and not dataclasses.is_dataclass(default):
            assert all(d.holds(default) for d in triptych.modalities.domains.domains(hint)), argument


def test_ranges_are_read_as_written():
    half_open = Within("(0, 1]")
    assert [half_open.holds(v) for v in (0, 0.5, 1, 1.5, float("nan"), float("inf"), None)] == [0, 1, 1, 0, 0, 0, 1]
    assert half_open.holds((0.2, 0.2)) and not half_open.holds((0.3, 0.2)) and not half_open.holds([0, 1])
    assert Each("(0, 1]").holds([1, 0.5]) and not Each("(0, 1]").holds([1, 0]) and not Each("(0, 1]").holds(0)
    assert not Within("[1, inf)").holds(float("inf"))


def test_build_checks_and_nests():
    def made(first, holes: Holes = Holes(), chance: Probability | None = None):  # noqa: B008
        return first, holes, chance

    assert build(made, {"holes": {"block": 2}}, "", 1) == (1, Holes(block=2), None)
    assert defaults(made, "x.") == {
        "x.holes.ratio": 0.75,
        "x.holes.kind": "random",
        "x.holes.block": None,
        "x.chance": None,
    }
    with pytest.raises(ValueError, match=r"^x.holes.ratio 2 is not in \(0, 1\); try 0.75"):
        build(made, {"holes": Holes(ratio=2)}, "x.", 1)
