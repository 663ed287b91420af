"""A batch and its samples one by one, for oracles that are loops over samples."""

from functools import cache

import datasets
import pytest
import torch
from support import sentences

from triptych.encoders.native import make
from triptych.modalities import EVALUATION, Audio, Image, Text, View

KINDS = ("image", "audio", "text")
ONE = {"ids": [86], "starts": [True]}  # a text of one token


@cache
def fitted() -> Text:
    made = Text(vocab_size=300, max_length=24)
    made.fit(datasets.Dataset.from_dict({"text": sentences(100)}), "text")
    return made


def backbone_of(kind: str, **encoder):
    """Small, with weights of a size at which every part matters."""
    torch.manual_seed(0)
    modality = {"image": lambda: Image(16, 4), "audio": lambda: Audio(0.32, 16, (8, 8), mean=0.0, std=1.0)}
    made = make(modality[kind]() if kind in modality else fitted(), **{"width": 16, "depth": 2, "heads": 2} | encoder)
    return shaken(made)


def shaken(module, scale: float = 0.2):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn_like(parameter))
    return module


def batch_of(modality, samples: int = 5) -> tuple[View, list[View]]:
    """A view of some samples, as an objective gets it, and a view of each alone. Of sound, tiles are padding."""
    torch.manual_seed(2)
    seed = torch.randint(1 << 32, (samples,))
    if isinstance(modality, Text):
        texts = [ONE, *sentences(samples - 1, seed=3, longest=14)]
        made = [modality.view(modality.read(text), EVALUATION, 0) for text in texts]
        whole = modality.prepare(modality.collate(made, seed))
        return whole, [modality.prepare(modality.collate([m], seed[i : i + 1])) for i, m in enumerate(made)]
    whole = View(seed=seed, **modality.cut(torch.randn(samples, modality.channels, *modality.extent)))
    if isinstance(modality, Audio):
        columns = torch.arange(samples)[:, None] % 3 + 2
        whole = whole.replace(ordinary=whole.position[..., 1] < columns)
    parts = [{k: v[i : i + 1] for k, v in whole.tensors().items() if k != "position"} for i in range(samples)]
    return whole, [whole.replace(**part) for part in parts]


def assert_equal(objective, other, loss, expected, atol=1e-5):
    """Value and gradient of an objective and of a loss that was made of a copy of it."""
    torch.testing.assert_close(loss, expected, atol=atol, rtol=1e-5)
    loss.backward()
    expected.backward()
    compared = 0
    for (name, ours), (_, theirs) in zip(objective.named_parameters(), other.named_parameters(), strict=True):
        if not ours.requires_grad:
            assert ours.grad is None and theirs.grad is None, name
        elif theirs.grad is None:  # not in the loss
            assert ours.grad is None or not ours.grad.any(), name
        else:
            assert ours.grad is not None, name
            torch.testing.assert_close(ours.grad, theirs.grad, atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
            compared += bool(theirs.grad.any())
    assert compared > 5


def assert_seen(monkeypatch, check, where, attribute: str, fault) -> None:
    """A fault that is planted must turn a check red that is green without it."""
    check()
    assert hasattr(where, attribute)
    monkeypatch.setattr(where, attribute, fault)
    with pytest.raises(AssertionError):
        check()
