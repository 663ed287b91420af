"""What is said when something goes wrong: one line that names the thing and the way out.

A mistake of the user's or a fault of the world around (a full disk, a library that refuses, a network) is one line and
exit code 1. A fault of this program's own is a traceback. `explain` is the only place that tells them apart.
"""

import argparse
import contextlib
import difflib
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator

# Python's own exceptions that are about the world. Others of its own (TypeError, KeyError, ...) are about a program.
OUTSIDE = (OSError, ValueError, ImportError, MemoryError, EOFError)
RUST = re.compile(r"\(os error \d+\)")  # libraries in Rust raise a bare `Exception` that ends so
PATIENCE = 15.0  # seconds in which a launcher ends the other ranks after the first one's exit


class UserError(ValueError):
    """A mistake of the user's: one line that names the thing and the way out, and no traceback."""


class Told(UserError):
    """What another rank has said."""


def explain(error: BaseException) -> str | None:
    """One line for what can go wrong outside of this program; None for a fault of its own.

    Exceptions that a library (safetensors, datasets, a tracker) defines for itself are about the world.
    """
    text, kind = str(error), type(error)
    if caught := re.match(r"Caught (\w+) in DataLoader worker process", text):  # its traceback is part of the text
        text = text.rpartition(f"{caught[1]}: ")[2]
    if isinstance(error, argparse.ArgumentError):
        return readable(error)
    if isinstance(error, UserError) or (kind is ValueError and text):
        return one_line(text)
    if isinstance(error, OSError) and error.strerror:
        where = [name_of(f) for f in (error.filename, error.filename2) if f is not None]
        return one_line(": ".join([*where, error.strerror]))
    if RUST.search(text):
        return one_line(text)
    if "out of memory" in text.lower():
        return (
            "out of memory; lower per_device_train_batch_size (and raise gradient_accumulation_steps), or give "
            "--gradient_checkpointing: "
            f"{one_line(text)[:150]}"
        )
    if re.search("Connection (closed|reset) by peer|Broken pipe", text):
        return "another rank has ended, and so does this one"
    if isinstance(error, ImportError):
        return f"{one_line(text)}; install it, or mend the installation"
    if "DataLoader worker" in text and "killed" in text:
        return f"{one_line(text)[:200]}; there may be too little memory: lower dataloader_num_workers"
    if isinstance(error, OUTSIDE) or kind.__module__.split(".")[0] not in ("builtins", *OURS):
        return f"{kind.__name__}: {one_line(text)[:400] or 'no reason given'}"
    return None


OURS = ("triptych", "__main__")


def name_of(file) -> str:
    """A name that people know; of what has none (a buffer in memory, a handle), what it is."""
    return file if isinstance(file, str) else os.fsdecode(file) if isinstance(file, (bytes, os.PathLike)) else "a file"


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Within, what goes wrong outside of this program is raised as a `UserError`; faults of its own pass."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        raise UserError(line) from error


@contextlib.contextmanager
def one_line_exit(program: str) -> Iterator[None]:
    """Within, what goes wrong outside of this program ends it with `program: one line` and exit code 1."""
    try:
        with explained():
            yield
    except Told:
        raise SystemExit(1) from None
    except UserError as error:
        if os.environ.get("TRIPTYCH_TRACEBACK"):
            traceback.print_exc()
        raise SystemExit(f"{program}: {one_line(error)}") from None


@contextlib.contextmanager
def printed_once() -> Iterator[None]:
    """Of many ranks that end with the same line, the first prints it.

    Another rank waits for the launcher, which ends all when the first is gone. Where that does not happen, the fault
    is that rank's own, and it says so.
    """
    try:
        yield
    except SystemExit as ended:
        rank = int(os.environ.get("RANK", 0))
        if rank and isinstance(ended.code, str):
            time.sleep(PATIENCE)
            sys.exit(f"rank {rank}: {ended.code}")
        raise


def at_home(argv: list[str]) -> list[str]:
    """`~` in arguments, where the shell left it: `--to=~/mine`."""
    return [re.sub(r"(?:^|(?<==))~[^/=]*(?=/|$)", lambda m: os.path.expanduser(m[0]), argument) for argument in argv]


def one_line(error: BaseException | str) -> str:
    return " ".join(str(error).split())


def readable(error: argparse.ArgumentError) -> str:
    """jsonargparse's refusal of a value, by the option's name and in the words of the help."""
    text = re.sub(r"<class '(\w+)'>", r"\1", one_line(error))
    union = r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors: .*Given value: "
    text = re.sub(union, lambda m: f"Expected one of {m[1]}. Got value: ", text)
    text = re.sub(r"typing\.Annotated\[([^][]*(?:\[[^][]*\])?[^][]*), (in [\[(].*?[\])])\]", r"\1 \2", text)
    text = re.sub(r"typing\.(?:Literal\[(.*?)\]|(\w))", lambda m: m[1] or m[2], text).replace("NoneType", "null")
    return re.sub(r'^(?:Parser key|argument) "?(--)?([\w.]+)"?: ', r"\1\2: ", text)


def nearest(word: str, known, dashes: str = "") -> str:
    """`; did you mean ...?`, or nothing."""
    known = list(known)
    found = difflib.get_close_matches(word, known, 1, 0.5)
    if not found:  # the same last part in another group: ratio for objective.mask.ratio
        found = difflib.get_close_matches(word.split(".")[-1], [k.split(".")[-1] for k in known], 1, 0.7)
        found = [k for k in known if found and k.split(".")[-1] == found[0]]
    return f"; did you mean {dashes}{found[0]}?" if found else ""
