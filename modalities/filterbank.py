"""Log-mel filterbanks of a batch of waves on a device: Kaldi's, as `ASTFeatureExtractor` makes them, at any rate."""

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from triptych.modalities.precision import full

LOWEST = 20.0  # Hz; the highest is half of the rate. The native extractor has no other range
FLOOR = torch.finfo(torch.float32).eps  # of a mel energy, before the logarithm
CACHED = 512  # frames whose intermediate results fit a core's cache


class Framing(NamedTuple):
    """Samples of a frame (25 ms), from one frame to the next (10 ms), and of its Fourier transform."""

    frame: int
    hop: int
    fft: int

    def samples(self, frames: int) -> int:
        """Samples that give so many frames."""
        return (frames - 1) * self.hop + self.frame

    def frames(self, samples: int) -> int:
        """Whole frames in so many samples."""
        return 1 + (samples - self.frame) // self.hop


@lru_cache
def framing(rate: int) -> Framing:
    """At so many samples a second; rounded as Kaldi does."""
    frame, hop = (int(rate * milliseconds * 0.001) for milliseconds in (25.0, 10.0))
    return Framing(frame, hop, 2 ** (frame - 1).bit_length())


@lru_cache(maxsize=8)
def tables(bins: int, rate: int, device: torch.device):
    """The window and the mel bank `[fft / 2 + 1, bins]` on a device."""
    from torchaudio.compliance.kaldi import get_mel_banks

    frame, _, fft = framing(rate)
    bank, _ = get_mel_banks(bins, fft, rate, LOWEST, 0.0, 100.0, -500.0, 1.0)  # no warping
    return torch.hann_window(frame, periodic=False, device=device), F.pad(bank, (0, 1)).T.contiguous().to(device)


def filterbank(wave: Float[Tensor, "b s"], bins: int, rate: int = 16_000) -> Float[Tensor, "b f bins"]:
    """Kaldi's log-mel filterbank of a batch, as `torchaudio.compliance.kaldi.fbank` makes it of a clip.

    The operations are Kaldi's in Kaldi's order, since near the floor another rounding shows. On a CPU a few seconds of
    frames at a time, which stay in its cache.
    """
    frame, hop, fft = framing(rate)
    window, bank = tables(bins, rate, wave.device)
    frames = wave.unfold(-1, frame, hop)
    rows, block = frames.shape[:2]
    if wave.device.type == "cpu":
        rows, block = max(1, CACHED // block), min(CACHED, block)
    mel = wave.new_empty(*frames.shape[:2], bins)
    padded = mel.new_zeros(rows * block, fft)
    for source, target in zip(frames.split(rows), mel.split(rows), strict=True):
        for part, into in zip(source.split(block, 1), target.split(block, 1), strict=True):
            x = (part - part.mean(-1, keepdim=True)).flatten()
            # Preemphasis. A frame's first sample takes the last of another; the window is 0 there.
            x[1:].sub_(0.97 * x[:-1])
            windowed = padded[: len(x) // frame]
            torch.mul(x.view(-1, frame), window, out=windowed[:, :frame])
            real, imaginary = torch.view_as_real(torch.fft.rfft(windowed)).unbind(-1)
            with full(wave.device):
                torch.mm(real.square().addcmul_(imaginary, imaginary), bank, out=into.view(-1, bins))
    return mel.clamp_(min=FLOOR).log_()


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
