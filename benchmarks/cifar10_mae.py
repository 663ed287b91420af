"""Does image MAE learn? cifar10 in budgets of 2, 6 and 20 minutes on two cores, beside ViTMAEForPreTraining.

    python benchmarks/cifar10_mae.py path/to/cifar10 [--budgets 2,6,20,2w,6w,curve] [--threads 2] [--work folder]

Each cell is a JSON line in `cells.jsonl` of the work folder; cells that are there are not run again. The table is
printed last; `curve` is the probe after fewer samples, each a run of its own with its own schedule. The peer is trained
on the same samples in the same order with the same masks, optimizer and schedule, from its own initialisation; its
encoder is then read back through the import and evaluated by the same code.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path

from cells import cpu_seconds

PATCH = 4
# minutes on two cores (w: wide) -> size of the encoder, batch, samples. `train.py` takes 1,150 samples/s of 128x4 at
# batch 64 and 950 at 32, with two threads, and about as many of 192x2.
BUDGETS = {"2": ("128x4", 64, 135_000), "6": ("128x4", 32, 342_000), "20": ("128x4", 32, 1_140_000)}
BUDGETS |= {"2w": ("192x2", 64, 135_000), "6w": ("192x2", 32, 342_000)}
CURVE = {f"curve {samples}": ("128x4", 32, samples) for samples in (30_000, 60_000)}
# per cent of the labels -> two numbers of samples of fine-tuning; the better one counts, for everybody
FINETUNE = {1: (6_000, 12_000), 10: (12_000, 24_000)}
RATE, WARMUP, DRAWS = 1.5e-3, 0.05, 3
FINETUNE_TEST = 4_000


def config(data: str, size: str, batch: int, samples: int, folder: Path) -> dict:
    width, depth = map(int, size.split("x"))
    return {
        "data": {"name": data},
        "modality": {"name": "image", "image_size": 32, "patch_size": PATCH},
        "encoder": {"name": "tiny", "width": width, "depth": depth, "heads": width // 32},
        "objective": {
            "name": "mae",
            "mask": {"ratio": 0.75},
            "decoder": {"width": 64, "depth": 1},
            "scale": [1.0, 1.0],
        },
        "output_dir": str(folder),
        "learning_rate": RATE,
        "warmup_steps": WARMUP,
        "per_device_train_batch_size": batch,
        "max_steps": samples // batch,
        "logging_steps": 100,
        "eval_steps": 0,
        "save_steps": 2000,
        "report_to": "none",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--budgets", default="2,6,20")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", default="runs/cifar10_mae")
    parser.add_argument("--only", default="", help="run only cells whose name has this")
    arguments = parser.parse_args()
    work = Path(arguments.work)
    work.mkdir(parents=True, exist_ok=True)
    file = work / "cells.jsonl"

    import numpy as np
    import torch

    torch.set_num_threads(arguments.threads)
    from triptych.evaluation.features import extract
    from triptych.evaluation.finetune import finetune
    from triptych.evaluation.load import from_run
    from triptych.evaluation.probes import linear
    from triptych.training.command_line import read
    from triptych.training.sources import load

    done = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        cell = json.loads(line)
        done[cell["cell"]] = cell

    def cell(name: str, run) -> dict:
        if name not in done and arguments.only in name:
            began, cpu = time.perf_counter(), cpu_seconds()
            result = run()
            done[name] = {"cell": name, **result, "seconds": time.perf_counter() - began, "cpu": cpu_seconds() - cpu}
            with open(file, "a") as out:
                out.write(json.dumps(done[name]) + "\n")
            print(json.dumps(done[name]), flush=True)
        return done.get(name, {})

    def rows(cfg):
        modality = read(cfg).build_modality()
        return [load(read(cfg).data, modality, split) for split in ("train", "test")]

    def untrained(cfg, seed=0):
        made = read(cfg | {"seed": seed})
        return made.build_objective(made.build_modality()).backbone

    def probe(backbone, cfg):
        train, test = rows(cfg)
        train.modality = test.modality = backbone.modality
        picked = np.random.RandomState(0).permutation(len(train))[:10_000]
        x, t = extract(backbone, train.select(picked)).x, extract(backbone, test).x
        y, ty = train.labels()[picked], test.labels()
        return {pooling: 100 * linear(x[pooling], y, t[pooling], ty).mean() for pooling in x}

    def tune(backbone, cfg, percent, samples, draw):
        train, test = rows(cfg)
        train.modality = test.modality = backbone.modality
        labels, random = train.labels(), np.random.RandomState(100 + draw)
        per_class = len(labels) * percent // 1000
        picked = np.concatenate([random.permutation(np.flatnonzero(labels == c))[:per_class] for c in range(10)])
        held = np.random.RandomState(1).permutation(len(test))[:FINETUNE_TEST]
        accuracy = finetune(
            backbone, train.select(picked), labels[picked], test.select(held), test.labels()[held], samples, seed=draw
        )
        return {"accuracy": accuracy}

    budgets = [b for b in arguments.budgets.split(",") if b in BUDGETS]
    for budget in budgets + (list(CURVE) if "curve" in arguments.budgets else []):
        size, batch, samples = (BUDGETS | CURVE)[budget]
        cfg = config(arguments.data, size, batch, samples, work / f"ours_{budget}")
        peer_folder = work / f"peer_{budget}"

        def ours(cfg=cfg, samples=samples):
            from triptych.train import pretrain

            return {"loss": pretrain(cfg).get("loss"), "samples": samples}

        def peer(cfg=cfg, folder=peer_folder, samples=samples):
            return {"loss": pretrain_peer(cfg, folder), "samples": samples}

        def trained(who, cfg=cfg, folder=peer_folder):
            if who == "ours":
                return from_run(cfg["output_dir"])[1].backbone
            from triptych.encoders import native

            start, made = native.start_from(str(folder), "image"), read(cfg)
            made.modality |= start.modality | {"mean": 0.5, "std": 0.5}
            return made.build_objective(made.build_modality(), start).backbone

        for seed in range(DRAWS):
            cell(f"random {size} {seed}", lambda cfg=cfg, seed=seed: probe(untrained(cfg, seed), cfg))
        for who, train in (("ours", ours), ("peer", peer))[: 1 if budget in CURVE else 2]:
            cell(f"pretrain {who} {budget}", train)
            cell(f"probe {who} {budget}", lambda w=who, cfg=cfg, t=trained: probe(t(w), cfg))
        if budget in CURVE:
            continue
        for percent, numbers in FINETUNE.items():
            for number, draw in product(numbers, range(DRAWS)):
                for who in ("ours", "peer"):
                    cell(
                        f"finetune {who} {budget} {percent} {number} {draw}",
                        lambda w=who, cfg=cfg, p=percent, n=number, d=draw, t=trained: tune(t(w), cfg, p, n, d),
                    )
                cell(
                    f"scratch {size} {percent} {number} {draw}",
                    lambda cfg=cfg, p=percent, n=number, d=draw: tune(untrained(cfg, d), cfg, p, n, d),
                )
    print(table(done, budgets))


def pretrain_peer(cfg: dict, folder: Path) -> float:
    """ViTMAEForPreTraining of the same sizes on the same batches, masks, optimizer and schedule."""
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    from triptych.objectives import masking
    from triptych.training.command_line import read
    from triptych.training.engine import learning_rate, parameter_groups, warmup_of
    from triptych.training.loader import Order, Samples, held_out, loader
    from triptych.training.sources import load

    made = read(cfg)
    run, modality, encoder = made.run, made.build_modality(), made.encoder
    objective = made.build_objective(modality)  # for its views, and for pieces' places
    torch.manual_seed(1)
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=encoder["width"], num_hidden_layers=encoder["depth"], num_attention_heads=encoder["heads"],
            intermediate_size=4 * encoder["width"], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            image_size=32, patch_size=modality.tile[0], mask_ratio=objective.mask.ratio, norm_pix_loss=True,
            decoder_hidden_size=64, decoder_num_hidden_layers=1, decoder_num_attention_heads=1,
            decoder_intermediate_size=256,
        )
    ).train()  # fmt: skip
    # As transformers 5.24 constructs it, positions and mask token are zeros: its own `initialize_weights` returns at
    # once, since the projection is marked as initialised by then. A peer without positions is none.
    del model.vit.embeddings.patch_embeddings.projection._is_hf_initialized
    model.vit.embeddings.initialize_weights()
    model.decoder.initialize_weights(model.vit.embeddings.patch_embeddings.num_patches)
    for places in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        assert places.std() > 0.1, "the peer has no positions"
    data = load(made.data, modality)
    table = data.table.select(held_out(len(data), made.data.eval_fraction)[0]).select_columns([data.column])
    order = Order(len(table), run.per_device_train_batch_size, run.seed)
    samples = Samples(table, data.column, modality, objective.views, run.seed, 10)
    groups = parameter_groups(model, run.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(run.adam_beta1, run.adam_beta2), fused=True)
    feed = loader(samples, order.micro_batches(0, run.max_steps, 1, 0, 1), 1, torch.device("cpu"))
    for step, batch in enumerate(feed):
        with torch.no_grad():
            raw = batch["views"][0]
            view = modality.prepare(raw)
            noise = masking.random(view, 3).double()
            pixels = raw.data.float() / 127.5 - 1
        loss = model(pixels, noise=-noise).loss  # the native class keeps the lowest, we drop them
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), run.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(RATE, warmup_of(run, run.max_steps), step, run.max_steps)
        optimizer.step()
        optimizer.zero_grad()
        if step % 500 == 0:
            print(f"peer: step {step}/{run.max_steps} loss {loss.item():.4f} norm {norm:.3f}", flush=True)
    model.save_pretrained(folder)
    return loss.item()


def table(done: dict, budgets: list[str]) -> str:
    """The README's table."""
    import statistics

    def tuned(prefix: str, numbers: tuple[int, int]) -> str:
        found = [[c["accuracy"] for n, c in done.items() if n.startswith(f"{prefix} {number} ")] for number in numbers]
        best = max((values for values in found if values), key=statistics.mean, default=None)
        return f"{statistics.mean(best):.1f} ± {statistics.pstdev(best):.1f}" if best else "–"

    def probed(name: str) -> str:
        found = [c for n, c in done.items() if f"{n} ".startswith(f"{name} ")]
        return " / ".join(f"{statistics.mean(c[p] for c in found):.1f}" for p in ("mean", "native")) if found else "–"

    def row(title: str, budget: str, size: str, figures: dict, name: str, prefix: str) -> str:
        cost = f"{figures['samples']:,} | {figures['cpu'] / 60:.1f}" if figures else "– | –"
        few = " | ".join(tuned(f"{prefix} {percent}", numbers) for percent, numbers in FINETUNE.items())
        return f"| {budget} | {title} | {size} | {cost} | {probed(name)} | {few} |"

    lines = [
        "| budget | encoder | size | samples | CPU min | probe, mean / CLS | 1 % labels | 10 % labels |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for budget in budgets:
        size = BUDGETS[budget][0]
        for who, title in (("ours", "Triptych"), ("peer", "ViTMAEForPreTraining")):
            trained = done.get(f"pretrain {who} {budget}", {})
            names = f"probe {who} {budget}", f"finetune {who} {budget}"
            lines.append(row(title, f"{budget.rstrip('w')} min", size, trained, *names))
    for size in dict.fromkeys(BUDGETS[budget][0] for budget in budgets):
        lines.append(row("untrained, or from scratch", "", size, {}, f"random {size}", f"scratch {size}"))
    points = sorted(
        (c["samples"], done.get(n.replace("pretrain", "probe"), {}))
        for n, c in done.items()
        if n.startswith("pretrain ours") and not n.endswith("w")
    )
    if curve := ", ".join(f"{samples:,}: {probe['mean']:.1f}" for samples, probe in points if probe):
        lines += ["", f"Probe (mean of pieces) after samples: {curve}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
