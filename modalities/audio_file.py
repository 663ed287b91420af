"""Sound files of any kind that libsndfile reads: windows of them, decoded alone, mono, at one rate."""

import io
import math
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from triptych.modalities.base import BadSample, Span
from triptych.modalities.filterbank import framing

RATE = 16_000  # samples a second of all that follows decoding, where nothing else is said
REACH = 6.1  # of a resampling filter, to each side, in samples at the lower of the two rates
LOUDEST = 16.0  # largest sane amplitude; full scale is 1, floats of a mix may pass it by some dB


class Clip:
    """One file whose header was read. Windows are decoded alone; a clip of at most `window` samples stays decoded.

    Args:
        source: a file's bytes, a buffer of them, or its path.
        window: samples that are wanted at once.
        rate: samples a second that are wanted, whatever the file has.
        span: seconds of the file where the clip begins and ends: all of it is as if the rest had been cut off.
        start: the clip is the window that begins at this sample alone, cut from the whole.

    Raises `BadSample`, also later, when a window turns out not to be what the header promised.
    """

    def __init__(
        self, source: bytes | str, window: int, rate: int = RATE, span: Span | None = None, start: int | None = None
    ):
        self.source, self.wave, self.latest, self.wanted = source, None, ((0, 0), None), rate
        try:
            file = self._open()
        except Exception as error:  # libsndfile's, and Python's when a path cannot be opened
            raise BadSample(reason(source, error)) from error
        with file:
            self.rate, self.frames, self.first = file.samplerate, file.frames, 0
            if not 1_000 <= self.rate <= 1_000_000:
                raise BadSample(f"a rate of {self.rate} Hz in the header")
            if span is not None:
                self._narrow(*span)
            # Nearly always exact; the filters of a rate like 44,101 Hz would take gigabytes.
            self.ratio = Fraction(rate, self.rate).limit_denominator(1000)
            self.length = math.ceil(self.frames * self.ratio)
            self._check(self.length)
            if self.length <= window:
                self.wave = self._decode(file, 0, self.frames)
            elif start is not None:
                self.wave = self._window(file, start, window)
            if self.wave is not None:
                self.length = len(self.wave)

    def window(self, start: int, length: int) -> np.ndarray:
        """Samples at the wanted rate from `start` on, `length` or what there is: those of the whole, cut there."""
        if self.wave is not None:
            return self.wave[start : start + length]
        if self.latest[0] != (start, length):  # several views ask for the same window
            with self._open() as file:
                self.latest = (start, length), self._window(file, start, length)
        return self.latest[1]

    def windows(self, starts: list[int], length: int) -> Iterator[np.ndarray]:
        """The same of several, in rising order, from a file that is opened once: MP3 then goes on from where it is."""
        if self.wave is not None:
            yield from (self.wave[start : start + length] for start in starts)
            return
        with self._open() as file:
            yield from (self._window(file, start, length) for start in starts)

    def _window(self, file, start: int, length: int) -> np.ndarray:
        # With the neighbours that the resampling filter reaches, from where its phase is that of the file's start.
        up, down = self.ratio.numerator, self.ratio.denominator
        reach = math.ceil(REACH / min(up, down)) + 1
        block = max(0, start // up - reach)
        end = min(self.frames, (math.ceil((start + length) / up) + reach) * down)
        return self._decode(file, block * down, end - block * down)[start - block * up :][:length]

    def _narrow(self, start: float, end: float) -> None:
        """To some seconds of the file. What lies beyond its end is not there; nothing but that is refused."""
        first, last = round(start * self.rate), min(round(end * self.rate), self.frames)
        if first >= self.frames:
            raise BadSample(
                f"its seconds {start:g} to {end:g} are beyond its end ({self.frames / self.rate:g} s); times are "
                "seconds from the start of the file"
            )
        self.first, self.frames = first, last - first

    def _check(self, samples: int) -> None:
        if samples < (least := framing(self.wanted).frame):
            raise BadSample(
                f"{samples} samples at {self.wanted:,} Hz; the least length is {least}, one frame of the filterbank"
            )

    def _open(self):
        import soundfile

        raw = opened(self.source)
        begin = after_tags(raw)
        if not begin and isinstance(self.source, str):
            raw.close()  # libsndfile reads a file faster by itself
            return soundfile.SoundFile(self.source)
        return soundfile.SoundFile(Rest(raw, begin) if begin else raw)

    def _decode(self, file, begin: int, count: int) -> np.ndarray:
        try:
            if file.tell() != self.first + begin:  # a file that was read before stands elsewhere
                file.seek(self.first + begin)
            wave = file.read(count, dtype="float32", always_2d=True)
        except Exception as error:
            raise BadSample(f"cannot be decoded at {begin / self.rate:.1f} s of {self._promise()}: {error}") from error
        if len(wave) < 0.9 * count:  # MP3's own count of samples may be a frame or two off
            raise BadSample(f"ends {len(wave) / self.rate:.1f} s after {begin / self.rate:.1f} s, of {self._promise()}")
        if not np.isfinite(wave).all():
            raise BadSample("samples that are not finite")
        if np.abs(wave).max() > LOUDEST:
            raise BadSample(f"samples up to {np.abs(wave).max():.3g}, where full scale is 1: scale the file")
        channels = wave.shape[1]
        wave = torch.from_numpy(wave) @ torch.full((channels,), 1 / channels)  # the mean, several times faster
        if self.ratio != 1:
            wave = resampler(self.ratio)(wave)
        self._check(len(wave))
        return wave.numpy()

    def _promise(self) -> str:
        return f"the {self.frames / self.rate:.1f} s that its header promises"


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


@lru_cache(maxsize=8)
def resampler(ratio: Fraction):
    from torchaudio.transforms import Resample

    return Resample(ratio.denominator, ratio.numerator)


def opened(source):
    """A file object of bytes, of a buffer of Arrow's, which is not copied, or of a path."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if hasattr(source, "to_pybytes"):
        import pyarrow

        return pyarrow.BufferReader(source)
    return open(source, "rb")


def after_tags(file) -> int:
    """Where the sound of a file begins: past ID3v2 tags at its head, whose cover pictures libsndfile does not skip."""
    begin = 0
    while True:
        file.seek(begin)
        head = file.read(10)
        if len(head) < 10 or head[:3] != b"ID3" or max(head[6:]) > 127:
            break
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        begin += 10 + size + (10 if head[5] & 0x10 else 0)
    if begin:  # some writers leave more zeros behind a tag than it says
        file.seek(begin)
        begin += len(block := file.read(2**16)) - len(block.lstrip(b"\0"))
    file.seek(0)
    return begin


class Rest(io.RawIOBase):
    """A file from some byte on, as if it began there."""

    def __init__(self, file, begin: int):
        self.file, self.begin = file, begin
        file.seek(begin)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self.file.readinto(buffer)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.file.seek(offset + self.begin if whence == io.SEEK_SET else offset, whence)
        return self.tell()

    def tell(self) -> int:
        return self.file.tell() - self.begin

    def close(self) -> None:
        self.file.close()
        super().close()


# First bytes, where they start, what they say. All of these libsndfile cannot decode.
KINDS = (
    (b"ftyp", 4, "MPEG-4 (AAC or ALAC)"),
    (b"\x1a\x45\xdf\xa3", 0, "WebM or Matroska"),
    (b"\x30\x26\xb2\x75", 0, "Windows Media (WMA)"),
    (b"\xff\xf1", 0, "AAC"),
    (b"\xff\xf9", 0, "AAC"),
    (b"#!AMR", 0, "AMR"),
    (b"MAC ", 0, "Monkey's Audio"),
    (b"wvpk", 0, "WavPack"),
    (b"\x0b\x77", 0, "AC-3"),
    (b"OggS", 0, "Ogg, of a codec other than Vorbis, Opus and FLAC"),
)


def reason(source: bytes | str, error: Exception) -> str:
    """Why a file could not be opened."""
    try:
        with opened(source) as file:
            file.seek(after_tags(file))
            head = file.read(64)
    except OSError as problem:
        return f"no such file: {source}" if isinstance(problem, FileNotFoundError) else f"not readable: {problem}"
    if not head:
        return "an empty file"
    for magic, start, kind in KINDS:
        if head[start:].startswith(magic):
            return f"{kind}: no decoder for it here (libsndfile has none); convert the file, to FLAC for instance"
    return f"not readable as sound: {str(error).rpartition(': ')[2]}"
