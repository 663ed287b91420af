"""Names of parameters, ours and native ones, and values that go from one to the other."""

from collections.abc import Iterator

import torch
from torch import Tensor

Pair = tuple[tuple[str, ...], tuple[str, ...]]  # names of ours, and of theirs, whose values are the same in this order
Names = dict[str | tuple[str, ...], str | tuple[str, ...]]  # the same, of modules


def leaves(ours: str | tuple[str, ...], native: str | tuple[str, ...], number: int = 0) -> Iterator[Pair]:
    """The parameters that a module stands for; a name that ends as a parameter's does is itself."""
    names = tuple(name.format(number) for name in ((native,) if isinstance(native, str) else native))
    if isinstance(ours, tuple):
        for kind in ("weight", "bias"):
            yield tuple(f"{name}.{kind}" for name in ours), tuple(f"{name}.{kind}" for name in names)
        return
    if ours.split(".")[-1] in ("weight", "bias") or "." in ours and ours.split(".")[-1].startswith(("lead_", "hidden")):
        yield (ours,), names
        return
    for kind in ("weight", "bias"):
        yield (f"{ours}.{kind}",), tuple(f"{name}.{kind}" for name in names)


def base_prefix(model) -> str:
    """Of the names of the base model within a model; empty if it is the base model."""
    prefix = f"{model.base_model_prefix}."
    # Of some the base model has a part of that name; the embeddings are in the base model itself.
    return prefix if any(name.startswith(f"{prefix}embed") for name in model.state_dict()) else ""


def copy_in(ours: dict[str, Tensor], state: dict[str, Tensor], mine: tuple[str, ...], theirs: tuple[str, ...]):
    """Native values into our parameters; returns the native names that were used. What neither has is passed over."""
    sources = {name: state[name] for name in theirs if name in state}
    targets = [ours[name] for name in mine if name in ours]
    if not sources or not targets:
        return set()
    flat = torch.cat([tensor.flatten() for tensor in sources.values()])
    with torch.no_grad():
        if len(theirs) == len(targets) == 1 and targets[0].numel() > len(flat):
            # A tokenizer of more tokens than the model has (some were added) keeps fresh rows for the rest.
            targets[0].view(-1)[: len(flat)].copy_(flat)
            return set(sources)
        for target, part in zip(targets, flat.split([t.numel() for t in targets]), strict=True):
            target.copy_(part.view_as(target))
    return set(sources)


def copy_out(ours: dict[str, Tensor], wanted: dict[str, Tensor], mine: tuple[str, ...], theirs: tuple[str, ...]):
    """Our values by native names and shapes; what neither has is passed over."""
    names = [name for name in theirs if name in wanted]
    sources = [ours[name] for name in mine if name in ours]
    if not names or not sources:
        return {}
    parts = torch.cat([tensor.flatten() for tensor in sources]).split([wanted[name].numel() for name in names])
    return {name: part.view(wanted[name].shape).clone() for name, part in zip(names, parts, strict=True)}
