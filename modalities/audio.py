"""Sound: windows of files in the workers, log-mel filterbanks cut into tiles on the device."""

import io
import math
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from triptych.modalities.audio_file import FRAME, RATE, Clip
from triptych.modalities.base import BadSample, Grid, bytes_or_path
from triptych.modalities.domains import Each, NotNegative, Part, Positive, Probability, Within
from triptych.modalities.exhibit import Exhibit, Seen
from triptych.modalities.hashing import generator, uniform
from triptych.modalities.precision import full
from triptych.modalities.view import View, ViewSpec

HOP, FFT = 160, 512  # 10 ms between frames, in samples; Kaldi's, as ASTFeatureExtractor has them
FLOOR = torch.finfo(torch.float32).eps  # of a mel energy, before the logarithm
FITTED = 256  # clips from which the statistics are taken
CACHED = 512  # frames whose intermediate results fit a core's cache
VIEW, MIX = 1, 2  # what a view's random numbers are for
SHADES = 2.5  # deviations on either side of the mean that are told apart where a spectrogram is shown
SALT = 0xA0D10  # keeps the window of a long file apart from what else a seed is used for


class Audio(Grid):
    """Sound of any kind that libsndfile reads, mixed down, at 16 kHz, as tiles of a log-mel spectrogram.

    The front end is `ASTFeatureExtractor`'s. A file that is longer than the window gives a random window in training.
    In evaluation it gives all of its windows, one after another, of which the last is moved back to end where the file
    ends. A shorter one is padded as the extractor does; padded tiles are attended as the native class does, but are
    never targets.

    Args:
        seconds: length of the window, rounded up to whole tiles; the native extractor makes 100 frames a second.
        mel_bins: mel bins from 20 Hz to 8 kHz; a multiple of the tile's height, or with a stride at least that.
        tile: mel bins and frames of a tile; at least as tall as wide. Full-height columns (128, 4) learn short sounds
            far sooner than squares.
        stride: mel bins and frames from one tile to the next; smaller than the tile's, tiles overlap (the published
            ASTs': 10, 10). Errors of masked objectives then count only values that no visible tile holds; the others
            could be copied. Default: the tile's.
        positions: `fixed` sin-cos or `learned` (from sin-cos on).
        target: what masked objectives predict: each tile `normalised` by its mean and deviation (MAE), the `raw`
            values (squared error), or the raw values under the `absolute` error.
        variance_floor: added to a tile's variance before a `normalised` target is divided by its deviation.
        roll: largest circular shift of weak and strong views, as a fraction of the clip.
        gain: largest change of loudness of weak and strong views, in natural logarithms of energy (1 is 4.3 dB).
        stretch: largest relative change of duration of weak and strong views.
        frequency_scale: largest relative change of the mel axis of weak and strong views.
        time_mask: longest stretch of frames that a strong view blanks, as a fraction of the window.
        frequency_mask: widest band that a strong view blanks, as a fraction of the bins.
        mixup: largest share of another clip of the data in the energy of a strong view. Waves are added, whose energies
            add up on average as those of BYOL-A's log-mixup-exp do; the other clip is by the sample's seed.
        mean: mean of the log-mel values. Default: computed from training rows.
        std: their deviation; values are divided by twice it. Default: computed from training rows.
    """

    rising = True
    features = ("Audio",)
    # Also those that libsndfile cannot decode, so that they are counted and named, not passed over in silence.
    sizes = ("seconds", "mel_bins", "tile", "stride")
    suffixes = tuple(
        ".wav .flac .ogg .oga .opus .mp3 .mp2 .aiff .aif .aifc .au .snd .caf .w64 .rf64 .wave .sph .voc "
        ".m4a .m4b .aac .mp4 .webm .mka .weba .wma .amr .3gp .ape .wv .ac3 .dts .spx".split()
    )

    def __init__(
        self,
        seconds: Positive = 10.0,
        mel_bins: Annotated[int, Within("[4, inf)")] = 128,
        tile: Annotated[tuple[int, int], Each("[1, inf)")] = (16, 16),
        stride: Annotated[tuple[int, int], Each("[1, inf)")] | None = None,
        positions: Literal["fixed", "learned"] = "fixed",
        target: Literal["normalised", "raw", "absolute"] = "normalised",
        variance_floor: NotNegative = 1e-6,
        roll: Probability = 0.0,
        gain: NotNegative = 0.0,
        stretch: Part = 0.0,
        frequency_scale: Part = 0.0,
        time_mask: Probability = 0.0,
        frequency_mask: Probability = 0.0,
        mixup: Part = 0.0,
        mean: Annotated[float, Within("(-inf, inf)")] | None = None,
        std: Positive | None = None,
    ):
        height, width = self.tile = tuple(tile)
        self.stride = tuple(stride or tile)
        if self.stride[0] > height or self.stride[1] > width:
            raise ValueError(
                f"modality.stride {list(self.stride)} is above modality.tile {[height, width]}: values between the "
                "tiles would never be seen; give at most the tile's"
            )
        if self.stride != self.tile and (height != width or mel_bins < height):
            raise ValueError(
                f"modality.stride {list(self.stride)}: tiles that overlap are squares, of at most modality.mel_bins "
                f"{mel_bins}; try modality.tile [16, 16]"
            )
        if height < 1 or mel_bins < 4 or self.stride == self.tile and mel_bins % height:
            nearest = max(1, round(mel_bins / max(height, 1))) * max(height, 1)
            raise ValueError(
                f"modality.mel_bins {mel_bins} is not a multiple of the height of modality.tile {height}; "
                f"nearest that is: {nearest}"
            )
        if not 1 <= width <= height:
            raise ValueError(
                f"modality.tile {height}×{width} (mel bins × frames) is wider than tall, which the native class cannot "
                f"express; the widest is {height}×{height}"
            )
        if not 0 < seconds < math.inf:
            raise ValueError(f"modality.seconds {seconds} is not above 0; try 10")
        if not 0 <= mixup < 1:
            raise ValueError(f"modality.mixup {mixup} is not between 0 and 1, the latter excluded; try 0.4")
        self.mel_bins = mel_bins
        self.extent = (mel_bins, self.frames(math.ceil((round(100 * seconds, 6) - width) / self.stride[1]) + 1))
        self.channels = 1
        self.learned_positions = positions == "learned"
        self.target, self.variance_floor = target, variance_floor
        self.check_target()
        self.roll, self.gain, self.stretch, self.frequency_scale = roll, gain, stretch, frequency_scale
        self.time_mask, self.frequency_mask, self.mixup = time_mask, frequency_mask, mixup
        self.mean, self.std = mean, std
        # The native kernel is square: of a tall tile it reaches beyond the tile's width, with weights of zero.
        self.native_frames = self.extent[1] + height - width

    def keep_frames(self, count: int) -> None:
        """Let the native class have so many frames, as a checkpoint had, where they make the same tiles."""
        if (count - self.tile[0]) // self.stride[1] + 1 == self.grid[1]:
            self.native_frames = count

    def frames(self, tiles: int) -> int:
        """Frames that so many tiles in a row take, at least one."""
        return (max(1, tiles) - 1) * self.stride[1] + self.tile[1]

    @property
    def window(self) -> int:
        """Samples of the full view: what fills all of its frames."""
        return samples(self.extent[1])

    def scaled(self, size: float) -> tuple[int, int]:
        """A smaller view is shorter; it has all frequencies."""
        return self.grid[0], max(1, round(self.grid[1] * size))

    def fit(self, rows, column: str) -> None:
        """Mean and deviation of the log-mel values of some rows, without padding, where the settings give none."""
        if self.mean is not None and self.std is not None:
            return
        total = torch.zeros(3, dtype=torch.float64)
        for i in np.linspace(0, len(rows) - 1, min(FITTED, len(rows))).astype(int):
            try:
                clip = self.read(rows[int(i)][column])
                view = padded(clip.window(max(0, clip.length - self.window) // 2, self.window), self.window)
            except BadSample:
                continue
            values = filterbank(view["data"][None], self.mel_bins)[0, : view["valid_frames"]].double()
            total += torch.stack([torch.tensor(values.numel()), values.sum(), values.square().sum()])
        if not total[0]:
            raise ValueError(f"none of {min(FITTED, len(rows))} rows tried of column {column!r} is readable as sound")
        mean = total[1] / total[0]
        std = (total[2] / total[0] - mean**2).clamp(min=0).sqrt()
        self.mean = self.mean if self.mean is not None else float(mean)
        # Nothing but silence has no deviation.
        self.std = self.std if self.std is not None else float(std) if std > 1e-3 else 1.0

    def processor(self):
        from transformers import ASTFeatureExtractor

        mean, std = self.statistics
        return ASTFeatureExtractor(
            num_mel_bins=self.mel_bins,
            max_length=self.native_frames,
            sampling_rate=RATE,
            mean=mean,
            std=std,
        )

    def load(self, folder: str) -> None:
        """Sizes are settings; the statistics are the processor's, and frames beyond the last tile."""
        from transformers import ASTFeatureExtractor

        processor = ASTFeatureExtractor.from_pretrained(folder)
        self.keep_frames(processor.max_length)
        self.mean, self.std = processor.mean, processor.std

    @property
    def statistics(self) -> tuple[float, float]:
        if self.mean is None or self.std is None:
            raise ValueError("modality.mean and modality.std are not known: give both, or compute them by `fit`")
        return self.mean, self.std

    def cell(self, value: Any) -> dict[str, Any]:
        """Also a wave `[samples]` or `[samples channels]` with its rate: `(wave, rate)`, or a dictionary of these.

        The dictionary is that of `datasets`, `{"array", "sampling_rate"}`.
        """
        if isinstance(value, dict) and "array" in value:
            value = value["array"], value.get("sampling_rate")
        if isinstance(value, (dict, bytes, bytearray, str, os.PathLike)):
            return super().cell(value)
        if not (isinstance(value, tuple) and len(value) == 2):
            raise ValueError("a sound is a file, or a wave with its rate: (wave, 16000)")
        return {"bytes": encoded(*value), "path": None}

    def read(self, value) -> Clip:
        """`{"bytes", "path"}` or a path -> a clip. No more than one window of it is decoded, now or later."""
        return Clip(bytes_or_path(value), self.window)

    def describe(self, cell) -> str:
        clip = self.read(cell)
        return f"{clip.length / RATE:.2f} s of sound, {clip.rate} Hz in the file"

    def view(self, sample: Clip, spec: ViewSpec, seed: int) -> dict[str, Tensor]:
        """`data [s]` the waveform, padded; `valid_frames` without padding; what to do on the device, if anything."""
        if spec.strength == "none":
            return padded(sample.window(0, self.window), self.window)  # the processor, too, takes the head
        # All views of a long file are of one window: two hours hold much that is no positive pair.
        start = int(uniform(seed, SALT) * (max(0, sample.length - self.window) + 1))
        wave = sample.window(start, self.window)
        random = generator(seed, spec.index, VIEW)
        room = samples(self.frames(self.scaled(spec.size)[1]))
        length = min(room, max(FRAME, round(len(wave) * random.uniform(*spec.scale))), len(wave))
        start = int(random.integers(0, len(wave) - length + 1))
        wave = np.roll(wave[start : start + length], round(random.uniform(-1, 1) * self.roll * length))
        wave = wave * np.float32(math.exp(random.uniform(-1, 1) * self.gain / 2))
        strong = spec.strength == "strong"
        speed, pitch = np.exp(random.uniform(-1, 1, 2) * np.log1p([self.stretch, self.frequency_scale]))
        masks = random.random(4) * strong * [self.time_mask, 1, self.frequency_mask, 1]
        return padded(wave, room) | {"warp": torch.tensor([speed, pitch, *masks], dtype=torch.float32)}

    def mixes(self, spec: ViewSpec) -> bool:
        return spec.strength == "strong" and self.mixup > 0

    def mix_in(self, made: dict[str, Tensor], other: Clip, spec: ViewSpec, seed: int) -> dict[str, Tensor]:
        random, data = generator(seed, spec.index, MIX), made["data"]
        share = random.random() * self.mixup
        start = int(random.integers(0, max(0, other.length - self.window) + 1))
        wave = other.window(start, self.window)
        start = int(random.integers(0, max(0, len(wave) - len(data)) + 1))
        background = padded(wave[start:], len(data))["data"]
        return made | {"data": (1 - share) ** 0.5 * data + share**0.5 * background}

    def parts(self, sample: Clip) -> Iterator[dict[str, Tensor]]:
        """Windows that follow each other; the last is moved back, to end where the sound ends."""
        for start in starts(sample.length, self.window):
            yield padded(sample.window(start, self.window), self.window)

    @torch.no_grad()
    def prepare(self, view: View) -> View:
        """Waveforms `[B s]` -> tiles. The order of operations is the native extractor's, so results are equal."""
        mean, std = self.statistics
        valid = view.valid_frames
        values = filterbank(view.data, self.mel_bins)
        if view.warp is not None:
            with full(values.device):
                values, valid = self.warp(values, valid, view.warp)
        values = values.mul_(before(valid, values)).sub_(mean).div_(std * 2)  # padded with 0 before it is normalised
        if view.warp is not None:
            values = self.blank(values, view.warp)
        made = view.replace(valid_frames=valid, warp=None, **self.cut(values.transpose(1, 2)[:, None]))
        # Tiles without padding, and at least the first of each band.
        columns = ((valid - self.tile[1]) // self.stride[1] + 1).clamp(min=1)
        return made.replace(ordinary=made.position[..., 1] < columns[:, None])

    @torch.no_grad()
    def shown(self, view: View, other: "Audio") -> View:
        """The same log-mel values under the other's statistics, cut or padded as the native extractor pads."""
        (mean, std), (its_mean, its_std) = self.statistics, other.statistics
        values = self.uncut(view).float() * (2 * std) + mean
        length = values.shape[-1]
        wanted = other.extent[1] if view.grid == self.grid else other.frames(round(length / other.stride[1]))
        values = F.pad(values, (0, max(0, wanted - length)))[..., :wanted]
        return View(seed=view.seed, **other.cut((values - its_mean) / (2 * its_std)))

    def check_shown(self, other: "Audio", pieces: bool) -> None:
        super().check_shown(other, pieces)
        if other.mel_bins != self.mel_bins:
            raise ValueError(f"it hears {other.mel_bins} mel bins, the student {self.mel_bins} (modality.mel_bins)")
        other.statistics  # noqa: B018  # refuses where they are not known

    def exhibit(self, view: View, seen: Seen | None = None) -> list[Exhibit]:
        """Spectrograms, low tones at the bottom; of a view that was not prepared yet the wave, too, without padding."""
        made = view if view.position is not None else self.prepare(view)
        shades = (self.assembled(made, seen)[:, 0].flip(1) * (2 / SHADES) + 1) / 2
        shades = shades.clamp(0, 1).cpu()
        if view.position is not None:
            return [Exhibit(picture=one.numpy()) for one in shades]
        ends = [samples(int(frames)) for frames in view.valid_frames]
        waves = [(wave[:end].cpu().numpy(), RATE) for wave, end in zip(view.data, ends, strict=True)]
        return [Exhibit(one.numpy(), wave) for one, wave in zip(shades, waves, strict=True)]

    def warp(self, values: Float[Tensor, "b f m"], valid: Tensor, warp: Float[Tensor, "b 6"]):
        """Change duration and pitch; the new values, and how many frames are valid."""
        speed, pitch = warp[:, :2].unbind(1)
        if self.stretch or self.frequency_scale:
            values = interpolated(values, speed, pitch)
            valid = (((valid - 1) / speed).floor().long() + 1).clamp(max=values.shape[1])
        return values, valid

    def blank(self, values: Float[Tensor, "b f m"], warp: Float[Tensor, "b 6"]) -> Float[Tensor, "b f m"]:
        """Blank frames and bins with the mean, which is 0 by now (SpecAugment, Park et al. 2019)."""
        long, begin, wide, low = warp[:, 2:, None].unbind(1)
        # Places in 0 to 1; the start is such that the mask lies within.
        time = torch.arange(values.shape[1], device=values.device) / values.shape[1] - begin * (1 - long)
        band = torch.arange(values.shape[2], device=values.device) / values.shape[2] - low * (1 - wide)
        hit = ((time >= 0) & (time < long))[:, :, None] | ((band >= 0) & (band < wide))[:, None, :]
        return values.masked_fill(hit, 0.0)


def encoded(wave: Any, rate: Any) -> bytes:
    """A wave as a file of the same values."""
    import soundfile

    wave = np.asarray(wave)
    if not isinstance(rate, (int, float, np.number)) or not float(rate).is_integer() or rate < 1:
        raise ValueError(f"the rate of a wave is its samples a second, not {rate!r}")
    if wave.ndim not in (1, 2) or wave.ndim == 2 and wave.shape[1] > max(64, wave.shape[0]):
        raise ValueError(f"a wave is an array [samples] or [samples channels], this one is {list(wave.shape)}")
    kinds = {"int16": "PCM_16", "int32": "PCM_32", "float32": "FLOAT", "float64": "FLOAT"}
    if wave.dtype.name not in kinds:
        raise ValueError(f"a wave of {wave.dtype}: give floats, int16 or int32")
    file = io.BytesIO()
    soundfile.write(file, wave, int(rate), format="WAV", subtype=kinds[wave.dtype.name])
    return file.getvalue()


def starts(length: int, window: int) -> list[int]:
    """Where the windows of a sound begin. The model card has the same line."""
    return [*range(0, length - window, window), max(0, length - window)]


def samples(frames: int) -> int:
    """Samples that give so many frames."""
    return (frames - 1) * HOP + FRAME


def padded(wave: np.ndarray, length: int) -> dict[str, Tensor]:
    wave = wave[:length]
    data = torch.empty(length)
    data[: len(wave)] = torch.from_numpy(wave)
    data[len(wave) :] = 0
    valid = 1 + (len(wave) - FRAME) // HOP
    return {"data": data, "valid_frames": torch.tensor(valid)}


def interpolated(values: Float[Tensor, "b f m"], speed: Float[Tensor, " b"], pitch: Float[Tensor, " b"]):
    """Values of each clip at frames `t · speed` and bins `k · pitch`, linear between neighbours, the last ones kept."""
    batch, frames, bins = values.shape
    time = torch.arange(frames, device=values.device) * speed[:, None]
    low = time.long().clamp(max=frames - 1)
    row = frames * torch.arange(batch, device=values.device)[:, None]
    flat = values.flatten(0, 1)  # whole rows are taken from it, which is several times faster than grid_sample
    values = torch.lerp(flat[row + low], flat[row + (low + 1).clamp(max=frames - 1)], (time - low)[..., None])
    bin = torch.arange(bins, device=values.device)
    place = (bin * pitch[:, None]).clamp(max=bins - 1)
    return values @ (1 - (bin[:, None] - place[:, None]).abs()).relu()


def before(valid: Tensor, values: Float[Tensor, "b f m"]) -> Bool[Tensor, "b f 1"]:
    """True for the first `valid` frames of each clip."""
    return (torch.arange(values.shape[1], device=values.device) < valid[:, None])[:, :, None]


@lru_cache(maxsize=8)
def tables(bins: int, device: torch.device):
    """The window and the mel bank `[257 bins]` on a device."""
    from torchaudio.compliance.kaldi import get_mel_banks

    bank, _ = get_mel_banks(bins, FFT, RATE, 20.0, 0.0, 100.0, -500.0, 1.0)  # 20 Hz to 8 kHz, no warping
    return torch.hann_window(FRAME, periodic=False, device=device), F.pad(bank, (0, 1)).T.contiguous().to(device)


def filterbank(wave: Float[Tensor, "b s"], bins: int) -> Float[Tensor, "b f bins"]:
    """Kaldi's log-mel filterbank of a batch, as `torchaudio.compliance.kaldi.fbank` makes it of a clip.

    The operations are Kaldi's in Kaldi's order, since near the floor another rounding shows. On a CPU a few seconds of
    frames at a time, which stay in its cache.
    """
    window, bank = tables(bins, wave.device)
    frames = wave.unfold(-1, FRAME, HOP)
    rows, block = frames.shape[:2]
    if wave.device.type == "cpu":
        rows, block = max(1, CACHED // block), min(CACHED, block)
    mel = wave.new_empty(*frames.shape[:2], bins)
    padded = mel.new_zeros(rows * block, FFT)
    for source, target in zip(frames.split(rows), mel.split(rows), strict=True):
        for part, into in zip(source.split(block, 1), target.split(block, 1), strict=True):
            x = (part - part.mean(-1, keepdim=True)).flatten()
            # Preemphasis. A frame's first sample takes the last of another; the window is 0 there.
            x[1:].sub_(0.97 * x[:-1])
            windowed = padded[: len(x) // FRAME]
            torch.mul(x.view(-1, FRAME), window, out=windowed[:, :FRAME])
            real, imaginary = torch.view_as_real(torch.fft.rfft(windowed)).unbind(-1)
            with full(wave.device):
                torch.mm(real.square().addcmul_(imaginary, imaginary), bank, out=into.view(-1, bins))
    return mel.clamp_(min=FLOOR).log_()
