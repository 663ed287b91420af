"""Steps of training on a GPU, through the product's own engine, beside native classes of transformers; bfloat16.

    python benchmarks/gpu.py [--only mae simclr text] [--rounds 5] [--seconds 1] [--small]

Samples are random numbers and words (2,000 of them, in texts as long as those of ag_news): what is timed is the device.
Each row is a whole step: forward, backward, clipping, AdamW. Peers are in a plain loop with fused AdamW and autocast,
and take their turns with ours. The share of the peak is that of matrix products counted by torch, at the rate of a
product of 8192×8192 in bfloat16 measured here. `--small` is for a look at a CPU.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from step import alternate
from torch import nn

from triptych.modalities.view import View

Step = Callable[[], None]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    top = peak(512 if arguments.small else 8192)
    print(f"{device_name()}, torch {torch.__version__}; peak of bfloat16 products {top / 1e12:.3g} TFLOP/s")
    print("| step | ms | samples/s | of the peak | memory, GB | against |\n|---|---|---|---|---|---|")
    for kind in arguments.only:
        for rows in KINDS[kind](arguments.small):
            measure(rows, top, arguments)


def device_name() -> str:
    return torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def peak(n: int) -> float:
    """FLOP/s of a large product in bfloat16: the best of five."""
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(7):
        wait()
        began = time.perf_counter()
        for _ in range(5):
            a @ b
        wait()
        best = max(best, 10 * n**3 / (time.perf_counter() - began))
    return best


def turn(step: Step, count: int) -> Step:
    """Some steps, until the device has made them."""

    def run() -> None:
        for _ in range(count):
            step()
        wait()

    return run


def measure(rows: dict[str, tuple[Step, int]], top: float, arguments) -> None:
    """Print a line for each step, of those that take turns; the last one is what others stand against."""
    from torch.utils.flop_counter import FlopCounterMode

    work, memory, turns = {}, {}, {}
    for name, (step, _) in rows.items():
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        step(), step()
        wait()
        memory[name] = torch.cuda.max_memory_allocated() / 1e9 if DEVICE.type == "cuda" else 0.0
        began = time.perf_counter()
        step(), step(), wait()
        turns[name] = max(1, round(arguments.seconds / ((time.perf_counter() - began) / 2)))
        if "compiled" not in name:
            with FlopCounterMode(display=False) as counter:
                step()
            work[name] = counter.get_total_flops()
    timed = alternate({name: turn(step, turns[name]) for name, (step, _) in rows.items()}, arguments.rounds, each=1)
    middle = {name: seconds / turns[name] for name, seconds in timed.items()}
    last = list(rows)[-1]
    for name, (_, samples) in rows.items():
        counted = work.get(name) or work.get(name.replace(", compiled", ""))
        share = f"{counted / middle[name] / top:.0%}" if counted else ""
        ratio = f"{middle[last] / middle[name]:.2f}×" if name != last else ""
        figures = f"{middle[name] * 1e3:.1f} | {samples / middle[name]:,.0f} | {share} | {memory[name]:.1f} | {ratio}"
        print(f"| {name} | {figures} |", flush=True)


def engine_step(objective, batch: int, views: Callable[[], list[View]], compiled: bool = False) -> Step:
    """A step as `train.py` makes it, of views that are on the host."""
    from triptych.training.engine import Engine, start
    from triptych.training.settings import Run

    run = Run(per_device_train_batch_size=batch, compile=compiled, report_to="none")
    engine = Engine(objective, run, start(run))
    modality = objective.backbone.modality

    def step() -> None:
        made = [modality.prepare(view.to(DEVICE, non_blocking=True)) for view in views()]
        engine.backward(engine.forward(made)["loss"])
        engine.step(1e-4)

    return step


def plain_step(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def pictures(batch: int, views: int, size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator) for _ in range(views)]
    return [m.pin_memory() if DEVICE.type == "cuda" else m for m in made]


def mae(small: bool):
    """ViT-B/16 and ViT-L/16 at 224 pixels."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    from triptych.encoders.native import make
    from triptych.modalities import Image
    from triptych.objectives import MAE, Decoder

    sizes = [("ViT-Ti", 32, 2, 2, 4)] if small else [("ViT-B/16", 768, 12, 12, 256), ("ViT-L/16", 1024, 24, 16, 128)]
    for title, width, depth, heads, batch in sizes:
        (pixels,) = pictures(batch, 1, 224)
        seeds = torch.arange(batch)

        def ours(compiled=False, width=width, depth=depth, heads=heads, batch=batch, pixels=pixels, seeds=seeds):
            torch.manual_seed(0)
            backbone = make(Image(224, 16), width=width, depth=depth, heads=heads)
            made = MAE(backbone, decoder=Decoder(512, 8, 16))
            return engine_step(made, batch, lambda: [View(pixels, seeds)], compiled)

        config = ViTMAEConfig(
            hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=4 * width,
            image_size=224, patch_size=16, norm_pix_loss=True, decoder_hidden_size=512, decoder_num_hidden_layers=8,
            decoder_num_attention_heads=16, decoder_intermediate_size=2048,
        )  # fmt: skip
        native = ViTMAEForPreTraining(config).train().to(DEVICE)
        peer = plain_step(
            native, lambda native=native, pixels=pixels: native(pixels.to(DEVICE).float() / 127.5 - 1).loss
        )
        rows = {f"MAE, {title}, batch {batch}": (ours(), batch)}
        if not small:
            rows[f"MAE, {title}, batch {batch}, compiled"] = ours(compiled=True), batch
        yield rows | {f"ViTMAEForPreTraining, {title}, batch {batch}": (peer, batch)}


