"""Few-label fine-tuning of a backbone with a linear head: the same recipe from pretrained weights and from none."""

import math
from itertools import islice

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from triptych.encoders.backbone import Backbone, pool
from triptych.modalities import EVALUATION, ViewSpec
from triptych.modalities.hashing import mix
from triptych.training.sources import Rows


def finetune(
    backbone: Backbone,
    train: Rows,
    labels: np.ndarray,
    test: Rows,
    test_labels: np.ndarray,
    samples: int,
    rate: float = 1e-3,
    batch: int = 64,
    scale: tuple[float, float] = (0.6, 1.0),
    pooling: str = "mean",
    seed: int = 0,
) -> float:
    """Accuracy in per cent after `samples` training samples. `train` holds the labelled rows only.

    AdamW (0.9, 0.999), weight decay 0.05, 10 % warm-up, cosine, label smoothing 0.1, gradient norm at most 1.
    """
    modality = backbone.modality
    torch.manual_seed(mix(seed, 0xF17E))
    classes = int(max(labels.max(), test_labels.max())) + 1
    head = nn.Linear(backbone.pooled_width if pooling == "native" else backbone.width, classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    model = nn.ModuleList([backbone, head]).train()
    pooling = {"mean": modality.average, "native": backbone.pooling}[pooling]

    def logits(view):
        return head(pool(backbone.encode(view), view, pooling))

    owner, cells = _samples(train)
    batch = min(batch, len(cells))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05, fused=True)
    steps = max(1, samples // batch)
    random = np.random.RandomState(seed)
    order = np.concatenate([random.permutation(len(cells)) for _ in range(math.ceil(steps * batch / len(cells)))])
    view = ViewSpec(scale=scale)
    for step in range(steps):
        index = order[step * batch : (step + 1) * batch]
        seeds = [mix(seed, step, int(i)) for i in index]
        made = [modality.view(cells[i], view, s) for i, s in zip(index, seeds, strict=True)]
        target = torch.from_numpy(labels[owner[index]])
        loss = F.cross_entropy(
            logits(modality.prepare(modality.collate(made, torch.tensor(seeds)))), target, label_smoothing=0.1
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        warm = min(1.0, (step + 1) / (0.1 * steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.step()

    model.eval()
    owner, cells = _samples(test)
    scores = np.zeros((len(test), classes))
    with torch.no_grad():
        parts = ((r, modality.view(cell, EVALUATION, 0)) for r, cell in zip(owner, cells, strict=True))
        while some := list(islice(parts, 250)):
            row, made = zip(*some, strict=True)
            view = modality.prepare(modality.collate(list(made), torch.zeros(len(made), dtype=torch.long)))
            np.add.at(scores, np.array(row), logits(view).numpy())
    return 100 * float((scores.argmax(1) == test_labels).mean())


def _samples(rows: Rows):
    """Each sample's row, and the samples read once."""
    table = rows.modality.samples(rows.table, rows.column)
    owner = np.asarray(table["source_row"]) if "source_row" in table.column_names else np.arange(len(table))
    cells = [rows.modality.read(cell) for cell in table[:][rows.column]]
    return owner, cells
