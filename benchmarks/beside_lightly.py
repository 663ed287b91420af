"""Seven objectives beside lightly's losses, heads and transforms: the probe on cifar10, and seconds.

    python benchmarks/beside_lightly.py path/to/data [--work runs/lightly] [--only simclr] [--samples 40000]
    python benchmarks/beside_lightly.py --docs        # write the table of docs/benchmarks.md, and run nothing

`path/to/data` holds the folder cifar10. Both sides train the native `ViTModel` of configs/image_NAME.yaml, ours through
`train.py`'s own loop, lightly's through a plain one, as its examples are written: the same encoder from the same seed,
the same pictures in the same order, batch, optimizer, schedule and clipping, one worker each, and the head's widths,
temperature, crops and half-life of our recipe. What differs is each one's own: augmentations (ours are made on the
batch, lightly's by picture), heads and losses. Encoders are read back and judged by the same linear probe. A line a run
goes to `benchmarks/lightly.jsonl`; what is there is not run again. Seconds want a quiet machine; CPU seconds, of all
processes, do not.
"""

import argparse
import copy
import json
import os
import statistics
import time
from pathlib import Path

from cells import ROOT, config_of, cpu_seconds, fitted, probed, rows_of
from pages import between, lines_of

BATCH = 64
LINES = ROOT / "benchmarks" / "lightly.jsonl"
BEGIN, END = "<!-- made by benchmarks/beside_lightly.py --docs -->", "<!-- end of beside_lightly.py -->"

