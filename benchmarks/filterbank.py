"""Seconds of filterbank: ours, a batch at a time, against `ASTFeatureExtractor`; 10 s clips, one thread, alternating.

    python benchmarks/filterbank.py

Ours includes normalisation, cutting into tiles and laying clips out as a batch; theirs stacks its arrays as a tensor.
"""

import statistics
import time

import numpy as np
import torch
from jsonargparse import auto_cli

from triptych.modalities.audio import Audio
from triptych.modalities.audio_file import RATE


def main(clips: int = 16, rounds: int = 15, seconds: float = 10.0):
    """Time both and print milliseconds a clip.

    Args:
        clips: clips in a batch.
        rounds: how often each is timed, taking turns.
        seconds: length of a clip.
    """
    torch.set_num_threads(1)
    modality = Audio(seconds=seconds, mean=-4.2677393, std=4.5689974)
    random = np.random.default_rng(0)
    waves = [0.1 * random.standard_normal(int(seconds * RATE), dtype=np.float32) for _ in range(clips)]
    extractor = modality.processor()

    def ours():
        samples = [modality.padded(wave, modality.window) for wave in waves]
        return modality.prepare(modality.collate(samples, torch.arange(clips))).data

    def theirs():
        return extractor(waves, sampling_rate=RATE, return_tensors="pt")["input_values"]

    times = {ours: [], theirs: []}
    for _ in range(rounds + 1):
        for run, spent in times.items():
            start = time.perf_counter()
            run()
            spent.append((time.perf_counter() - start) / clips * 1000)
    median = {run.__name__: statistics.median(spent[1:]) for run, spent in times.items()}  # the first warms up
    low, high = (f(t / o for o, t in zip(times[ours][1:], times[theirs][1:], strict=True)) for f in (min, max))
    print(f"{clips} clips of {seconds:g} s, one thread, median of {rounds} rounds")
    print(f"| front end | ms a clip |\n|---|---|\n| ASTFeatureExtractor | {median['theirs']:.2f} |")
    print(f"| ours, batched | {median['ours']:.2f} |")
    print(f"ratio {median['theirs'] / median['ours']:.2f} (rounds: {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
