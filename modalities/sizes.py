"""Sizes from the data: what some samples of each modality measure, and the sizes that suit them.

Headers are read, and of sounds a few seconds. `Modality.survey` and `Modality.sized` are these functions; the rule that
turns a survey and a budget into a recipe is `training/choice.py`.
"""

import io
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from triptych.modalities.audio_file import RATE, Clip
from triptych.modalities.base import bytes_or_path, span_of
from triptych.modalities.filterbank import framing
from triptych.modalities.survey import Survey, few, spread

PATCHES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16)  # sides of a patch, in pixels
LEAST, ALONG = 7, (8, 14)  # patches that a side should have; along the shorter side for least and most work
LONG = 1.5  # aspect from which a view is no square, where nearly all pictures have it
COLUMNS = (4, 8, 16)  # frames of a tile of all mel bins: full-height columns learn sounds far sooner than squares
LONGEST = 10.0  # seconds of a window
LENGTHS = (32, 512)  # tokens of a window, least and most
WHOLE = 256  # tokens of a window, in which the middle text is whole if it has no more
CHARACTERS = 4.0  # of a token, about: byte-level BPE of 8,192 words on English, French, German or Russian
# Chinese, Japanese and Korean signs have about two to a token: 2.1 and 2.5 of a Chinese and a Japanese text.
IDEOGRAPHS = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
LOOKED = {"pictures": 64, "sounds": 256, "heard": 16, "texts": 512}  # rows


# Pictures.


def look_at_pictures(rows, column: str, raw: Callable) -> Survey | None:
    """Shorter side, aspect (width over height) and channels of some pictures, by their headers.

    `raw` reads the values of a file that is an array or DICOM.
    """
    found = []
    for i in spread(len(rows), LOOKED["pictures"]):
        try:
            found.append(measured(rows[i][column], raw))
        except Exception:  # the loader will count and name it
            continue
    if not found:
        return None
    width, height, channels = np.array(found, dtype=float).T
    short, aspect = np.minimum(width, height), width / height
    middle = float(np.median(aspect))
    alike = float(np.mean(np.abs(np.log(aspect / middle)) < 0.1))
    least, most = (found[int(f(width * height))][:2] for f in (np.argmin, np.argmax))
    spans = "×".join(map(str, least)) + ("" if least == most else f" to {'×'.join(map(str, most))}")
    count = int(max(channels)) if set(channels) <= {1, 3} else int(np.median(channels))
    return Survey(
        len(rows),
        f"{spans} px, {colours(count)}",
        "",
        {"side": float(np.median(short)), "aspect": middle, "alike": alike, "channels": float(count)},
    )


def measured(cell: Any, raw: Callable) -> tuple[int, int, int]:
    """Width, height and channels of a picture."""
    from PIL import Image as pillow

    from triptych.modalities.image_file import content, is_grey, is_plain, orientation

    source, name = content(cell)
    if not is_plain(source, name):
        channels, height, width = raw(source, name).values.shape
        return width, height, channels
    with pillow.open(io.BytesIO(source)) if isinstance(source, bytes) else source as picture:
        turned = orientation(picture) >= 5 and picture.format != "TIFF"  # of which Pillow has it in the size
        size = picture.size[::-1] if turned else picture.size
        return *size, 1 if is_grey(picture) else 3


def colours(channels: int) -> str:
    return {1: "grey", 3: "in colour"}.get(channels, f"{channels} channels")