SEEDS = {"simclr": (0, 1, 2), "vicreg": (0, 1, 2), "moco": (0,), "dino": (0,), "swav": (0,), "barlow_twins": (0,)}
SEEDS |= {"byol": (0,)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--work", type=Path, default=Path("runs/lightly"))
    parser.add_argument("--only", choices=SEEDS, nargs="+", default=list(SEEDS))
    parser.add_argument("--samples", type=int, default=40_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--to", type=Path, default=LINES, help="file of the lines")
    parser.add_argument("--docs", action="store_true", help="write the table of docs/benchmarks.md, and run nothing")
    arguments = parser.parse_args()
    file, page = arguments.to, ROOT / "docs" / "benchmarks.md"
    if arguments.docs:
        page.write_text(with_table(page.read_text()))
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    import torch

    torch.set_num_threads(arguments.threads)
    lines = lines_of(file)
    for name in arguments.only:
        for seed in SEEDS[name]:
            for who, train in (("ours", ours), ("lightly", theirs)):
                key = {"objective": name, "seed": seed, "who": who, "samples": arguments.samples}
                if any(key.items() <= line.items() for line in lines):
                    continue
                config = configured(name, seed, arguments)
                clock, cpu = time.perf_counter(), cpu_seconds()
                backbone = train(name, config)
                cost = {"seconds": time.perf_counter() - clock, "cpu_seconds": cpu_seconds() - cpu}
                judged = rows_of(config, "image", backbone.modality, arguments.data, arguments.work)
                lines.append(key | cost | {"probe": probed(backbone, *judged)})
                with open(file, "a") as out:
                    out.write(json.dumps(lines[-1]) + "\n")
                print(json.dumps(lines[-1]), flush=True)
    print(table(lines))


def configured(name: str, seed: int, arguments):
    config = config_of(f"image_{name}", "image", arguments.data, arguments.work / f"{name}_{seed}")
    config.run.seed, config.run.report = seed, False
    config.run.per_device_train_batch_size, config.run.max_steps = BATCH, arguments.samples // BATCH
    return config


def ours(name: str, config):
    from triptych.evaluation.load import from_run
    from triptych.train import pretrain

    pretrain(config)
    return from_run(config.run.output_dir)[1].backbone


def theirs(name: str, config):
    """lightly's method on the native class; returns what it learned as an encoder of ours."""
    import torch
    from torch.utils.data import DataLoader

    from triptych.encoders import native
    from triptych.training.engine import learning_rate, parameter_groups, warmup_of
    from triptych.training.loader import Order, held_out
    from triptych.training.sources import load

    run, modality = config.run, fitted(config)
    objective = config.build_objective(copy.deepcopy(modality))
    model = native.FAMILIES["vit"].export(objective.backbone).train()
    torch.manual_seed(run.seed)
    method = methods()[name](model, config.objective, modality, run.max_steps)
    rows = load(config.data, modality)
    table = rows.table.select(held_out(len(rows), config.data.eval_fraction)[0])
    order = Order(len(table), run.per_device_train_batch_size, run.seed)
    feed = DataLoader(
        Pictures(table, rows.column, method.transform),
        batch_sampler=[list(order.step(step)[1]) for step in range(run.max_steps)],
        num_workers=1,
        worker_init_fn=lambda _: torch.set_num_threads(1),
        generator=torch.Generator().manual_seed(run.seed),
    )
    groups = parameter_groups(method, run.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(run.adam_beta1, run.adam_beta2), fused=True)
    trained = [p for p in method.parameters() if p.requires_grad]
    for step, views in enumerate(feed):
        loss = method.loss(views, step)
        loss.backward()
        method.before(step)
        torch.nn.utils.clip_grad_norm_(trained, run.max_grad_norm)
        for group in optimizer.param_groups:
            rate = learning_rate(run.learning_rate, warmup_of(run, run.max_steps), step, run.max_steps)
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        method.after(step)
        if step % 200 == 0:
            print(f"lightly {name}: step {step} of {run.max_steps}, loss {loss.item():.4f}", flush=True)
    folder = Path(run.output_dir + "_lightly")
    method.model.save_pretrained(folder)
    start = native.start_from(str(folder), "image")
    return config.build_objective(modality, start).backbone


class Pictures:
    """A picture's views by lightly's transform."""

    def __init__(self, table, column: str, transform):
        self.table, self.column, self.transform = table, column, transform

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int):
        from triptych.modalities.image_file import as_picture, content

        return self.transform(as_picture(content(self.table[int(row)][self.column])[0]).convert("RGB"))


def methods() -> dict:
    """lightly's methods as its examples write them, by the names of ours."""
    import torch
    from lightly import loss as losses
    from lightly import transforms
    from lightly.models import modules
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from torch import nn

    class Method(nn.Module):
        """`loss` of a batch's views; `before` and `after` a step; a `transform` that makes a picture's views."""

        def __init__(self, model, options: dict, modality, steps: int):
            super().__init__()
            self.model, self.options, self.steps = model, options, steps
            self.size, self.width = modality.extent[0], model.config.hidden_size
            self.of_pixels = {"mean": [float(m) for m in modality.mean], "std": [float(s) for s in modality.std]}
            self.hidden, self.out = options["head"]["hidden"], options["head"].get("out", 128)
            self.transform = self.views()
            self.build()

        def small(self, cls, **options):
            """A transform for pictures of 32 pixels: their own crops without a blur, as lightly advises for them."""
            low, high = self.options["scale"]
            return cls(self.size, min_scale=low, gaussian_blur=0.0, normalize=self.of_pixels, **options)

        def views(self):
            return self.small(transforms.SimCLRTransform)

        def features(self, pixels, model=None):
            model = model or self.model
            return model(pixels, interpolate_pos_encoding=pixels.shape[-1] != self.size).last_hidden_state[:, 0]

        def teach(self, head) -> None:
            """A student of the model and a head, and its teacher. The head's weight norm forbids a copy of it."""
            self.head, other = head(), head()
            other.load_state_dict(self.head.state_dict())
            self.student = nn.ModuleList([self.model, self.head])
            self.teacher = nn.ModuleList([copy.deepcopy(self.model), other])
            deactivate_requires_grad(self.teacher)

        def before(self, step: int) -> None:
            pass

        def after(self, step: int) -> None:
            if getattr(self, "teacher", None) is not None:
                # Half of the teacher is new after so many samples, as in ours.
                kept = 0.5 ** (len(self.last[0]) / self.options["half_life"])
                for mine, other in zip(self.student, self.teacher, strict=True):
                    update_momentum(mine, other, m=kept)

    class SimCLR(Method):
        def build(self):
            self.head = modules.SimCLRProjectionHead(self.width, self.hidden, self.out)
            self.criterion = losses.NTXentLoss(self.options["temperature"])

        def loss(self, views, step):
            return self.criterion(*self.head(self.features(torch.cat(views))).chunk(2))

    class Barlow(SimCLR):
        def views(self):
            first, second = transforms.BYOLView1Transform, transforms.BYOLView2Transform
            return transforms.BYOLTransform(self.small(first), self.small(second))

        def build(self):
            self.head = modules.BarlowTwinsProjectionHead(self.width, self.hidden, self.out)
            self.criterion = losses.BarlowTwinsLoss()

    class VICReg(SimCLR):
        def views(self):
            return self.small(transforms.VICRegTransform)

        def build(self):
            self.head = modules.heads.VICRegProjectionHead(self.width, self.hidden, self.out)
            self.criterion = losses.VICRegLoss()

    class MoCo(Method):
        def views(self):
            return self.small(transforms.MoCoV2Transform)

        def build(self):
            self.criterion = losses.NTXentLoss(
                self.options["temperature"], memory_bank_size=(self.options["queue"], self.out)
            )
            self.teach(lambda: modules.MoCoProjectionHead(self.width, self.hidden, self.out))

        def loss(self, views, step):
            self.last = views
            query = self.head(self.features(views[0]))
            with torch.no_grad():
                key = self.teacher[1](self.features(views[1], self.teacher[0]))
            return self.criterion(query, key)

    class BYOL(Method):
        views = Barlow.views

        def build(self):
            self.predictor = modules.BYOLPredictionHead(self.out, self.hidden, self.out)
            self.criterion = losses.NegativeCosineSimilarity()
            self.teach(lambda: modules.BYOLProjectionHead(self.width, self.hidden, self.out))

        def loss(self, views, step):
            self.last = views
            guessed = [self.predictor(self.head(self.features(v))) for v in views]
            with torch.no_grad():
                targets = [self.teacher[1](self.features(v, self.teacher[0])) for v in views]
            return sum(self.criterion(guessed[i], targets[1 - i]) for i in (0, 1)) / 2

    class DINO(Method):
        def views(self):
            crops = self.options["crops"]
            return transforms.DINOTransform(
                global_crop_size=self.size, global_crop_scale=tuple(crops["large"]),
                local_crop_size=round(self.size * crops["size"]), local_crop_scale=tuple(crops["scale"]),
                n_local_views=crops["number"], gaussian_blur=(0.0, 0.0, 0.0), normalize=self.of_pixels,
            )  # fmt: skip

        def build(self):
            count = self.options["prototypes"]
            self.criterion = losses.DINOLoss(count)
            head = modules.DINOProjectionHead
            self.teach(lambda: head(self.width, self.hidden, self.out, count, freeze_last_layer=1))

        def loss(self, views, step):
            self.last = views
            with torch.no_grad():
                targets = [self.teacher[1](self.features(v, self.teacher[0])) for v in views[:2]]
            return self.criterion(targets, [self.head(self.features(v)) for v in views], epoch=self.epoch(step))

        def before(self, step: int) -> None:
            self.head.cancel_last_layer_gradients(self.epoch(step))

        def epoch(self, step: int) -> int:
            """A tenth of the run: its last layer stands still for one, and so does ours."""
            return 10 * step // self.steps

    class SwAV(Method):
        def views(self):
            crops = self.options["crops"]
            return transforms.SwaVTransform(
                crop_sizes=(self.size, round(self.size * crops["size"])), crop_counts=(2, crops["number"]),
                crop_min_scales=(crops["large"][0], crops["scale"][0]),
                crop_max_scales=(crops["large"][1], crops["scale"][1]),
                gaussian_blur=0.0, normalize=self.of_pixels,
            )  # fmt: skip

        def build(self):
            self.head = modules.SwaVProjectionHead(self.width, self.hidden, self.out)
            self.prototypes = modules.SwaVPrototypes(self.out, self.options["prototypes"])
            self.criterion = losses.SwaVLoss()

        def loss(self, views, step):
            self.prototypes.normalize()
            scores = [self.prototypes(nn.functional.normalize(self.head(self.features(v)), dim=1)) for v in views]
            return self.criterion(scores[:2], scores[2:])

    return {
        "simclr": SimCLR, "moco": MoCo, "dino": DINO, "swav": SwAV, "barlow_twins": Barlow, "vicreg": VICReg,
        "byol": BYOL,
    }  # fmt: skip


def table(lines: list[dict]) -> str:
    def best(line) -> float:
        return max(statistics.mean(values) for values in line["probe"].values())

    def each(line, cost: str) -> float:
        return 10_000 * line[cost] / line["samples"]

    rows = [
        "| objective | probe, ours | lightly | CPU s for 10,000 samples, ours | lightly | s, ours | lightly |",
        "|---" * 7 + "|",
    ]
    for name in SEEDS:
        cells = []
        for figure in (best, lambda line: each(line, "cpu_seconds"), lambda line: each(line, "seconds")):
            for who in ("ours", "lightly"):
                found = [figure(line) for line in lines if (line["objective"], line["who"]) == (name, who)]
                spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
                cells.append(f"{statistics.mean(found):.1f}{spread}" if found else "–")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def with_table(page: str) -> str:
    return between(page, BEGIN, END, table(lines_of(LINES)))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
