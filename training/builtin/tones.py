"""Synthesised notes: eight timbres, each at any pitch, in noise. To hear is the spectrum's shape, not its place."""

import io

import numpy as np

RATE = 16_000
SAMPLES = RATE  # one second
CYCLE = 2048  # samples of one period's table
HARMONICS = 40
TIMBRES = ("flute", "clarinet", "oboe", "violin", "brass", "organ", "guitar", "bell")


def tones(train: int = 2400, test: int = 600):
    """A `DatasetDict` of `audio` (wav bytes) and `label` (timbre), the same on every call.

    Args:
        train: notes of the training split.
        test: notes of the test split.
    """
    from datasets import DatasetDict

    return DatasetDict({"train": split(train, 1), "test": split(test, 2)})


def split(count: int, seed: int):
    import pyarrow
    import soundfile
    from datasets import Audio, ClassLabel, Dataset, DatasetInfo, Features

    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(count) % len(TIMBRES))
    audio = []
    for label in labels:
        buffer = io.BytesIO()
        soundfile.write(buffer, note(label, random), RATE, format="WAV", subtype="PCM_16")
        audio.append({"bytes": buffer.getvalue(), "path": None})
    features = Features({"audio": Audio(decode=False), "label": ClassLabel(names=list(TIMBRES))})
    # Of a table, the bytes are taken as they are; encoding examples would ask for torchcodec.
    table = pyarrow.table({"audio": audio, "label": labels}, schema=features.arrow_schema)
    return Dataset(table, DatasetInfo(features=features))


def note(timbre: int, random: np.random.Generator) -> np.ndarray:
    """One note: harmonics of a random pitch, each a little off its timbre's strength, an envelope, and noise."""
    time = np.arange(SAMPLES, dtype=np.float32) / RATE
    pitch = 110 * 2 ** random.uniform(0, 2.5)
    strength = spectrum(timbre) * np.exp(0.25 * random.standard_normal(HARMONICS))
    strength[(np.arange(HARMONICS) + 1) * pitch > 0.45 * RATE] = 0
    phase = np.exp(2j * np.pi * random.random(HARMONICS))
    table = np.fft.irfft(np.concatenate([[0], strength * phase]), CYCLE).astype(np.float32)
    rate, depth = random.uniform(4, 7), random.uniform(0, 0.006)
    turns = pitch * (time + depth / (2 * np.pi * rate) * np.sin(2 * np.pi * rate * time))
    wave = table[(turns * CYCLE).astype(np.int64) % CYCLE] * envelope(timbre, time, random)
    wave /= np.sqrt(np.square(wave).mean()) + 1e-9
    wave += 10 ** random.uniform(-2.0, -0.5) * random.standard_normal(SAMPLES, dtype=np.float32)
    return 0.9 * 10 ** random.uniform(-1.0, 0.0) * wave / np.abs(wave).max()


def spectrum(timbre: int) -> np.ndarray:
    """Strength of each harmonic."""
    k = np.arange(1, HARMONICS + 1)
    return (
        k**-2.5,  # flute
        np.where(k % 2, k**-1.0, 0.05 * k**-1.0),  # clarinet: odd ones
        k**-0.5 * np.exp(-(((k - 4) / 3) ** 2)) + 0.1 / k,  # oboe: the fourth stands out
        k**-1.0,  # violin
        np.minimum(1, k / 5) * np.exp(-k / 6),  # brass
        np.where((k & (k - 1)) == 0, 0.9 ** np.log2(k), 0.02),  # organ: octaves
        k**-1.3 * np.abs(np.sin(np.pi * k / 5.2)),  # guitar: plucked at a fifth of the string
        np.where(k % 3 == 1, k**-0.7, 0.1 * k**-0.7),  # bell
    )[timbre]


def envelope(timbre: int, time: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Loudness: plucked and struck notes decay, the others are held; each starts at another moment."""
    start, attack, decay = random.uniform(0, 0.3), 0.01 * 10 ** random.uniform(0, 1), random.uniform(0.15, 0.6)
    since = np.maximum(time - start, 0)
    loud = 1 - np.exp(-since / attack)
    if TIMBRES[timbre] in ("guitar", "bell"):
        return loud * np.exp(-since / decay)
    return loud * np.clip((random.uniform(0.5, 1.0) - since) / 0.05, 0, 1)
