"""Few-label fine-tuning of a backbone with a linear head: the same recipe from pretrained weights and from none."""

import math
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from torch.nn import functional as F

from triptych.encoders.backbone import Backbone, pool
from triptych.evaluation.tasks import Classes, Numbers, Task
from triptych.modalities import EVALUATION, ViewSpec
from triptych.modalities.hashing import mix
from triptych.training.sources import Rows

HELD = 512  # training samples that are kept as they were read; of more, each is read anew every time


def finetune(backbone, train, labels, test, test_labels, samples: int, rate: float = 1e-3, **options) -> float:
    """Accuracy in per cent of classes after `samples` training samples; see `tuned`."""
    names = [str(c) for c in range(int(max(labels.max(), test_labels.max())) + 1)]
    scores = tuned(backbone, Classes(names), train, labels, test, samples, rate, **options)
    return 100 * float((scores.argmax(1) == test_labels).mean())


def tuned(
    backbone: Backbone,
    task: Task,
    train: Rows,
    labels: np.ndarray,
    test: Rows,
    samples: int,
    rate: float = 1e-3,
    batch: int = 64,
    scale: tuple[float, float] = (0.6, 1.0),
    pooling: str = "mean",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Float[np.ndarray, "n k"]:
    """The task's output on the rows of `test` after `samples` training samples. `train` holds the labelled rows only.

    AdamW (0.9, 0.999), weight decay 0.05, 10 % warm-up, cosine, gradient norm at most 1. Loss: of classes cross-entropy
    with label smoothing 0.1, of several labels binary cross-entropy, of numbers the squared error, standardised.
    """
    modality = backbone.modality
    torch.manual_seed(mix(seed, 0xF17E))
    head = nn.Linear(backbone.pooled_width if pooling == "native" else backbone.width, len(task.names))
    nn.init.trunc_normal_(head.weight, std=0.02)
    model = nn.ModuleList([backbone, head]).to(device).train()
    numbers = isinstance(task, Numbers)
    centre, spread = (labels.mean(), labels.std() or 1.0) if numbers else (0.0, 1.0)
    target_of = torch.from_numpy((labels - centre) / spread if numbers else labels)
    pooling = {"mean": modality.average, "native": backbone.pooling}[pooling]

    def logits(view):
        view = modality.prepare(view.to(device))
        return head(pool(backbone.encode(view), view, pooling))

    def loss_of(made, target):
        if isinstance(task, Classes):
            return F.cross_entropy(made, target, label_smoothing=0.1)
        if numbers:
            return F.mse_loss(made[:, 0], target.float())
        return F.binary_cross_entropy_with_logits(made, target.float())

    owner, table = _samples(train)
    read = lru_cache(HELD)(lambda i: modality.read(table[i][train.column]))
    batch = min(batch, len(owner))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05, fused=True)
    steps = max(1, samples // batch)
    random = np.random.RandomState(seed)
    order = np.concatenate([random.permutation(len(owner)) for _ in range(math.ceil(steps * batch / len(owner)))])
    view = ViewSpec(scale=scale)
    for step in range(steps):
        index = order[step * batch : (step + 1) * batch]
        seeds = [mix(seed, step, int(i)) for i in index]
        made = [modality.view(read(int(i)), view, s) for i, s in zip(index, seeds, strict=True)]
        target = target_of[owner[index]].to(device)
        loss = loss_of(logits(modality.collate(made, torch.tensor(seeds))), target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        warm = min(1.0, (step + 1) / (0.1 * steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.step()

    model.eval()
    owner, table = _samples(test)
    scores, count = np.zeros((len(test), len(task.names))), np.zeros(len(test))
    with torch.no_grad():
        for start in range(0, len(owner), 250):
            row = owner[start : start + 250]
            cells = map(modality.read, table[start : start + 250][test.column])
            made = [modality.view(cell, EVALUATION, 0) for cell in cells]
            view = modality.collate(made, torch.zeros(len(made), dtype=torch.long))
            np.add.at(scores, row, logits(view).float().cpu().numpy())
            np.add.at(count, row, 1)
    return scores / np.maximum(count, 1)[:, None] * spread + centre


def _samples(rows: Rows):
    """Each sample's row, and the table of the samples, which are read when they are asked for: many may be large."""
    table = rows.modality.samples(rows.table, rows.column)
    owner = np.asarray(table["source_row"]) if "source_row" in table.column_names else np.arange(len(table))
    return owner, table
