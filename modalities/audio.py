"""Sound: windows of files in the workers, log-mel filterbanks cut into tiles on the device."""

import math
import os
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from triptych.modalities.audio_file import RATE, Clip, encoded
from triptych.modalities.audio_windows import Recordings
from triptych.modalities.base import BadSample
from triptych.modalities.domains import Each, NotNegative, Part, Positive, Probability, Within
from triptych.modalities.exhibit import Exhibit, Seen
from triptych.modalities.filterbank import Framing, before, filterbank, framing, interpolated
from triptych.modalities.hashing import generator
from triptych.modalities.precision import full
from triptych.modalities.sizes import lasting, listen_to_sounds, sound_sizes
from triptych.modalities.survey import Survey
from triptych.modalities.view import View, ViewSpec

FITTED = 256  # windows from which the statistics are taken
VIEW, MIX = 1, 2  # what a view's random numbers are for
SHADES = 2.5  # deviations on either side of the mean that are told apart where a spectrogram is shown


class Audio(Recordings):
    """Sound of any kind that libsndfile reads, mixed down, at one rate, as tiles of a log-mel spectrogram.

    The front end is `ASTFeatureExtractor`'s. A recording that is longer than the window is cut into windows: every
    second of it is in one of them, and the last is moved back to end where the recording ends. Training has each as a
    sample; in evaluation they follow each other, and the recording's vector is the mean of theirs. A shorter one is
    padded as the extractor does; padded tiles are attended as the native class does, but are never targets.

    Args:
        seconds: length of the window, rounded up to whole tiles; the native extractor makes 100 frames a second.
        mel_bins: mel bins from 20 Hz to half of the rate, the only range that the native extractor has; a multiple of
            the tile's height, or with a stride at least that.
        tile: mel bins and frames of a tile; at least as tall as wide. Full-height columns (128, 4) learn short sounds
            far sooner than squares.
        stride: mel bins and frames from one tile to the next; smaller than the tile's, tiles overlap (the published
            ASTs': 10, 10). Errors of masked objectives then count only values that no visible tile holds; the others
            could be copied. Default: the tile's.
        rate: samples a second, to which all sounds are resampled.
        hop: seconds from one window of a recording to the next in training, at most the window. Default: the window.
        silence: training leaves out windows whose level (RMS) is more than this many dB below that of the loudest of
            their recording, and those that are nothing but zeros; 40 leaves out pauses. Default: none.
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
    segments = True
    # Also those that libsndfile cannot decode, so that they are counted and named, not passed over in silence.
    sizes = ("seconds", "hop", "silence", "rate", "mel_bins", "tile", "stride")
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
        rate: Annotated[int, Within("[1000, 384000]")] = RATE,
        hop: Positive | None = None,
        silence: Positive | None = None,
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
        self.rate, self.mel_bins, self.silence = rate, mel_bins, silence
        wanted = round(rate / self.framing.hop * seconds, 6)  # frames
        self.extent = (mel_bins, self.frames(math.ceil((wanted - width) / self.stride[1]) + 1))
        self.channels = 1
        self.learned_positions = positions == "learned"
        self.target, self.variance_floor = target, variance_floor
        self.check_target()
        self.roll, self.gain, self.stretch, self.frequency_scale = roll, gain, stretch, frequency_scale
        self.time_mask, self.frequency_mask, self.mixup = time_mask, frequency_mask, mixup
        self.mean, self.std, self.left_open = mean, std, (mean is None, std is None)
        self.hop = self.window if hop is None else max(1, round(hop * rate))
        if self.hop > self.window:
            raise ValueError(
                f"modality.hop {hop:g} is longer than the window, {self.window / rate:.3f} seconds: what lies between "
                "two would never be heard; give at most that, or leave modality.hop out"
            )
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
    def framing(self) -> Framing:
        return framing(self.rate)

    @property
    def window(self) -> int:
        """Samples of the full view: what fills all of its frames."""
        return self.framing.samples(self.extent[1])

    @property
    def seconds(self) -> float:
        """Length of the full view, at which all of its frames begin."""
        return self.extent[1] * self.framing.hop / self.rate

    def scaled(self, size: float) -> tuple[int, int]:
        """A smaller view is shorter; it has all frequencies."""
        return self.grid[0], max(1, round(self.grid[1] * size))

    def fit(self, rows, column: str) -> None:
        """Mean and deviation of the log-mel values of some rows, without padding, where the settings give none."""
        if self.mean is not None and self.std is not None:
            return
        total = torch.zeros(3, dtype=torch.float64)
        tried = np.linspace(0, len(rows) - 1, min(FITTED, len(rows))).astype(int)
        for i in tried:
            try:
                clip = self.read(rows[int(i)][column])
                for start in self.spread(clip.length, FITTED // len(tried)):
                    view = self.padded(clip.window(start, self.window), self.window)
                    values = filterbank(view["data"][None], self.mel_bins, self.rate)
                    values = values[0, : view["valid_frames"]].double()
                    total += torch.stack([torch.tensor(values.numel()), values.sum(), values.square().sum()])
            except BadSample:
                continue
        if not total[0]:
            raise ValueError(f"none of {min(FITTED, len(rows))} rows tried of column {column!r} is readable as sound")
        mean = total[1] / total[0]
        std = (total[2] / total[0] - mean**2).clamp(min=0).sqrt()
        self.mean = self.mean if self.mean is not None else float(mean)
        # Nothing but silence has no deviation.
        self.std = self.std if self.std is not None else float(std) if std > 1e-3 else 1.0

    def survey(self, rows, column: str) -> Survey | None:
        return listen_to_sounds(rows, column, self.rate)

    def sized(self, survey: Survey, pieces: float, given: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
        return sound_sizes(survey, pieces, given)

    def samples_of(self, survey: Survey) -> float:
        return survey.rows * max(1.0, survey.measures["mean"] * self.rate / self.hop)

    def trained(self) -> str:
        tile = "×".join(map(str, self.tile))
        return f"windows of {lasting(self.seconds)} at {self.rate:,} Hz, {math.prod(self.grid)} pieces of {tile}"

    def processor(self):
        from transformers import ASTFeatureExtractor

        mean, std = self.statistics
        return ASTFeatureExtractor(
            num_mel_bins=self.mel_bins,
            max_length=self.native_frames,
            sampling_rate=self.rate,
            mean=mean,
            std=std,
        )

    def load(self, folder: str) -> None:
        """Sizes are settings; the statistics are the processor's, where the settings give none, and frames beyond the
        last tile.
        """
        from transformers import ASTFeatureExtractor

        processor = ASTFeatureExtractor.from_pretrained(folder)
        self.keep_frames(processor.max_length)
        for name, is_open in zip(("mean", "std"), self.left_open, strict=True):
            if is_open:
                setattr(self, name, getattr(processor, name))

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

    def describe(self, cell) -> str:
        clip = self.read(cell)
        return f"{clip.length / self.rate:.2f} s of sound, {clip.rate} Hz in the file"

    def view(self, sample: Clip, spec: ViewSpec, seed: int) -> dict[str, Tensor]:
        """`data [s]` the waveform, padded; `valid_frames` without padding; what to do on the device, if anything."""
        wave = sample.window(0, self.window)  # the processor, too, takes the head
        if spec.strength == "none":
            return self.padded(wave, self.window)
        random = generator(seed, spec.index, VIEW)
        room = self.framing.samples(self.frames(self.scaled(spec.size)[1]))
        length = min(room, max(self.framing.frame, round(len(wave) * random.uniform(*spec.scale))), len(wave))
        start = int(random.integers(0, len(wave) - length + 1))
        wave = np.roll(wave[start : start + length], round(random.uniform(-1, 1) * self.roll * length))
        wave = wave * np.float32(math.exp(random.uniform(-1, 1) * self.gain / 2))
        strong = spec.strength == "strong"
        speed, pitch = np.exp(random.uniform(-1, 1, 2) * np.log1p([self.stretch, self.frequency_scale]))
        masks = random.random(4) * strong * [self.time_mask, 1, self.frequency_mask, 1]
        return self.padded(wave, room) | {"warp": torch.tensor([speed, pitch, *masks], dtype=torch.float32)}

    def mixes(self, spec: ViewSpec) -> bool:
        return spec.strength == "strong" and self.mixup > 0

    def mix_in(self, made: dict[str, Tensor], other: Clip, spec: ViewSpec, seed: int) -> dict[str, Tensor]:
        random, data = generator(seed, spec.index, MIX), made["data"]
        share = random.random() * self.mixup
        wave = other.window(0, self.window)
        start = int(random.integers(0, max(0, len(wave) - len(data)) + 1))
        background = self.padded(wave[start:], len(data))["data"]
        return made | {"data": (1 - share) ** 0.5 * data + share**0.5 * background}

    def padded(self, wave: np.ndarray, length: int) -> dict[str, Tensor]:
        """`data` of that length and `valid_frames`, those without padding."""
        wave = wave[:length]
        data = torch.empty(length)
        data[: len(wave)] = torch.from_numpy(wave)
        data[len(wave) :] = 0
        return {"data": data, "valid_frames": torch.tensor(self.framing.frames(len(wave)))}

    @torch.no_grad()
    def prepare(self, view: View) -> View:
        """Waveforms `[B s]` -> tiles. The order of operations is the native extractor's, so results are equal."""
        mean, std = self.statistics
        valid = view.valid_frames
        values = filterbank(view.data, self.mel_bins, self.rate)
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

    def plain(self, view: View) -> Float[Tensor, "b v"]:
        """Mean and deviation over time of each log-mel bin, without padding."""
        values = self.uncut(view).float()[:, 0].mT
        valid = before(view.valid_frames.clamp(min=1), values)
        count = valid.sum(1)
        mean = (values * valid).sum(1) / count
        deviation = ((values - mean[:, None]).square() * valid).sum(1) / count
        return torch.cat([mean, deviation.sqrt()], 1)

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
        if other.rate != self.rate:
            raise ValueError(f"it hears {other.rate:,} samples a second, the student {self.rate:,} (modality.rate)")
        other.statistics  # noqa: B018  # refuses where they are not known

    def exhibit(self, view: View, seen: Seen | None = None) -> list[Exhibit]:
        """Spectrograms, low tones at the bottom, padding infinite; of a view that was not prepared the wave, too."""
        made = view if view.position is not None else self.prepare(view)
        shades = (self.assembled(made, seen)[:, 0].flip(1) * (2 / SHADES) + 1) / 2
        padding = torch.arange(shades.shape[-1], device=shades.device) >= made.valid_frames[:, None, None]
        shades = torch.where(padding, torch.inf, shades.clamp(0, 1)).cpu()
        if view.position is not None:
            return [Exhibit(picture=one.numpy()) for one in shades]
        ends = [self.framing.samples(int(frames)) for frames in view.valid_frames]
        waves = [(wave[:end].cpu().numpy(), self.rate) for wave, end in zip(view.data, ends, strict=True)]
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
