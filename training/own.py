"""Code of the user's own, which he names on his own command line: `--objective mine.py:VICReg`.

It is never run because a file names it. A configuration and a checkpoint hold the name `mine.py:VICReg`; who loads them
gives the option again, with the file's path from where he is.
"""

import importlib.util
import inspect
import os
import re
import sys
from typing import Any

from triptych.modalities import MODALITIES, Modality
from triptych.objectives import OBJECTIVES, Objective
from triptych.training.errors import UserError, nearest, one_line

GROUPS: dict[str, tuple[dict[str, Any], type]] = {
    "objective": (OBJECTIVES, Objective),
    "modality": (MODALITIES, Modality),
}
USED: dict[str, str] = {}  # paths that were given, by option


def is_own(name: Any) -> bool:
    """Is it `file.py:Class`?"""
    return re.fullmatch(r".*\.py:\w+", str(name)) is not None


def use(group: str, path: str) -> str:
    """Run the file, and put the class that `file.py:Class` names into the table of its group; returns its name there.

    Raises:
        UserError: where there is no such file or class, or the class is of another kind.
    """
    table, base = GROUPS[group]
    file, _, name = os.path.expanduser(path).rpartition(":")
    if not os.path.isfile(file):
        raise UserError(f"--{group} {path}: no such file")
    module_name = f"own_{os.path.basename(file).removesuffix('.py')}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, file)
        sys.modules[module_name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise UserError(
                f"--{group} {path}: {type(error).__name__}: {one_line(error)} (TRIPTYCH_TRACEBACK=1 shows where)"
            ) from error
    module = sys.modules[module_name]
    if os.path.realpath(module.__file__) != os.path.realpath(file):
        raise UserError(f"--{group} {path}: another {os.path.basename(file)} is in use; rename one of them")
    kinds = [n for n, cls in inspect.getmembers(module, inspect.isclass) if issubclass(cls, base)]
    kinds = [n for n in kinds if getattr(module, n).__module__ == module_name]  # not what it imports
    if name not in kinds:
        there = f"there are {', '.join(kinds)}" if kinds else "there is none"
        raise UserError(f"--{group} {path}: no {base.__name__} of that name{nearest(name, kinds)}; {there}")
    called = f"{os.path.basename(file)}:{name}"
    table[called], USED[group] = getattr(module, name), path
    return called


def used(argv: list[str]) -> list[str]:
    """Command-line arguments with what they name of the user's own in use, under its name in the table."""
    made = list(argv)
    for i, argument in enumerate(argv):
        if found := re.fullmatch(r"--(objective|modality)(\.name)?(?:=(.*))?", argument, re.DOTALL):
            value = argv[i + 1] if found[3] is None and i + 1 < len(argv) else found[3]
            if value is not None and is_own(value):
                name = use(found[1], value)
                at = i if found[3] is not None else i + 1
                made[at] = name if at > i else argument.partition("=")[0] + f"={name}"
    return made


def taken(argv: list[str]) -> list[str]:
    """The same, of a command without these options: what is left of its arguments."""
    rest, here = [], iter(argv)
    for argument in here:
        found = re.fullmatch(r"--(objective|modality)(?:=(.*))?", argument, re.DOTALL)
        if found is None:
            rest.append(argument)
            continue
        value = next(here, "") if found[2] is None else found[2]
        if not is_own(value):
            raise UserError(f"--{found[1]} {value}: here only code of your own is named, file.py:Class; leave it out")
        use(found[1], value)
    return rest


def options() -> list[str]:
    """The options that make another process use the same."""
    return [word for group, path in USED.items() for word in (f"--{group}", os.path.abspath(os.path.expanduser(path)))]


def refusal(group: str, name: str) -> str:
    """What is said of a name that a file brings along."""
    return (
        f"{group} {name} is code of its author's own, and no file may have it run: if you have that file and trust it, "
        f"give --{group} {name} on the command line, with its path"
    )
