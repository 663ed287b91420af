"""The parts of a run's page that take its encoder and its data: what was seen, neighbours, a map, colours of pieces."""

import io
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from triptych.encoders.backbone import Backbone
from triptych.evaluation.features import extract
from triptych.evaluation.report_page import MARKERS, OKABE_ITO, Section, data_url, drawn, in_legend, words
from triptych.modalities import EVALUATION, BadSample, View
from triptych.modalities.exhibit import Exhibit, Seen
from triptych.training.groups import groups_of
from triptych.training.loader import Samples, division, held_out
from triptych.training.sources import NO_LABEL, Rows, word

SEEN, ASKED, NEAR = 6, 12, 5  # samples whose views are shown; whose neighbours are; neighbours
LEAST, MOST, SECONDS = 64, 400, 30.0  # rows of the map, as many as are encoded in so long
SAMPLES = 4000  # windows that these are at most, if they are more than a dozen rows
SIDE, LARGE, PLAYED = (
    40,
    224,
    5.0,
)  # pixels of a small picture, of a large one at most; seconds of sound that are played
GREY, PALE = 127, 225  # where something was hidden, and behind the end of a sample
RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)  # that MP3 has, in Hz


def sections(objective, rows: Rows, fraction: float, board: Path | None = None, step: int = 0) -> list[Section]:
    """All of these parts, in the order of the page. One that fails says so in its place.

    `board`: a folder of TensorBoard that gets what was seen as well, as of `step`.
    """
    backbone = objective.backbone
    made = [part("What the objective saw", lambda: seen(objective, rows, fraction, board, step))]
    try:
        features = encoded(backbone, rows)
    except (ValueError, RuntimeError) as error:
        return [*made, Section("Neighbours and map", f"<p>could not be made: {words(error)}</p>")]
    made += [
        part("Nearest neighbours", lambda: nearest(*features)),
        part("Map of the features", lambda: spread(*features)),
        part("Pieces by their features", lambda: pieces(backbone, rows)),
    ]
    return [section for section in made if section.body]


def part(title: str, make: Callable[[], tuple[str, str]]) -> Section:
    try:
        body, note = make()
        return Section(title, body, note)
    except Exception as error:  # the others are worth having
        return Section(title, f"<p>could not be made: {words(type(error).__name__)}: {words(error)}</p>")


def some(count: int, most: int, first: np.ndarray | None = None) -> np.ndarray:
    """Row numbers of at most so many rows, the same every time; those in `first` before others."""
    order = np.random.RandomState(0).permutation(count)
    if first is not None:
        order = np.concatenate([order[np.isin(order, first)], order[~np.isin(order, first)]])
    return order[:most]


def seen(objective, rows: Rows, fraction: float, board: Path | None = None, step: int = 0) -> tuple[str, str]:
    """Each view of some samples: as it is, without what was hidden, with what was guessed there."""
    lines = exhibits(objective, rows, fraction)
    if board is not None:
        post(lines, board, step)
    where = "that were held out of training" if len(held(rows, fraction)) >= SEEN else "of the data"
    note = f"{len(lines[0][1])} samples {where}, as the objective asks for them. A column is a sample."
    if any(one.picture is not None and one.picture.ndim == 2 for _, line in lines for one in line):
        note += " Grey is hidden, pale is padding."
    return sample_table([(name, [shown(one) for one in line]) for name, line in lines]), note


def held(rows: Rows, fraction: float) -> np.ndarray:
    """Numbers of the rows that were held out of training."""
    return held_out(len(rows), fraction, groups_of(rows, "to look at"))[1]


@torch.no_grad()
def exhibits(objective, rows: Rows, fraction: float, count: int = SEEN) -> list[tuple[str, list[Exhibit]]]:
    """So many samples, of those held out first, in a line a stage: its name, and each sample there."""
    modality = objective.backbone.modality
    index = some(len(rows), 4 * count, held(rows, fraction))
    samples, numbers = division(rows, index)
    feed = Samples(samples, rows.column, modality, objective.views, 0, len(samples), numbers)
    views = feed.__getitems__([(0, i) for i in range(min(count, len(samples)))])["views"]
    prepared = [modality.prepare(view) for view in views]
    lines: list[tuple[str, list[Exhibit]]] = []
    for number, (view, made, found) in enumerate(zip(views, prepared, objective.seen(prepared), strict=True), 1):
        lines.append(("original" if len(views) == 1 else f"view {number}", modality.exhibit(view)))
        if found.index is not None:
            lines.append(("what is left of it", modality.exhibit(made, Seen(*found[:2]))))
        if found.guess is not None:
            lines.append(("with what is guessed", modality.exhibit(made, found)))
    return lines


