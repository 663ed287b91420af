"""The configuration: files, overrides, dictionaries and shorthand all give the same settings, and can be read back."""

import dataclasses
import inspect

import pytest
import support
import yaml

from triptych.modalities import MODALITIES
from triptych.objectives import OBJECTIVES
from triptych.training.choice import word
from triptych.training.command_line import from_command_line, read, schema
from triptych.training.engine import settings
from triptych.training.errors import UserError, nearest
from triptych.training.settings import Config, Run, differences, own_defaults, plain

YAML = """
data: {name: digits, eval_fraction: 0.2}
modality: image
modality.image_size: 32
modality.patch_size: 4
encoder: small
encoder.depth: 2
objective:
  name: simclr
  temperature: 0.2
learning_rate: 1.0e-4
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "my.yaml").write_text(YAML)
    return str(tmp_path / "my.yaml")


def test_a_file_and_overrides(file):
    config = from_command_line(
        ["--config", file, "--objective.temperature", "0.5", "--encoder.width=96", "--seed", "7"]
    )
    assert config.objective["temperature"] == 0.5
    assert config.encoder | {"name": "small", "width": 96, "depth": 2} == config.encoder
    assert (config.run.learning_rate, config.run.seed) == (1e-4, 7)
    assert (config.data.name, config.data.eval_fraction) == ("digits", 0.2)
    assert config.modality["image_size"] == 32


@pytest.mark.parametrize(
    ("modality", "option", "words", "value"),
    [
        ("image", "value_range", "0,4095", (0, 4095)),
        ("image", "value_range", "-1024,3071", (-1024, 3071)),
        ("image", "float_range", "-4.1, 4.98e0", (-4.1, 4.98)),
        ("image", "percentiles", "1,99", (1, 99)),
        ("image", "image_size", word((64, 32)), (64, 32)),
        ("image", "mean", "[0.4,0.5,.6]", [0.4, 0.5, 0.6]),
        ("image", "mean", "0.4,0.5,.6", [0.4, 0.5, 0.6]),
        ("audio", "tile", word((128, 8)), (128, 8)),
        ("audio", "stride", "10,10", (10, 10)),
    ],
)
def test_several_numbers_are_given_as_pages_and_the_table_of_a_choice_have_them(modality, option, words, value):
    """`--modality.tile 128,8`, which a run printed as the option that changes it, was refused."""
    more = ["--modality.tile", "16,16"] if option == "stride" else []
    for said in ([f"--modality.{option}", words], [f"--modality.{option}={words}"]):
        config = from_command_line(["--modality", modality, *more, *said])
        assert config.modality[option] == value
    assert from_command_line(["--data", "digits", "--data.column", "1,2"]).data.column == "1,2"


def test_later_files_win(file, tmp_path):
    (tmp_path / "more.yaml").write_text("objective.temperature: 0.7\nseed: 3\n")
    config = from_command_line(["--config", file, f"--config={tmp_path / 'more.yaml'}"])
    assert config.objective["temperature"] == 0.7 and config.run.seed == 3
    assert config.encoder["depth"] == 2


def test_the_order_of_overrides_and_files_does_not_matter(file):
    first = from_command_line(["--seed", "9", "--config", file])
    assert first.to_dict() == from_command_line(["--config", file, "--seed", "9"]).to_dict()


def test_shorthand_of_groups():
    short = from_command_line(["--objective", "byol", "--encoder=small", "--data", "digits", "--modality", "image"])
    long = from_command_line(["--objective.name", "byol", "--encoder.name", "small", "--data.name", "digits"])
    assert short.to_dict() == long.to_dict()
    assert short.objective["name"] == "byol"
    alone = {"minutes": 20.0, "data": "digits"}  # as on a command line without a file
    assert read({"objective": "byol", "encoder": "small"} | alone).to_dict() == long.to_dict()


def test_a_dictionary(file):
    wanted = from_command_line(["--config", file])
    given = yaml.safe_load(YAML)
    assert read(given).to_dict() == wanted.to_dict() == read(file).to_dict()
    assert read(read(given)).to_dict() == wanted.to_dict()
    assert given == yaml.safe_load(YAML), "the caller's dictionary is not changed"
    with pytest.raises(UserError, match="no option 'objective.temprature'; did you mean objective.temperature"):
        read({"objective": {"name": "simclr", "temprature": 1.0}})


def test_another_objective_leaves_the_files_settings_of_it_out(file, capsys, tmp_path):
    from_file = read(yaml.safe_load(YAML))
    name = "masked" if from_file.objective["name"] != "masked" else "mae"
    config = from_command_line(["--config", file, "--objective", name])
    assert config.objective == from_command_line(["--objective", name]).objective
    assert dataclasses.replace(config.run, output_dir=from_file.run.output_dir) == from_file.run
    assert config.modality == read({**yaml.safe_load(YAML), "objective": name}).modality  # its views are the other's
    assert f"objective {name} instead of {from_file.objective['name']}" in capsys.readouterr().err
    second = tmp_path / "second.yaml"
    second.write_text(f"objective: {name}")
    assert from_command_line(["--config", file, "--config", str(second)]).to_dict() == config.to_dict()
    assert f"objective {name} instead of" in capsys.readouterr().err
    from_command_line(["--config", file, "--objective", from_file.objective["name"]])
    assert not capsys.readouterr().err


def test_a_dictionary_of_deepspeed_settings():
    given = {"zero_optimization": {"stage": 2, "overlap_comm": True}, "train_batch_size": "auto"}
    assert read({"deepspeed": given}).run.deepspeed == given


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("modality", MODALITIES)
def test_resolved_settings_are_read_back_the_same(modality, objective, tmp_path):
    more = [f"--{key}={value}" for key, value in support.needed(objective).items()]
    config = from_command_line(["--modality", modality, "--objective", objective, "--encoder.width", "96", *more])
    resolved = plain(config.to_dict())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.stored()))
    again = plain(read(str(tmp_path / "config.yaml")).to_dict())
    assert again == resolved
    assert differences(resolved, again) == []


def test_defaults_are_those_of_the_signatures_and_of_the_cell():
    config, own = from_command_line([]).to_dict(), own_defaults("image", "mae")
    assert own.keys() >= {"objective.mask.ratio", "objective.decoder.width"}
    for group, cls in (("modality", MODALITIES["image"]), ("objective", OBJECTIVES["mae"])):
        for name, parameter in inspect.signature(cls).parameters.items():
            if parameter.default is not parameter.empty:
                default, key = parameter.default, f"{group}.{name}"
                if dataclasses.is_dataclass(default):
                    default = {k: own.get(f"{key}.{k}", v) for k, v in vars(default).items()}
                assert config[group][name] == own.get(key, default), name
    assert config == Config(**{k: v for k, v in vars(read({})).items()}).to_dict()


def test_print_config(file, capsys):
    with pytest.raises(SystemExit) as ended:
        from_command_line(["--config", file, "--seed", "5", "--print_config"])
    assert not ended.value.code
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["seed"] == 5 and printed["objective"]["temperature"] == 0.2
    assert read(printed).to_dict() == from_command_line(["--config", file, "--seed", "5"]).to_dict()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("modality", MODALITIES)
def test_every_option_is_documented(modality, objective):
    actions = [a for a in schema(modality, objective)._actions if a.option_strings]
    silent = [a.dest for a in actions if not a.help and a.dest not in ("help", "print_config")]
    assert len(actions) > 40 and not silent, silent
    # What jsonargparse would show of its own, and what is refused: a file for a group, `--report_to+`.
    odd = [a.dest for a in actions if "configuration file" in str(a.help) or any("+" in o for o in a.option_strings)]
    assert not odd, odd


@pytest.mark.parametrize("said", ["tensorboard,wandb", "[tensorboard, wandb]"])
def test_several_trackers(said):
    assert from_command_line(["--report_to", said]).run.trackers == ["tensorboard", "wandb"]


def test_differences_leave_out_what_may_change():
    old, new = read({}).stored(), read({"save_steps": 7, "device": "cpu", "data": {"max_bad": 3}}).stored()
    assert differences(old, new) == []
    assert differences(old, read({"seed": 1, "objective": {"mask": {"ratio": 0.5}}}).stored()) == [
        "objective.mask.ratio",
        "seed",
    ]


def test_nearest_names():
    assert nearest("learning_rte", ["learning_rate", "seed"], "--") == "; did you mean --learning_rate?"
    assert nearest("zzz", ["learning_rate", "seed"]) == ""


def test_every_shipped_deepspeed_file_is_taken():
    from triptych.training import engine

    files = sorted((support.ROOT / "configs" / "deepspeed").glob("*.json"))
    assert len(files) == 4
    for stage, file in enumerate(files):
        made = engine.settings(read({"deepspeed": str(file)}).run, 2)
        assert made["zero_optimization"]["stage"] == stage
        assert made["torch_autocast"]["lower_precision_safe_modules"] == []


def test_shipped_files_are_known_by_their_names_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = read(support.ROOT / "configs" / "image_mae.yaml").to_dict()
    assert from_command_line(["--config", "image_mae"]).to_dict() == read("image_mae.yaml").to_dict() == known
    with pytest.raises(UserError, match="no config file 'image_mea'; did you mean image_mae"):
        read("image_mea")
    with pytest.raises(UserError, match="no config file 'deepspeed/image_mae'"):
        read("deepspeed/image_mae")
    (tmp_path / "image_mae").write_text("seed: 7\n")
    assert read("image_mae").run.seed == 7
    stages = [settings(Run(deepspeed=f"zero{stage}"), 1)["zero_optimization"]["stage"] for stage in range(4)]
    assert stages == [0, 1, 2, 3]
