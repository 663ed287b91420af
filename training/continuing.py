"""Continuing a good encoder without breaking it: what stands still, and what moves how slowly.

A self-supervised step at full rate wrecks a published encoder: a fresh head has nothing to say yet, and all of what it
says goes into the trunk. So the head learns first, the last blocks move, and those below move less or not at all.
"""

from torch import nn

from triptych.training.errors import UserError
from triptych.training.settings import Run


def restrain(objective: nn.Module, run: Run) -> str | None:
    """Freeze and slow down as the run asks; says what is trained, where that is not everything.

    Frozen parameters need no gradient, so that torch keeps no graph of them, and are neither in the optimizer nor in
    ZeRO's buckets. A token that stands for hidden content is trained all the same: a checkpoint may bring none.
    """
    backbone = objective.backbone
    depth = backbone.encoder.depth
    if run.train_last is not None:
        if run.train_last > depth:
            raise UserError(f"train_last {run.train_last}: the encoder has {depth} blocks")
        hidden = [p for name, p in backbone.embedding.named_parameters() if name == "hidden"]
        backbone.embedding.requires_grad_(False)
        for block in backbone.encoder.blocks[: depth - run.train_last]:
            block.requires_grad_(False)
        for parameter in hidden:
            parameter.requires_grad_(True)
    if run.layer_decay is not None:
        backbone.embedding.rate_scale = run.layer_decay ** (depth + 1)
        for number, block in enumerate(backbone.encoder.blocks):
            block.rate_scale = run.layer_decay ** (depth - number)
    backbone.rate_scale, backbone.waits = run.trunk_scale, run.head_steps > 0
    backbone.embedding.like_heads = ("hidden",)
    if run.train_last is None:
        return None
    trained = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in backbone.parameters())
    of = f"{trained:,} of {whole:,} parameters of the encoder"
    return f"the last {run.train_last} of {depth} blocks are trained: {of}"