def simclr(small: bool):
    """Two views of each picture: DINOv2-S/14 at 224 pixels."""
    from torch.nn import functional as F
    from transformers import Dinov2Config, Dinov2Model

    from triptych.encoders.native import make
    from triptych.modalities import Image
    from triptych.objectives import Head, SimCLR

    width, depth, heads, batch = (32, 2, 2, 4) if small else (384, 12, 6, 256)
    pixels, seeds = pictures(batch, 2, 224), torch.arange(batch)

    def ours(compiled=False):
        torch.manual_seed(0)
        backbone = make(Image(224, 14), "dinov2", width=width, depth=depth, heads=heads)
        made = SimCLR(backbone, head=Head(2048, 128))
        return engine_step(made, batch, lambda: [View(p, seeds, identity=seeds) for p in pixels], compiled)

    config = Dinov2Config(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, image_size=224, patch_size=14
    )
    head = nn.Sequential(nn.Linear(width, 2048, bias=False), nn.BatchNorm1d(2048), nn.ReLU(), nn.Linear(2048, 128))
    peer = nn.ModuleList([Dinov2Model(config), head]).train().to(DEVICE)

    def loss():
        z = F.normalize(peer[1](peer[0](torch.cat(pixels).to(DEVICE).float() / 127.5 - 1).pooler_output), dim=-1)
        logits = (z @ z.T / 0.1).fill_diagonal_(-torch.inf)
        return F.cross_entropy(logits, torch.arange(len(z), device=DEVICE).roll(len(z) // 2))

    rows = {f"SimCLR, DINOv2-S/14, {batch} pairs": (ours(), batch)}
    if not small:
        rows[f"SimCLR, DINOv2-S/14, {batch} pairs, compiled"] = ours(compiled=True), batch
    yield rows | {f"the same of Dinov2Model, {batch} pairs": (plain_step(peer, loss), batch)}


def text(small: bool):
    """Masked words of BERT-base, packed in rows; the native class gets each batch padded to its longest text."""
    import datasets
    from transformers import BertConfig, BertForMaskedLM

    from triptych.encoders.native import make
    from triptych.modalities import Text
    from triptych.modalities.view import ViewSpec
    from triptych.objectives import Masked

    width, depth, heads, batch = (32, 2, 2, 8) if small else (768, 12, 12, 256)
    random = np.random.RandomState(0)
    words = [f"w{i}" for i in range(2000)]
    lengths = np.clip(random.normal(50, 14, 4 * batch), 10, 126).astype(int)  # ag_news: 50 tokens, most 30 to 70
    rows = datasets.Dataset.from_dict({"text": [" ".join(random.choice(words, n)) for n in lengths]})

    def ours(row_length=None, compiled=False):
        torch.manual_seed(0)
        modality = Text(vocab_size=4096, max_length=128, row_length=row_length)
        modality.fit(rows, "text")
        made = Masked(make(modality, "bert", width=width, depth=depth, heads=heads))
        samples = modality.samples(rows, "text")["text"]
        cells = [modality.view(modality.read(sample), ViewSpec(), i) for i, sample in enumerate(samples)]
        sets = [
            modality.collate(cells[at : at + batch], torch.arange(at, at + batch)) for at in range(0, len(cells), batch)
        ]
        turn = iter(range(10**9))
        return modality, cells, engine_step(made, batch, lambda: [sets[next(turn) % len(sets)]], compiled)

    modality, cells, step = ours()
    padded = []
    for at in range(0, len(cells), batch):
        some = [torch.as_tensor(cell["data"]) for cell in cells[at : at + batch]]
        ids = nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=modality.padding)
        ids = torch.cat([torch.full((len(ids), 1), modality.first), ids], 1).long()
        hidden = torch.rand(ids.shape, generator=torch.Generator().manual_seed(at)) < 0.3
        here = ids != modality.padding
        labels = torch.where(hidden & here, ids, -100)
        padded.append([x.to(DEVICE) for x in (torch.where(hidden, modality.mask, ids), here.long(), labels)])
    config = BertConfig(
        vocab_size=modality.rows, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
        intermediate_size=4 * width, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    native, turn = BertForMaskedLM(config).train().to(DEVICE), iter(range(10**9))

    def loss():
        ids, here, labels = padded[next(turn) % len(padded)]
        return native(input_ids=ids, attention_mask=here, labels=labels).loss

    found = {f"masked words, BERT-base, {batch} texts, packed": (step, batch)}
    if not small:
        found |= {f"masked words, BERT-base, {batch} texts, packed in rows of 256": (ours(256)[2], batch)}
    yield found | {f"BertForMaskedLM, {batch} texts, padded to the longest": (plain_step(native, loss), batch)}


KINDS = {"mae": mae, "simclr": simclr, "text": text}

if __name__ == "__main__":
    main()
