"""Domains: the values that an argument may have, written in its type and checked in one place.

`flip: Probability = 0.5` in a constructor is a number from 0 to 1. A type alone lets `2` through, which nothing refuses
later and which trains nonsense. `build` calls a constructor and checks each argument that has a domain.
"""

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_args, get_type_hints


class Within:
    """A range in the notation of mathematics: `(0, 1]` is above 0 and at most 1. Of a pair, both, in rising order."""

    def __init__(self, range: str):
        self.range = range
        opening, low, high, closing = re.fullmatch(r"([\[(])(\S+), (\S+)([\])])", range).groups()
        self.low, self.high, self.above, self.below = float(low), float(high), opening == "(", closing == ")"

    def __repr__(self) -> str:  # `--help` shows it
        return f"in {self.range}"

    def holds(self, value: Any) -> bool:
        """Whether a value is in the range; None, which stands for a default, and words such as `auto` are."""
        if value is None or isinstance(value, str):
            return True
        if isinstance(value, (list, tuple)):
            return all(map(self.holds, value)) and list(value) == sorted(value)
        if not math.isfinite(value):
            return False
        return (value > self.low if self.above else value >= self.low) and (
            value < self.high if self.below else value <= self.high
        )


class Each(Within):
    """The same for a list of any order."""

    def holds(self, value: Any) -> bool:
        return all(map(super().holds, value)) if isinstance(value, (list, tuple)) else super().holds(value)


Count = Annotated[int, Within("[1, inf)")]
# Of a network: a slip of the finger is refused at once, where building it would take all memory or forever.
Depth = Annotated[int, Within("[1, 1000]")]
Width = Annotated[int, Within("[1, 1000000]")]
Number = Annotated[int, Within("[0, inf)")]  # also none at all
Positive = Annotated[float, Within("(0, inf)")]
NotNegative = Annotated[float, Within("[0, inf)")]
Probability = Annotated[float, Within("[0, 1]")]
Part = Annotated[float, Within("[0, 1)")]  # never the whole
Fraction = Annotated[float, Within("(0, 1]")]  # also the whole
Share = Annotated[float, Within("(0, 1)")]  # neither none nor the whole
Scale = Annotated[tuple[float, float], Within("(0, 1]")]  # smallest and largest


def arguments(owner: Callable) -> Iterator[tuple[str, Any, Any]]:
    """Name, type and default of each argument of a class's constructor or of a function that has a type."""
    hints = get_type_hints(owner.__init__ if inspect.isclass(owner) else owner, include_extras=True)
    for name, parameter in inspect.signature(owner).parameters.items():
        if name in hints:
            yield name, hints[name], parameter.default


def nested(hint: Any) -> type | None:
    """The dataclass that an argument's type is, if it is one: its fields are options of their own."""
    return next((t for t in (hint, *get_args(hint)) if dataclasses.is_dataclass(t)), None)


def defaults(owner: Callable, prefix: str = "") -> dict[str, Any]:
    """Defaults of a signature, of nested dataclasses too, by dotted name."""
    flat: dict[str, Any] = {}
    for name, hint, default in arguments(owner):
        if nested(hint) and dataclasses.is_dataclass(default):
            flat |= {prefix + f"{name}.{key}": value for key, value in vars(default).items()}
        elif default is not inspect.Parameter.empty:
            flat[prefix + name] = default
    return flat


def check(owner: Callable, values: dict[str, Any], prefix: str = "") -> None:
    """Refuse, by name and with the way out, what is outside the domains of a signature's arguments.

    Nothing (`learning_rate:` in YAML) and an empty word are no values, unless the type has None, a default's sign.
    """
    for name, hint, default in arguments(owner):
        if name not in values:
            continue
        value = values[name]
        if value is None and default is not None and not any(t in (Any, type(None)) for t in (hint, *get_args(hint))):
            way = "" if default is inspect.Parameter.empty or nested(hint) else f", such as {default}"
            raise ValueError(f"{prefix}{name} has no value; give one{way}, or leave {prefix}{name} out")
        if isinstance(value, str) and (not value.strip() or "\0" in value):
            fault = "holds a NUL, which no name does" if value.strip() else "is an empty word"
            raise ValueError(f"{prefix}{name} {value!r} {fault}; leave {prefix}{name} out, or give one")
        if inner := nested(hint):
            check(inner, value if isinstance(value, dict) else vars(value or default), f"{prefix}{name}.")
        for domain in domains(hint):
            if not domain.holds(value):
                shown = list(value) if isinstance(value, tuple) else value
                rising = ", the smaller first" if type(domain) is Within and isinstance(value, (list, tuple)) else ""
                raise ValueError(
                    f"{prefix}{name} {shown} is not {domain!r}{rising}; try {advice(domain, default, value)}"
                )


def domains(hint: Any) -> Iterator[Within]:
    """The domains in a type, which may be optional."""
    if isinstance(hint, Within):
        yield hint
    for part in (*get_args(hint), *getattr(hint, "__metadata__", ())):
        if part is not hint:
            yield from domains(part)


def advice(domain: Within, default: Any, value: Any) -> Any:
    """A value that is in the domain: the default, if that is one, or a pair the other way round."""
    if default not in (None, inspect.Parameter.empty) and domain.holds(default):
        return list(default) if isinstance(default, tuple) else default
    if isinstance(value, (list, tuple)) and domain.holds(sorted(value)):
        return sorted(value)
    if math.isfinite(domain.low) and not domain.above:
        return f"{domain.low:g}"
    return f"{(domain.low + domain.high) / 2:g}" if math.isfinite(domain.high) else "1"


def build(owner: Callable, values: dict[str, Any], prefix: str = "", *before: Any) -> Any:
    """Call a constructor with checked options. Nested ones become the dataclasses that it asks for."""
    check(owner, values, prefix)
    given = dict(values)
    for name, hint, _ in arguments(owner):
        if (inner := nested(hint)) and isinstance(given.get(name), dict):
            given[name] = inner(**given[name])
    return owner(*before, **given)
