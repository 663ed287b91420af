"""Continuing a good encoder without breaking it: what stands still, and what moves how slowly.

A self-supervised step at full rate wrecks a published encoder: a fresh head has nothing to say yet, and all of what it
says goes into the trunk. So the head learns first, the last blocks move, and those below move less or not at all.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.encoders.backbone import Backbone
from triptych.objectives import Objective
from triptych.objectives.base import Batch
from triptych.objectives.teacher import Teacher
from triptych.training.errors import UserError
from triptych.training.settings import Run

# Names within an adapted layer, as peft has them.
BASE, DOWN, UP = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


def restrain(objective: Objective, run: Run) -> str | None:
    """Freeze, adapt and slow down as the run asks; says what is trained, where that is not everything.

    Frozen parameters need no gradient, so that torch keeps no graph of them, and are neither in the optimizer nor in
    ZeRO's buckets. A token that stands for hidden content is trained all the same: a checkpoint may bring none.
    """
    backbone = objective.backbone
    depth = backbone.encoder.depth
    last = depth if run.train_last is None else run.train_last
    if last > depth:
        raise UserError(f"train_last {last}: the encoder has {depth} blocks")
    whole = sum(p.numel() for p in backbone.parameters())
    if run.train_last is not None or run.lora_rank:
        hidden = [p for name, p in backbone.embedding.named_parameters() if name == "hidden"]
        backbone.embedding.requires_grad_(False)
        for block in backbone.encoder.blocks[: depth - last]:
            block.requires_grad_(False)
        for parameter in hidden:
            parameter.requires_grad_(True)
    if run.lora_rank:
        if any(isinstance(part, Teacher) for part in objective.modules()):
            raise UserError(
                f"lora_rank {run.lora_rank}: this objective's teacher is an average of the student's weights, which "
                "adapters do not have; leave lora_rank out, or take an objective without such a teacher"
            )
        if not last:
            raise UserError(f"lora_rank {run.lora_rank} and train_last 0: no block is left to adapt; leave one out")
        torch.manual_seed(run.seed)
        for block in backbone.encoder.blocks[depth - last :]:
            adapt(block, run.lora_rank)
        backbone.encoder.norm.requires_grad_(False)
    if run.layer_decay is not None:
        backbone.embedding.rate_scale = run.layer_decay ** (depth + 1)
        for number, block in enumerate(backbone.encoder.blocks):
            block.rate_scale = run.layer_decay ** (depth - number)
    backbone.rate_scale, backbone.waits = run.trunk_scale, run.head_steps > 0
    backbone.embedding.like_heads = ("hidden",)
    if run.train_last is None and not run.lora_rank:
        return None
    trained = f"{sum(p.numel() for p in backbone.parameters() if p.requires_grad):,}"
    if run.lora_rank:
        how = f"are adapted by matrices of rank {run.lora_rank}: {trained} parameters beside {whole:,}"
    else:
        how = f"are trained: {trained} of {whole:,} parameters"
    return f"the last {last} of {depth} blocks {how} of the encoder"


def adapt(block: nn.Module, rank: int) -> None:
    """Freeze a block, and put a trained update of low rank beside each of its linear layers: `W + B A`, with `B` zero.

    LoRA (Hu et al. 2022, equation 3), by `peft`, with its α equal to the rank: no factor stands before the update.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(f"lora_rank {rank}: peft is not installed; pip install peft") from error
    linear = [name for name, part in block.named_modules() if isinstance(part, nn.Linear)]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=linear), block)


def merged(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's weights by the names of a model without adapters, their updates added. Needs no peft."""
    plain = {name.replace(BASE, "."): value for name, value in weights.items() if DOWN not in name and UP not in name}
    for name, down in weights.items():
        if name.endswith(DOWN):
            layer = name.removesuffix(DOWN)
            plain[f"{layer}.weight"] = plain[f"{layer}.weight"] + weights[layer + UP] @ down
    return plain


class Preserving(nn.Module):
    """Any objective, whose loss also keeps each sample's vector near that of the encoder's start.

        loss + weight * mean over samples of (2 - 2 cos(x, s))

    `x` and `s` are what encoder and start make of the objective's first view: a second forward of both, whatever the
    objective itself encodes (it may drop or hide pieces, which a vector that is kept must not depend on).

    Args:
        objective: what is trained.
        start: the encoder as it began. It is no part of this module: every rank holds it whole under every ZeRO stage,
            and no checkpoint holds it; a run's folder does, once (`starts.keep`).
        weight: of the distance.
    """

    def __init__(self, objective: Objective, start: Backbone, weight: float):
        super().__init__()
        self.objective, self.weight = objective, weight
        self.start = (start.requires_grad_(False).eval(),)  # not registered

    def forward(self, views: Batch) -> dict[str, Any]:
        out = self.objective(views)
        with torch.no_grad():
            (start,) = self.start
            before = start(views[0])
        away = distance(self.objective.backbone(views[0]), before)
        return out | {"loss": out["loss"] + self.weight * away, "start_distance": away.detach()}


def distance(x: Float[Tensor, "b e"], other: Float[Tensor, "b e"]) -> Float[Tensor, ""]:
    """Mean squared distance of vectors of unit length, `2 - 2 cos`, in float32: from 0 to 4."""
    return 2 - 2 * F.cosine_similarity(x.float(), other.float(), dim=-1).mean()