def picture_sizes(measures: dict[str, float], pieces: float, given: dict[str, Any]) -> dict[str, Any]:
    """`image_size`, `patch_size` and `channels` for about so many pieces.

    A patch is the largest that leaves seven along the shorter side, 16 pixels at most; the view is the picture's own
    size, or as many patches as the budget has.
    """
    side, aspect = max(1, round(measures["side"])), measures["aspect"]
    made: dict[str, Any] = {} if "channels" in given else {"channels": int(measures["channels"])}
    if "image_size" in given:
        sides = np.atleast_1d(given["image_size"])
        fitting = [p for p in PATCHES if not (sides % p).any()]
        if "patch_size" not in given:
            made["patch_size"] = max([p for p in fitting if sides.min() // p >= LEAST] or fitting[:1])
        return made
    # A patch of one pixel has no deviation to be normalised by.
    patch = given.get("patch_size") or max([p for p in PATCHES[1:] if side // p >= LEAST] or [min(2, side)])
    ratio = max(aspect, 1 / aspect) if measures["alike"] > 0.9 else 1.0
    ratio = min(ratio, 4.0) if ratio >= LONG else 1.0
    most = min(ALONG[1], max(ALONG[0], math.sqrt(max(pieces, 1)))) / math.sqrt(ratio)
    short = max(1, min(math.floor(most + 1e-6), side // patch))
    high, wide = (short, round(short * ratio)) if aspect >= 1 else (round(short * ratio), short)
    made["image_size"] = high * patch if high == wide else (high * patch, wide * patch)
    if "patch_size" not in given:
        made["patch_size"] = patch
    return made


# Sounds.


def listen_to_sounds(rows, column: str, rate: int) -> Survey | None:
    """Length, rate and share of silence of some sounds, by their headers; the silence by the first seconds of a few."""
    seconds, rates, silent = [], [], []
    index = spread(len(rows), LOOKED["sounds"])
    heard = set(spread(len(index), LOOKED["heard"]))
    for number, i in enumerate(index):
        try:
            cell = rows[i][column]
            clip = Clip(bytes_or_path(cell), 0, rate, span_of(cell))
            if number in heard:
                silent.append(silence(clip.window(0, int(LONGEST * rate)), framing(rate).frame))
        except Exception:  # the loader will count and name it
            continue
        seconds.append(clip.length / rate)
        rates.append(clip.rate)
    if not seconds:
        return None
    low, middle, most, high = np.quantile(seconds, [0, 0.5, 0.75, 1])
    hours = float(np.mean(seconds)) * len(rows) / 3600
    hertz = " and ".join(f"{rate:,}" for rate in sorted(set(rates))[:3])
    spans = lasting(low) if high - low < 0.05 else f"{lasting(low)} to {lasting(high)} (middle {lasting(middle)})"
    return Survey(
        len(rows),
        f"{spans}, {hertz} Hz, {np.mean(silent or [0.0]):.0%} silence",
        f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes",
        {"seconds": float(middle), "most": float(most), "mean": float(np.mean(seconds)), "rate": float(max(rates))},
    )


def silence(wave: np.ndarray, frame: int) -> float:
    """Share of frames of so many samples below -60 dB of full scale."""
    frames = wave[: len(wave) // frame * frame].reshape(-1, frame)
    return float((np.sqrt(np.square(frames).mean(1)) < 1e-3).mean()) if len(frames) else 0.0


def lasting(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def sound_sizes(survey: Survey, pieces: float, given: dict[str, Any]) -> dict[str, Any]:
    """`seconds`, `mel_bins` and `tile`: a window that holds three quarters of the sounds whole, in columns.

    Of few sounds, level and pitch stay as they are: on 320 everyday sounds, views that change them took the encoder
    below the untrained one, since both are most of what tells such sounds apart.
    """
    measures = survey.measures
    seconds = given.get("seconds") or min(LONGEST, max(0.25, math.ceil(measures["most"] * 20) / 20))
    made: dict[str, Any] = {} if "seconds" in given else {"seconds": seconds}
    if few(survey.rows, survey.rows * max(1.0, measures["mean"] / seconds)):
        made |= {key: 0.0 for key in ("gain", "frequency_scale", "stretch") if key not in given}
        made["objective.scale"] = (0.3, 0.6)  # or two views would be trivially alike
    tile = given.get("tile")
    bins = given.get("mel_bins") or (tile[0] if tile and 128 % tile[0] else 64 if measures["rate"] < RATE else 128)
    if "mel_bins" not in given:
        made["mel_bins"] = bins
    if tile is None and "stride" not in given:
        fitting = [frames for frames in COLUMNS if 100 * seconds / frames <= max(64, pieces)]
        made["tile"] = (bins, min(bins, (fitting or COLUMNS[-1:])[0]))
    return made


# Texts.


def read_texts(rows, column: str) -> Survey | None:
    """Length of some texts, in about so many tokens."""
    cells = [rows[i][column] for i in spread(len(rows), LOOKED["texts"])]
    texts = [text for text in cells if isinstance(text, str) and text.strip()]
    if not texts:
        return None
    tokens = np.array([len(text) + len(IDEOGRAPHS.findall(text)) for text in texts]) / CHARACTERS
    low, middle, most, high = np.quantile(tokens, [0, 0.5, 0.9, 1])
    whole = float(tokens.mean()) * len(rows) * len(texts) / len(cells)
    return Survey(
        len(rows),
        f"{max(1, low):,.0f} to {high:,.0f} tokens (middle {middle:,.0f})",
        f"{whole / 1e6:.2g} M tokens",
        {"tokens": float(middle), "most": float(most), "mean": float(tokens.mean()), "whole": whole},
    )


def text_sizes(measures: dict[str, float], pieces: float, given: dict[str, Any], usual: dict[str, Any]):
    """`max_length` and `vocab_size`: a window that holds nine of ten texts whole, as far as the budget goes.

    Whatever the budget, it holds every second text whole, or 256 tokens: halves of 32 tokens of a long text share
    hardly more than names, and an encoder of film reviews learned nothing of how a film was liked.
    """
    made: dict[str, Any] = {}
    if "max_length" not in given:
        wanted = 2 ** math.ceil(math.log2(measures["most"] + 2))
        middle = 2 ** math.ceil(math.log2(measures["tokens"] + 2))
        most = max(2 ** math.floor(math.log2(max(64, pieces))), min(middle, WHOLE))
        made["max_length"] = int(
            min(max(LENGTHS[0], wanted), most, LENGTHS[1], given.get("max_positions") or LENGTHS[1])
        )
    if "vocab_size" not in given and "tokenizer" not in given:
        large = measures["whole"] > 1e8 and pieces >= 128
        made["vocab_size"] = 32_768 if large else usual.get("vocab_size", 8192)
    return made
