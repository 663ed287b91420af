"""Frozen features of rows, from their evaluation view, by both poolings."""

import numpy as np
import torch

from encoders.backbone import Backbone, pool, pool_pieces
from modalities import EVALUATION
from training.loader import Samples, loader
from training.sources import Rows

POOLINGS = ("native", "mean")


@torch.no_grad()
def extract(
    backbone: Backbone, rows: Rows, batch: int = 250, workers: int = 0, device: torch.device | str = "cpu"
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Features `[n d]` by pooling (`native`: what the native head reads; `mean`: of all pieces), and their row numbers.

    Rows that cannot be read are left out. A row that is several samples (a long text) gets their mean.
    """
    backbone, device = backbone.to(device).eval(), torch.device(device)
    modality = backbone.modality
    table = modality.samples(rows.table, rows.column)
    owner = np.asarray(table["source_row"]) if "source_row" in table.column_names else np.arange(len(table))
    samples = Samples(table, rows.column, modality, (EVALUATION,), 0, len(table))
    batches = [[(0, i) for i in range(at, min(at + batch, len(table)))] for at in range(0, len(table), batch)]
    parts: dict[str, list[np.ndarray]] = {pooling: [] for pooling in POOLINGS}
    bad: list[int] = []
    for made in loader(samples, batches, workers, device):
        view = modality.prepare(made["views"][0].to(device))
        encoded = backbone.encode(view)
        vectors = (pool(encoded, view, backbone.pooling), pool_pieces(encoded, view))
        for pooling, vector in zip(POOLINGS, vectors, strict=True):
            parts[pooling].append(vector.float().cpu().numpy())
        bad += made["bad"]
    good = np.setdiff1d(np.arange(len(table)), bad)
    row, index = np.unique(owner[good], return_inverse=True)
    count = np.bincount(index)[:, None]
    features = {}
    for pooling, arrays in parts.items():
        total = np.zeros((len(row), arrays[0].shape[1]))
        np.add.at(total, index, np.concatenate(arrays)[good])
        features[pooling] = (total / count).astype(np.float32)
    return features, row
