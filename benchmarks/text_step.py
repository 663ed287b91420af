"""A masked-text training step on real lengths: ours, packed, against the native class padded, in one run.

    python benchmarks/text_step.py ../shared/data/ag_news/train.parquet

Peers: the class of `--family` for masked words (`RobertaPreLayerNormForMaskedLM`, or `BertForMaskedLM` with `bert`),
with every text padded to 128 tokens, and with each batch padded to its own longest text. All three do the same step
(forward, backward, AdamW) on the same texts in turn, batch after batch, so
that a change of the machine's load falls on all of them. The same tokens are hidden. With `--compile`, ours compiled
as well, in rows of 256 tokens and in rows as they fill best; the first eight steps of each are left out, in which it
compiles (minutes).
"""

import argparse
import statistics
import time

import datasets
import torch

from triptych.encoders.native import FAMILIES, make
from triptych.modalities import Text
from triptych.modalities.view import View
from triptych.objectives import Masked, masking


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a parquet file with a column of text")
    parser.add_argument("--column", default="text")
    parser.add_argument("--family", default="roberta-prelayernorm", help="whose class for masked words is the peer")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--vocab_size", type=int, default=16384)
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    rows = datasets.load_dataset("parquet", data_files=args.data, split="train")
    text = Text(vocab_size=args.vocab_size, max_length=args.max_length)
    text.fit(rows, args.column)
    samples = text.samples(rows, args.column)
    objective = Masked(make(text, args.family, width=args.width, depth=args.depth, heads=args.heads))
    native = FAMILIES[args.family].export(objective.backbone, objective.head).train()
    optimizers = {m: torch.optim.AdamW(m.parameters(), 1e-4) for m in (objective, native)}
    compiled = torch.compile(objective)
    optimizers[compiled] = optimizers[objective]
    spec, order = objective.views[0], torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))

    filling = {None: [], 256: []}  # by row_length

    def tokens_of(view):
        return view.data.shape[0] * (view.data.shape[1] + view.samples.shape[1])

    def step(model, loss):
        loss.backward()
        optimizers[model].step()
        optimizers[model].zero_grad()

    def ours(batch, seed, model=objective, row_length=None):
        text.row_length = row_length
        view = text.prepare(text.collate(batch, seed))
        filling[row_length].append(sum(len(s["data"]) + 1 for s in batch) / tokens_of(view))
        step(model, model([view])["loss"])

    def padded(batch, seed, length=None):
        length = length or 1 + max(len(s["data"]) for s in batch)
        ids = torch.full((len(batch), length), text.padding)
        ids[:, 0] = text.first
        for i, sample in enumerate(batch):
            ids[i, 1 : 1 + len(sample["data"])] = sample["data"]
        position = torch.arange(length)[None, :, None].expand(len(batch), -1, -1)
        view = View(ids, seed, position, ordinary=~text.special[ids])
        chosen = masking.hide(view, objective.mask.ratio, "random", 3, text.hideable(view))
        data, hide = text.corrupt(ids, chosen, masking.random(view, 3))
        output = native(
            input_ids=torch.where(hide, text.mask, data),
            attention_mask=(ids != text.padding).long(),
            labels=torch.where(chosen, ids, -100),
        )
        step(native, output.loss)

    ways = {
        "ours, packed": ours,
        f"native, padded to {args.max_length}": lambda batch, seed: padded(batch, seed, args.max_length),
        "native, padded to the longest": padded,
    }
    if args.compile:
        ways["ours, compiled"] = lambda batch, seed: ours(batch, seed, compiled)
        ways["ours, compiled, rows of 256"] = lambda batch, seed: ours(batch, seed, compiled, 256)
    seconds, tokens, warm_up = {name: [] for name in ways}, 0, 8 if args.compile else 1
    for number in range(args.steps + warm_up):
        index = order[number * args.batch : (number + 1) * args.batch].tolist()
        batch = [text.view(text.read(samples[i][args.column]), spec, i) for i in index]
        tokens += sum(len(s["data"]) + 1 for s in batch)
        for name, way in ways.items():
            start = time.perf_counter()
            way(batch, torch.tensor(index))
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(s) for name, s in seconds.items()}
    print(f"{args.width} wide, {args.depth} deep, {text.rows} words, batch {args.batch}, {args.threads} threads")
    print(f"{tokens / (args.steps + warm_up) / args.batch:.1f} tokens a text")
    for length, full in filling.items():
        if full:
            print(f"rows of {length or 'any length'}: {statistics.mean(full):.1%} full")
    for name, s in middle.items():
        print(f"{name:32} {s * 1e3:8.0f} ms a step   {s / middle['ours, packed']:.2f}")


if __name__ == "__main__":
    main()
