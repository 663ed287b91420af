"""How others continue the same encoder on the same samples: called by `continue.py --recipe simcse tsdae lightly`.

Each takes the start, the training column, and as many samples as ours in one core's time or more; AdamW, linear
warm-up over a twentieth, cosine, clipped at 1, as ours. What comes out is a native folder.
"""

import math
import random
from pathlib import Path

import torch

RATE = {"simcse": 3e-5, "tsdae": 3e-5, "lightly": 3e-4}  # the papers' and the peers' own for a small encoder


def trained(parameters, loss_of, batches: list, rate: float) -> None:
    """One pass over the batches."""
    parameters = [p for p in parameters if p.requires_grad]
    optimizer, warmup = torch.optim.AdamW(parameters, rate, weight_decay=0.0), max(1, len(batches) // 20)
    for step, batch in enumerate(batches):
        share = (step + 1) / warmup if step < warmup else (1 + math.cos(math.pi * step / len(batches))) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0:
            print(f"peer: step {step} of {len(batches)}, loss {loss.item():.3f}", flush=True)


def texts(which: str, start: Path, rows, to: Path, length: int, batch: int) -> None:
    """sentence-transformers: SimCSE (a text beside itself under dropout) or TSDAE (a text from 40 % of its words)."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses, modules

    transformer = modules.Transformer(str(start), max_seq_length=length)
    pooling = modules.Pooling(transformer.get_embedding_dimension(), "cls" if which == "tsdae" else "mean")
    model = SentenceTransformer(modules=[transformer, pooling], device="cpu").train()
    if which == "simcse":
        loss = losses.MultipleNegativesRankingLoss(model, scale=20.0)
    else:
        loss = losses.DenoisingAutoEncoderLoss(model, tie_encoder_decoder=True)
    draw = random.Random(0)

    def thinned(text: str) -> str:
        words = text.split()
        return " ".join([w for w in words if draw.random() < 0.4] or words[:1])

    def loss_of(part: list[str]):
        first = part if which == "simcse" else [thinned(t) for t in part]
        return loss([model.tokenize(first), model.tokenize(part)], torch.zeros(len(part)))

    order = draw.sample(rows, len(rows))
    trained(
        loss.parameters(), loss_of, [order[i : i + batch] for i in range(0, len(order) - batch + 1, batch)], RATE[which]
    )
    transformer.auto_model.save_pretrained(to)
    transformer.tokenizer.save_pretrained(to)


def pictures(start: Path, rows, statistics: dict, to: Path, size: int, batch: int, epochs: int, last: int = 3) -> None:
    """lightly's transform, head and loss of SimCLR, on the native class; the last blocks are free, as ours are."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from transformers import AutoModel

    model = AutoModel.from_pretrained(start).train()
    model.embeddings.requires_grad_(False)
    for layer in model.encoder.layer[:-last]:
        layer.requires_grad_(False)
    transform, loss = SimCLRTransform(size, normalize=statistics), NTXentLoss(temperature=0.1)
    head = SimCLRProjectionHead(model.config.hidden_size, 1024, 128)
    draw = random.Random(0)
    order = [i for _ in range(epochs) for i in draw.sample(range(len(rows)), len(rows))]

    def loss_of(index: list[int]):
        views = zip(*(transform(rows[i].convert("RGB")) for i in index), strict=True)
        pixels = torch.cat([torch.stack(view) for view in views])
        pooled = model(pixels).last_hidden_state[:, 0]
        return loss(*head(pooled).chunk(2))

    torch.manual_seed(0)
    parameters = [*model.parameters(), *head.parameters()]
    trained(
        parameters, loss_of, [order[i : i + batch] for i in range(0, len(order) - batch + 1, batch)], RATE["lightly"]
    )
    model.save_pretrained(to)
