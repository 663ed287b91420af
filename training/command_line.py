"""The command line and its YAML files: constructors' signatures are the only schema, jsonargparse the only reader.

Four groups (`data`, `modality`, `encoder`, `objective`) beside the run's own options. A group given as one word sets
its `name`: `--objective mae` is `--objective.name mae`, `objective: mae` in YAML likewise. Nothing is imported by a
name in a config: names are those of the literal tables, or of code that the user names on his command line (`own`).
"""

import contextlib
import copy
import dataclasses
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, get_args

import yaml
from jsonargparse import SUPPRESS, ArgumentError, ArgumentParser

from triptych.encoders import EncoderSettings
from triptych.encoders.native import DEFAULTS, known, known_as
from triptych.modalities import MODALITIES
from triptych.modalities.domains import arguments
from triptych.objectives import OBJECTIVES
from triptych.training import own
from triptych.training.errors import UserError, nearest, one_line, one_line_exit, readable
from triptych.training.kinds import modality_in
from triptych.training.settings import (
    CHOSEN,
    CONFIGS,
    GIVEN,
    GROUPS,
    Config,
    Data,
    Run,
    defaults_of,
    flatten,
    folder_for,
    home,
    own_defaults,
    plain,
    shipped,
    shipped_recipe,
    without_name,
)

OBJECTIVE, MINUTES = "simclr", 20.0  # where nobody says: docs/sizes.md has why
NUMBER = r"-?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?"
NUMBERS = re.compile(rf"{NUMBER}(, ?{NUMBER})+", re.IGNORECASE)
COMMANDS = {"config", "show", "help", "print_config"}  # words of the command line alone


def read(source: "Config | dict | str | os.PathLike", overrides: list[str] | None = None) -> Config:
    """A checked `Config` from one, from a dictionary, or from a YAML file, with command-line overrides."""
    if isinstance(source, Config):
        return _parse(unfold(source.stored()), overrides or [], "train.py")
    if not isinstance(source, (dict, str, os.PathLike)):
        raise UserError(
            f"a configuration is a file, a dictionary of options or a Config, not a {type(source).__name__}"
        )
    given = plain(source) if isinstance(source, dict) else load_yaml(source)
    return _parse(unfold(given), overrides or [], "train.py")


def from_command_line(argv: list[str], program: str = "train.py") -> Config:
    """A checked `Config` from command-line arguments; prints one line and exits on a mistake."""
    with one_line_exit(program):
        files, rest = [], []
        arguments = iter(argv)
        for argument in arguments:
            if argument == "--config":
                files.append(next(arguments, "--"))
            elif argument.startswith("--config="):
                files.append(argument.split("=", 1)[1])
            else:
                rest.append(argument)
        given: dict[str, Any] = {}
        for name in files:
            if not name or name.startswith("--"):
                raise UserError("--config: expected one argument, a YAML file")
            merge(given, unfold(load_yaml(name)))
        return _parse(given, rest, program, alone=not files)


def _parse(given: dict[str, Any], argv: list[str], program: str, alone: bool = False) -> Config:
    argv = [re.sub(rf"^--({'|'.join(GROUPS)})(?==|$)", r"--\1.name", argument) for argument in own.used(argv)]
    stored = given.pop("origin", None)
    if not isinstance(stored or {}, dict) or not set((stored or {}).values()) <= {*CHOSEN, *GIVEN}:
        raise UserError("origin is what a run writes into its configuration, and no option; leave it out")
    origin = dict(stored or {})
    if stored is None:
        origin = _recipe(given, argv) or _chosen(given, argv, alone)
    names = {}
    for group, table in (("modality", MODALITIES), ("objective", OBJECTIVES)):
        asked, filed = peek(argv, f"--{group}.name"), given.get(group, {}).get("name", next(iter(table)))
        names[group] = str(asked or filed)
        if names[group] not in table and own.is_own(names[group]):
            raise UserError(own.refusal(group, names[group]))
        if names[group] not in table:
            raise UserError(f"{group} {names[group]!r} is not one of {', '.join(table)}{nearest(names[group], table)}")
        if asked:
            merge(given, {group: {"name": asked}})
    parser = schema(names["modality"], names["objective"], program)
    argv = in_brackets(argv)
    argv = with_values(argv, [f.name for f in dataclasses.fields(Run) if f.type is bool or bool in get_args(f.type)])
    known = {action.dest for action in parser._actions}
    usual = plain(defaults_of(names["modality"], names["objective"]))
    data = peek(argv, "--data.name") or given.get("data", {}).get("name") or Data.name
    usual["output_dir"] = folder_for(str(data), names["objective"])
    parser.set_defaults(output_dir=usual["output_dir"])
    filed = flatten(given)
    for key in filed:
        _known(key, known - COMMANDS, usual)
    said = [argument[2:].split("=")[0] for argument in argv if argument.startswith("--")]
    for key in said:
        _known(key, known | COMMANDS, usual, "--")
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            space = parser.parse_args(["--config", yaml.safe_dump(given), *argv] if given else argv)
    except ArgumentError as error:
        raise UserError(readable(error)) from None
    values = home(space.as_dict())
    values.pop("config", None)
    groups = {name: values.pop(name) for name in GROUPS}
    run = Run(**{key: value for key, value in values.items() if key in Run.__dataclass_fields__})
    # What is not said to come from elsewhere was given, even if it equals the default; a stored configuration says.
    kept = {k: o for k, o in origin.items() if k in filed and k not in said}
    filed = {k for k, v in filed.items() if k not in kept and (stored is None or v != usual.get(k))}
    origin = kept | dict.fromkeys(filed, "file") | dict.fromkeys((k for k in said if k in usual), "command line")
    for other in ("max_steps", "num_train_epochs"):
        said_too = origin.get(other) == origin.get("minutes") and getattr(run, other) != getattr(Run, other)
        if run.minutes is not None and origin.get("minutes") in GIVEN and said_too:
            raise UserError(f"minutes {run.minutes:g} and {other} both say how long the run is: leave one out")
    return Config(run, Data(**groups.pop("data")), **groups, origin=origin).check()


