"""How fast is a step? Ours beside the native class, alternately in one run; then what the engine costs.

    python benchmarks/step.py [--threads 2] [--rounds 7] [--compile]    # MAE beside ViTMAEForPreTraining
    python benchmarks/step.py --simclr                                  # SimCLR of DINOv2-S/14 beside Dinov2Model
    python benchmarks/step.py --engine                                  # the engine over a bare loop, ZeRO-0 to 3

MAE: ViT-S/16 at 224, batch 16, decoder 192×4. SimCLR: two views of 4 pictures at 224, head 384-512-128, the peer's
objective written plainly. All float32. Prints medians and their ratios; of MAE the share of the machine's measured
matmul peak as well.
"""

import argparse
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

from triptych.modalities.view import View
from triptych.training.engine import keep_memory

BATCH, SIZE, PATCH, WIDTH, DEPTH, HEADS, DECODER = 16, 224, 16, 384, 12, 6, (192, 4, 3)


def ours():
    from triptych.encoders.native import make
    from triptych.modalities import Image
    from triptych.objectives import MAE, Decoder

    torch.manual_seed(0)
    backbone = make(Image(SIZE, PATCH), width=WIDTH, depth=DEPTH, heads=HEADS)
    return MAE(backbone, decoder=Decoder(*DECODER))


def theirs():
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    return ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=4 * WIDTH,
            image_size=SIZE, patch_size=PATCH, norm_pix_loss=True, decoder_hidden_size=DECODER[0],
            decoder_num_hidden_layers=DECODER[1], decoder_num_attention_heads=DECODER[2],
            decoder_intermediate_size=4 * DECODER[0],
        )
    ).train()  # fmt: skip


def stepper(model, loss, optimizer=None):
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step():
        value = loss(model)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def alternate(steps: dict, rounds: int, each: int = 2) -> dict[str, float]:
    """Median seconds a step of each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step(), step()
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            for _ in range(each):
                step()
            times[name].append((time.perf_counter() - began) / each)
    return {name: statistics.median(t) for name, t in times.items()}


def peak() -> float:
    """FLOP/s of a large float32 matmul: the best of several sizes."""
    best = 0.0
    for n in (1024, 1536, 2048):
        a, b = torch.randn(n, n), torch.randn(n, n)
        a @ b
        for _ in range(5):
            began = time.perf_counter()
            a @ b
            best = max(best, 2 * n**3 / (time.perf_counter() - began))
    return best


def flops() -> float:
    """FLOPs of the matrix products of one step, forward and backward, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    aten, model = torch.ops.aten, ours()
    attention = {  # torch counts those of CUDA only; twice as much backward, recomputation not counted
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda _, q, k, v, *__, **___: (
            2 * sdpa_flop_count(q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        loss_of(model).backward()
    return counter.get_total_flops()


def inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


PICTURES = inputs()


def loss_of(model):
    return model([model.backbone.modality.prepare(View(PICTURES, torch.arange(BATCH)))])["loss"]


def peer_loss(model):
    return model(PICTURES.float() / 127.5 - 1).loss


def simclr_steps() -> dict:
    """One step of SimCLR on two views of four pictures: ours, and the native class with the paper's loss."""
    from transformers import Dinov2Config, Dinov2Model

    from triptych.encoders.native import make
    from triptych.modalities import Image
    from triptych.objectives import Head, SimCLR

    torch.manual_seed(0)
    pictures = PICTURES[: BATCH // 2].unflatten(0, (2, -1))
    seeds = torch.arange(pictures.shape[1])
    backbone = make(Image(SIZE, 14), "dinov2", width=WIDTH, depth=DEPTH, heads=HEADS)
    model = SimCLR(backbone, head=Head(512, 128))
    native = Dinov2Model(
        Dinov2Config(
            hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=SIZE, patch_size=14
        )
    )
    head = nn.Sequential(
        nn.Linear(WIDTH, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 128)
    )  # fmt: skip
    peer = nn.ModuleList([native, head]).train()

    def ours(model):
        return model([model.backbone.modality.prepare(View(p, seeds, identity=seeds)) for p in pictures])["loss"]

    def plain(peer):
        pixels = pictures.flatten(0, 1).float() / 127.5 - 1
        z = F.normalize(peer[1](peer[0](pixels).pooler_output), dim=-1)
        logits = (z @ z.T / 0.1).fill_diagonal_(-torch.inf)
        return F.cross_entropy(logits, torch.arange(len(z)).roll(len(z) // 2))

    return {"ours": stepper(model, ours), "Dinov2Model": stepper(peer, plain)}


def engine_cost(rounds: int) -> None:
    """The same step through the engine, beside a bare loop."""
    from triptych.training.engine import Engine, start
    from triptych.training.settings import Config, Run

    run = Run(per_device_train_batch_size=BATCH, device="cpu")
    device = start(run)
    bare = ours()
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-4, fused=True)

    def bare_step():
        loss_of(bare).backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for stage in range(4):
        run = Config(Run(per_device_train_batch_size=BATCH, deepspeed={"zero_optimization": {"stage": stage}})).run
        objective = ours()
        engine = Engine(objective, run, device)
        modality = objective.backbone.modality

        def engine_step(engine=engine, modality=modality):
            views = [modality.prepare(View(PICTURES, torch.arange(BATCH)))]
            engine.backward(engine.forward(views)["loss"])
            engine.step(1e-4)

        seconds = alternate({"bare": bare_step, "engine": engine_step}, rounds)
        cost = seconds["engine"] / seconds["bare"] - 1
        times = " | ".join(f"{name} {value * 1e3:.0f} ms" for name, value in seconds.items())
        print(f"| ZeRO-{stage} | {times} | {cost:+.1%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--engine", action="store_true", help="measure only the engine's cost")
    parser.add_argument("--simclr", action="store_true", help="SimCLR of DINOv2-S/14 instead of MAE of ViT-S/16")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_memory()  # for all, as the engine does
    if arguments.engine:
        return engine_cost(arguments.rounds)
    if arguments.simclr:
        seconds = alternate(simclr_steps(), arguments.rounds)
        print("| step | ms | against Dinov2Model |\n|---|---|---|")
        for name, value in seconds.items():
            print(f"| {name} | {value * 1e3:.0f} | {seconds['Dinov2Model'] / value:.2f}× |")
        return
    steps = {"eager": stepper(ours(), loss_of), "ViTMAE eager": stepper(theirs(), peer_loss)}
    if arguments.compile:
        compiled = ours()
        compiled.compile(dynamic=False)
        steps["compiled"] = stepper(compiled, loss_of)
    seconds, top, work = alternate(steps, arguments.rounds), peak(), flops()
    print(f"matmul peak {top / 1e9:.0f} GFLOP/s; a step is {work / 1e9:.1f} GFLOP of matrix products")
    print("| step | ms | against ViTMAE eager | of the peak |\n|---|---|---|---|")
    for name, value in seconds.items():
        share = f"{work / value / top:.0%}" if name != "ViTMAE eager" else ""
        print(f"| {name} | {value * 1e3:.0f} | {seconds['ViTMAE eager'] / value:.2f}× | {share} |")


if __name__ == "__main__":
    main()