def post(lines: list[tuple[str, list[Exhibit]]], board: Path, step: int) -> None:
    """The same for TensorBoard: pictures side by side, texts with their hidden words in bold."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(board)) as writer:
        for name, line in lines:
            if line[0].picture is not None:
                pictures = np.stack([painted(one.picture) for one in line])
                writer.add_images(f"seen/{name}", pictures, step, dataformats="NHWC")
            if line[0].words is not None:
                texts = ("".join(f"**{w.guess or '___'}**" if w.hidden else w.text for w in one.words) for one in line)
                writer.add_text(f"seen/{name}", "\n\n".join(texts), step)


def sample_table(lines: list[tuple[str, list[str]]]) -> str:
    rows = "".join(
        f"<tr><th scope=row>{words(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for name, cells in lines
    )
    return f'<div class="scroll samples" tabindex="0" role="region" aria-label="samples"><table>{rows}</table></div>'


def shown(one: Exhibit, label: str = "") -> str:
    """A sample as HTML: its picture, its player, its words."""
    made = ""
    if one.picture is not None:
        pixels = painted(one.picture)
        long = " long" if one.picture.ndim == 2 else ""
        made += f'<img class="small{long}" alt="{words(label or "sample")}" src="{encoded_picture(pixels)}">'
    if one.sound is not None:
        made += f'<audio controls preload="none" src="{encoded_sound(*one.sound)}"></audio>'
    if one.words is not None:
        made += f'<div class="text">{"".join(map(said, one.words))}</div>'
    return made + (f"<div>{words(label)}</div>" if label else "")


def said(word) -> str:
    if not word.hidden:
        return words(word.text)
    if word.guess is None:
        return '<mark class="gap" title="hidden">&nbsp;&nbsp;&nbsp;</mark>'
    if word.guess == word.text:
        return f'<mark class="right" title="guessed right">{words(word.guess)}</mark>'
    return f'<mark class="wrong" title="guessed wrong">{words(word.guess)}<s>{words(word.text)}</s></mark>'


def painted(picture: np.ndarray) -> np.ndarray:
    """Values in 0 to 1 -> colours in bytes; a quantity by a map that the colour-blind read, NaN grey, infinity pale."""
    flat = picture if picture.ndim == 2 else picture.sum(-1)
    values = np.where(np.isfinite(picture), picture, 0)
    if picture.ndim == 2:
        from matplotlib import colormaps

        values = colormaps["cividis"](values)[..., :3]
    made = np.rint(values * 255).astype(np.uint8)
    made[np.isnan(flat)], made[np.isinf(flat)] = GREY, PALE
    return made


def encoded_picture(pixels: np.ndarray) -> str:
    """A small picture as it is, a large one shrunk and as JPEG."""
    from PIL import Image as pillow

    picture, file = pillow.fromarray(pixels), io.BytesIO()
    if max(picture.size) > 2 * LARGE:
        picture.thumbnail((2 * LARGE, LARGE))
    if picture.width * picture.height <= 4096:
        picture.save(file, "PNG")
        return data_url("image/png", file.getvalue())
    picture.save(file, "JPEG", quality=82)
    return data_url("image/jpeg", file.getvalue())


def encoded_sound(wave: np.ndarray, rate: int, seconds: float = PLAYED) -> str:
    import soundfile

    if rate not in RATES:
        from torchaudio.functional import resample

        nearest = min(RATES, key=lambda known: abs(known - rate))
        wave, rate = resample(torch.as_tensor(wave), rate, nearest).numpy(), nearest
    wave, file = np.asarray(wave[: round(seconds * rate)], dtype=np.float64), io.BytesIO()
    wave = wave / max(1e-9, np.abs(wave).max()) * 0.9
    soundfile.write(file, wave, rate, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.8)
    return data_url("audio/mpeg", file.getvalue())


def evaluation(modality, cell: Any) -> View | None:
    """The evaluation view of a cell, as a batch of one; None if it cannot be used."""
    try:
        return modality.collate([modality.view(modality.read(cell), EVALUATION, 0)], torch.zeros(1, dtype=torch.long))
    except BadSample:
        return None


def encoded(backbone: Backbone, rows: Rows):
    """Unit vectors `[n d]` of as many rows as time allows, what they look like, and their labels."""
    index = some(len(rows), MOST)
    index = index[: affordable(rows.select(index))]
    began = time.monotonic()
    parts = [extract(backbone, rows.select(index[:LEAST]), workers=0)]
    each = (time.monotonic() - began) / min(LEAST, len(index))
    more = index[LEAST : max(LEAST, min(len(index), int(SECONDS / max(each, 1e-6))))]
    row = index[:LEAST][parts[0].row]
    if len(more):
        parts.append(extract(backbone, rows.select(more), workers=0))
        row = np.concatenate([row, more[parts[1].row]])
    if not (some_x := [part.x["native"] for part in parts if len(part.row)]):
        raise ValueError("no sample can be used")
    x = np.concatenate(some_x)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    views = [evaluation(backbone.modality, rows.table[int(i)][rows.column]) for i in row]
    keep = [n for n, view in enumerate(views) if view is not None and np.isfinite(x[n]).all()]
    with torch.no_grad():
        looks = [backbone.modality.exhibit(views[n])[0] for n in keep]
    return x[keep], looks, labels_of(rows, row[keep])


def affordable(rows: Rows) -> int:
    """How many rows there is time for: long recordings and texts are many samples each."""
    table = rows.modality.samples(rows.table, rows.column)
    if "source_row" not in table.column_names:
        return len(rows)
    samples = np.bincount(table["source_row"], minlength=len(rows)).cumsum()
    return max(ASKED, int(np.searchsorted(samples, SAMPLES, side="right")))


def labels_of(rows: Rows, index: np.ndarray) -> list[str]:
    """Words for the labels of rows; empty where there are none."""
    if rows.label is None:
        return [""] * len(index)
    return [word(rows, rows.table[int(i)][rows.label]) for i in index]


def spread_over(labels: list[str], count: int) -> list[int]:
    """Numbers of so many samples, of as many classes as there are."""
    rank: dict[str, int] = {}
    turn = []
    for label in labels:
        turn.append(rank.get(label, 0))
        rank[label] = turn[-1] + 1
    return sorted(sorted(range(len(labels)), key=lambda i: (turn[i], i))[:count])


def nearest(x: np.ndarray, looks: list[Exhibit], labels: list[str]) -> tuple[str, str]:
    """A dozen samples, and beside each those whose vectors are nearest by cosine."""
    cosine = x @ x.T
    np.fill_diagonal(cosine, -2)
    lines, right, chance, judged = [], 0, 0.0, 0
    count = Counter(label for label in labels if label != NO_LABEL)
    for i in spread_over(labels, ASKED):
        near = np.argsort(-cosine[i])[: min(NEAR, len(x) - 1)]
        cells = [brief(looks[i], labels[i])]
        cells += [brief(looks[j], f"{cosine[i, j]:.3f} {labels[j]}") for j in near]
        if labels[i] in count:
            right, judged = right + sum(labels[i] == labels[j] for j in near), judged + len(near)
            chance += len(near) * (count[labels[i]] - 1) / max(1, len(x) - 1)  # of others, one of its label
        lines.append((f"{len(lines) + 1}", cells))
    note = f"The first of a row is asked for; the others are its nearest of {len(x)} samples, with their cosine."
    if any(labels) and judged:
        note += f" {right} of {judged} have its label; by chance it would be {chance:.0f}."
    return sample_table(lines), note


def brief(one: Exhibit, label: str) -> str:
    """A sample in little room: some seconds of sound, the head of a text."""
    if one.words is not None:
        text = "".join(word.text for word in one.words)
        return f'<div class="text">{words(text[:120])}{" …" if len(text) > 120 else ""}</div><div>{words(label)}</div>'
    sound = None if one.sound is None else (one.sound[0][: round(2 * one.sound[1])], one.sound[1])
    return shown(Exhibit(one.picture, sound), label)


def spread(x: np.ndarray, looks: list[Exhibit], labels: list[str]) -> tuple[str, str]:
    """The two directions in which the vectors differ most, with a picture or the words at each point."""
    centred = x - x.mean(0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    place = centred @ directions[:2].T
    share = (values[:2] ** 2).sum() / max(1e-12, (values**2).sum())
    common = sorted(set(labels), key=lambda label: (-labels.count(label), label))[: len(OKABE_ITO)]
    pictured = looks[0].picture is not None

    def draw(axes):
        for number, label in enumerate(common + [None] * (len(set(labels)) > len(common))):
            here = [i for i, found in enumerate(labels) if found == label or label is None and found not in common]
            colour = "#999999" if label is None else OKABE_ITO[number]
            style = {"s": 16, "color": colour, "marker": "x" if label is None else MARKERS[number], "linewidths": 0.8}
            axes.scatter(*place[here].T, label="others" if label is None else in_legend(label[:24]), **style)
        if any(labels):
            axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        axes.tick_params(labelbottom=False, labelleft=False)
        names = [label or f"sample {i + 1}" for i, label in enumerate(labels)]
        if pictured:
            return [(*place[i], name, i) for i, name in enumerate(names)]
        texts = ["".join(word.text for word in one.words or ())[:80] for one in looks]
        return [(*place[i], f"{name}: {text}") for i, (name, text) in enumerate(zip(names, texts, strict=True))]

    figure = drawn("the features' two main directions", draw, (8.2, 4.6))
    if not pictured:
        return f'<div class="wide">{figure.html()}</div>', map_note(len(x), share)
    across = math.ceil(math.sqrt(len(looks)))
    rule = f"<style>.sheet{{background-image:url({sheet(looks, across)})}}</style>"
    attribute = f' data-sheet=\'{{"side":{SIDE},"across":{across}}}\''
    return rule + f'<div class="wide">{figure.html(attribute)}</div>', map_note(len(x), share)


def map_note(count: int, share: float) -> str:
    return f"Of {count} samples, on PCA of their unit vectors; these two hold {share:.0%} of their variance."


def sheet(looks: list[Exhibit], across: int) -> str:
    """Small pictures of all samples on one."""
    from PIL import Image as pillow

    made = pillow.new("RGB", (across * SIDE, math.ceil(len(looks) / across) * SIDE))
    for number, one in enumerate(looks):
        small = pillow.fromarray(painted(one.picture)).resize((SIDE, SIDE), pillow.Resampling.BILINEAR)
        made.paste(small, (number % across * SIDE, number // across * SIDE))
    file = io.BytesIO()
    made.save(file, "JPEG", quality=75)
    return data_url("image/jpeg", file.getvalue())


@torch.no_grad()
def pieces(backbone: Backbone, rows: Rows) -> tuple[str, str]:
    """Pieces in the colours of the three directions in which their tokens differ most; nothing without two axes."""
    modality = backbone.modality
    cells = (rows.table[int(i)][rows.column] for i in some(len(rows), 4 * SEEN))
    raw = [view for view in (evaluation(modality, cell) for cell in cells) if view is not None][:SEEN]
    views = [modality.prepare(view) for view in raw]
    if any(view.grid is None or len(view.grid) != 2 for view in views):
        return "", ""
    tokens = [backbone.encode(view).pieces[0].double().numpy() for view in views]
    mean = np.concatenate(tokens).mean(0)
    _, _, directions = np.linalg.svd(np.concatenate(tokens) - mean, full_matrices=False)
    colours = [(x - mean) @ directions[:3].T for x in tokens]
    low, high = np.percentile(np.concatenate(colours), (2, 98), axis=0)
    painted_pieces = []
    for view, colour in zip(views, colours, strict=True):
        picture = ((colour - low) / np.maximum(high - low, 1e-9)).clip(0, 1).reshape(*view.grid, -1)
        picture = picture[::-1] if modality.rising else picture
        picture = np.pad(picture, ((0, 0), (0, 0), (0, 3 - picture.shape[-1])))
        painted_pieces.append(picture)
    looks = [modality.exhibit(view)[0] for view in raw]
    lines = [("sample", [shown(Exhibit(one.picture)) for one in looks])]
    kind = "small long" if looks[0].picture.ndim == 2 else "small"
    urls = [encoded_picture(np.rint(p * 255).astype(np.uint8)) for p in painted_pieces]
    colours = (f'<img class="{kind}" alt="pieces" src="{url}">' for url in urls)
    lines.append(("its pieces", list(colours)))
    note = "Red, green and blue are the three main directions of the encoder's tokens: like colours, like features."
    return sample_table(lines), note