def _recipe(given: dict[str, Any], argv: list[str]) -> dict[str, str]:
    """Put the recipe of continuing a checkpoint under what was given, where there is one; returns the origin of each.

    The modality is the checkpoint's. Of another objective than the recipe's, its settings have no use.
    """
    source = peek(argv, "--init_from") or given.get("init_from")
    if not source:
        return {}
    asked = peek(argv, "--modality.name") or given.get("modality", {}).get("name")
    folder = peek(argv, "--output_dir") or given.get("output_dir", "")
    revision = peek(argv, "--init_revision") or given.get("init_revision")
    # A run that goes on does not need what it started from.
    modality = asked or modality_of(str(home(source)), revision) or modality_of(str(home(folder)))
    file = CONFIGS / f"continue_{modality}.yaml"
    if modality not in MODALITIES or not file.is_file():
        return {}
    recipe = unfold(load_yaml(file))
    objective = peek(argv, "--objective.name") or given.get("objective", {}).get("name")
    if objective and objective != recipe["objective"]["name"]:
        del recipe["objective"]
    filed = flatten(given)
    origin = {key: "recipe" for key in flatten(recipe) if key not in filed}
    given |= merge(recipe, given)
    return origin


def _chosen(given: dict[str, Any], argv: list[str], alone: bool) -> dict[str, str]:
    """Put under what was given the modality that the data says, and, where a command line stands alone or `minutes` are
    given, the objective and the minutes; returns the origin of each. What else is chosen needs the data itself, and a
    look at this machine (`training/choice.py`).
    """

    def said(option: str) -> Any:
        group, _, name = option.rpartition(".")
        return peek(argv, f"--{option}") or (given.get(group, {}) if group else given).get(name)

    data, made = said("data.name"), {}
    if said("init_from"):
        return {}
    modality = said("modality.name")
    if data is not None and modality is None and (found := modality_in(str(home(data)))):
        named = {key.partition(".")[2].split("=")[0] for key in argv if key.startswith("--modality.")}
        if named | given.get("modality", {}).keys() <= {name for name, *_ in arguments(MODALITIES[found[0]])}:
            modality = made["modality.name"] = found[0]
    if (alone and data is not None or said("minutes")) and not said("max_steps"):
        usual = modality or next(iter(MODALITIES))
        named = {key[2:].split("=")[0] for key in argv if key.startswith("--objective.")}
        named |= flatten({"objective": given.get("objective", {})}).keys()
        fits = named <= defaults_of(usual, OBJECTIVE).keys() - {"objective.name"}  # a name is the user's choice
        if fits and shipped_recipe(usual, OBJECTIVE):
            made["objective.name"] = OBJECTIVE
        if not said("minutes"):
            made["minutes"] = MINUTES
    merge(given, unfold(made))
    return dict.fromkeys(made, "chosen")


def modality_of(source: str, revision: str | None = None) -> str | None:
    """The modality of a published checkpoint or of a run of ours; None where it cannot be told from here."""
    run, published = Path(source) / "config.yaml", Path(source) / "config.json"
    if run.is_file():
        return load_yaml(run).get("modality", {}).get("name")
    try:
        if published.is_file():
            kind = json.loads(published.read_text(encoding="utf-8")).get("model_type")
        elif Path(source).exists():
            return None
        else:
            from transformers import PreTrainedConfig

            hub = {} if revision is None else {"revision": str(revision)}
            kind = PreTrainedConfig.get_config_dict(source, **hub)[0].get("model_type")
    except (OSError, ValueError, AttributeError):  # said when it is opened
        return None
    return None if (family := known_as(kind)) is None else family.modality


def _known(key: str, known: set[str], usual: dict[str, Any], dashes: str = "") -> None:
    """Refuse an option that there is not, and a group of options that was given a value."""
    within = [k.rpartition(".")[2] for k in usual if k.startswith(f"{key}.")]
    if key in known and not within:
        return
    if within:
        raise UserError(f"{dashes}{key} is a group of options ({', '.join(within)}): give {dashes}{key}.{within[0]}")
    raise UserError(f"no option '{dashes}{key}'{nearest(key, known, dashes)}")


def schema(modality: str, objective: str, program: str = "train.py") -> ArgumentParser:
    """The parser for one modality and one objective: all options with docstring, unit and default."""
    parser = ArgumentParser(
        prog=program,
        exit_on_error=False,
        description="Pretrain one encoder without labels. These are the options with modality "
        f"{modality} and objective {objective}; for those of others: --modality NAME --objective NAME --help.",
    )
    parser.add_argument("--config", action="config", help="YAML file of the same options; may be given several times")
    shown = "print how the data is read, and train nothing"
    parser.add_argument("--show", action="store_true", default=SUPPRESS, help=shown)
    parser.add_class_arguments(Run)
    if families := known(modality):
        family = next(action for action in parser._actions if action.dest == "family")
        family.help += f" Of {modality} there are {families}; usual is {DEFAULTS[modality]}."
    parser.add_class_arguments(Data, "data")
    parser.add_argument("--modality.name", choices=list(MODALITIES), default=modality, help="what the samples are")
    parser.add_class_arguments(MODALITIES[modality], "modality")
    parser.add_class_arguments(EncoderSettings, "encoder")
    parser.add_argument("--objective.name", choices=list(OBJECTIVES), default=objective, help="what is learned")
    parser.add_class_arguments(OBJECTIVES[objective], "objective", skip={"backbone"})
    parser.set_defaults(own_defaults(modality, objective))
    for action in parser._actions:
        action.option_strings = [option for option in action.option_strings if not option.endswith("+")]
        # Of a group as a whole: one word is its name, where jsonargparse would have a file.
        if action.dest in GROUPS:
            action.metavar, action.help = action.dest.upper(), f"the same as --{action.dest}.name"
        elif any(other.dest.startswith(f"{action.dest}.") for other in parser._actions):
            action.help = SUPPRESS  # `_known` refuses it
    return parser


def load_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """A file of options, by its path; a shipped one by its name, too."""
    path = Path(path).expanduser()
    path = path if path.is_file() else shipped(path, ".yaml") or path
    if not path.is_file():
        known = [file.stem for file in CONFIGS.glob("*.yaml")]
        raise UserError(f"no config file {str(path)!r}{nearest(path.name.removesuffix('.yaml'), known)}")
    try:
        content = Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, UnicodeError) as error:
        raise UserError(f"{path} is not YAML: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no options (`name: value` lines)")
    return plain(content)


class Loader(yaml.SafeLoader):
    """Plain data alone, and an option that is there twice is a mistake: the second would win in silence."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := {name for name in names if names.count(name) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"{min(twice)} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


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


def peek(argv: list[str], option: str) -> str | None:
    """The last value of an option, before the parser that depends on it can be made."""
    value = None
    for here, following in zip(argv, [*argv[1:], None], strict=False):
        if here == option:
            value = following
        elif here.startswith(option + "="):
            value = here.split("=", 1)[1]
    return value


def in_brackets(argv: list[str]) -> list[str]:
    """Several numbers with commas, as tables and pages have them, are the list that the parser reads: `0,4095`.

    A column of the data may be called so.
    """
    result, option = [], ""
    for argument in argv:
        name, equals, value = argument.partition("=")
        if argument.startswith("--"):
            option = name
        many = NUMBERS.fullmatch(value if equals else argument) and not option.startswith("--data.")
        if many and equals:
            result.append(f"{name}=[{value}]")
        else:
            result.append(f"[{argument}]" if many else argument)
    return result


def with_values(argv: list[str], switches: list[str]) -> list[str]:
    """`--bf16` alone means `--bf16 true`."""
    result = []
    for argument, following in zip(argv, [*argv[1:], "--"], strict=False):
        result.append(argument)
        if argument.removeprefix("--") in switches and argument.startswith("--") and following.startswith("--"):
            result.append("true")
    return result
