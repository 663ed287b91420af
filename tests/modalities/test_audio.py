"""Sound: the front end is the native extractor's, views depend on the seed alone."""

import math

import numpy as np
import pytest
import torch
from einops import rearrange
from scipy import stats
from support import encoded, tone

from triptych.encoders.native import make
from triptych.modalities import EVALUATION, ViewSpec
from triptych.modalities.audio import Audio, filterbank, interpolated
from triptych.modalities.audio_file import RATE
from triptych.training.builtin.tones import split

STATISTICS = {"mean": -4.2677393, "std": 4.5689974}
random = np.random.default_rng(0)


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(count)


def cell(wave: np.ndarray) -> dict:
    return {"bytes": encoded(wave, subtype="FLOAT"), "path": None}


def build(**settings) -> Audio:
    return Audio(**(STATISTICS | settings))


def prepared(modality, sources, view=EVALUATION, seeds=None):
    seeds = list(range(len(sources))) if seeds is None else seeds
    read = [modality.read({"bytes": s, "path": None} if isinstance(s, bytes) else s) for s in sources]
    samples = [modality.view(clip, view, seed) for clip, seed in zip(read, seeds, strict=True)]
    return modality.prepare(modality.collate(samples, torch.tensor(seeds)))


def spectrogram(modality, view):
    """Tiles -> `[B frames bins]`, as the native extractor lays it out."""
    (bands, _), (height, width) = modality.grid, modality.tile
    return rearrange(view.data, "b (y x) (h w) -> b (x w) (y h)", y=bands, h=height, w=width)


LENGTHS = [400, 401, 559, 560, 800, 3199, 3200, 8000, 12345, 15999, 16000, 16240]
WAVES = {
    "noise": lambda n: 0.1 * random.standard_normal(n),
    "tone": lambda n: tone(n / RATE + 1)[:n],
    "silence": lambda n: np.zeros(n),
    "offset": lambda n: 0.4 + 1e-3 * random.standard_normal(n),
    "faint": lambda n: 1e-5 * random.standard_normal(n),
}


@pytest.mark.parametrize("kind", WAVES)
def test_front_end_equals_native(kind):
    from transformers import ASTFeatureExtractor

    native = ASTFeatureExtractor(max_length=100)
    modality = build(seconds=1.0, tile=(128, 4))
    waves = [WAVES[kind](n).astype(np.float32) for n in LENGTHS]
    ours = spectrogram(modality, prepared(modality, [encoded(w, subtype="FLOAT") for w in waves]))
    theirs = native(waves, sampling_rate=RATE, return_tensors="pt")["input_values"]
    for n, a, b in zip(LENGTHS, ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-4, n


@pytest.mark.parametrize("rate, bins", [(8_000, 64), (22_050, 64), (32_000, 128), (44_100, 128)])
def test_front_end_equals_native_at_any_rate(rate, bins, tmp_path):
    """Frames, hops and the Fourier transform are Kaldi's there; what the file has is resampled as the card does it."""
    from torchaudio.functional import resample
    from transformers import AutoFeatureExtractor

    modality = build(seconds=0.5, mel_bins=bins, tile=(bins, 4), rate=rate)
    modality.save(str(tmp_path))
    native = AutoFeatureExtractor.from_pretrained(tmp_path)
    waves = [0.1 * random.standard_normal(n).astype(np.float32) for n in (rate // 4, rate // 2, rate)]
    files = [encoded(w, r, subtype="FLOAT") for w, r in zip(waves, (rate, rate, 48_000), strict=True)]
    waves[2] = resample(torch.from_numpy(waves[2]), 48_000, rate).numpy()
    ours = spectrogram(modality, prepared(modality, files))
    theirs = native(waves, sampling_rate=rate, return_tensors="pt")["input_values"][:, : ours.shape[1]]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert native.sampling_rate == rate and abs(modality.seconds - 0.5) < 0.03


@pytest.mark.parametrize("bins", [64, 128])
def test_filterbank_equals_kaldi_at_any_batch(bins):
    from torchaudio.compliance.kaldi import fbank

    wave = torch.from_numpy(0.1 * random.standard_normal((3, 7 * RATE))).float()
    expected = torch.stack([fbank(w[None], window_type="hanning", num_mel_bins=bins) for w in wave])
    torch.testing.assert_close(filterbank(wave, bins), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(filterbank(wave[1:2], bins), expected[1:2], atol=1e-4, rtol=0)


@pytest.mark.parametrize("tile", [(16, 16), (128, 4), (32, 8)])
def test_evaluation_view_is_the_saved_processors_output(tile, tmp_path):
    from transformers import AutoFeatureExtractor

    modality = build(seconds=1.2, tile=tile, mean=-3.3, std=2.2)
    modality.save(str(tmp_path))
    native = AutoFeatureExtractor.from_pretrained(tmp_path)
    waves = [tone(s) + 0.01 * random.standard_normal(int(s * RATE)).astype(np.float32) for s in (0.1, 1.0, 1.2)]
    ours = spectrogram(modality, prepared(modality, [encoded(w, subtype="FLOAT") for w in waves]))
    theirs = native(waves, sampling_rate=RATE, return_tensors="pt")["input_values"]
    frames = modality.extent[1]
    assert theirs.shape[1] == frames + tile[0] - tile[1]
    torch.testing.assert_close(ours, theirs[:, :frames], atol=1e-4, rtol=0)

    other = Audio(seconds=1.2, tile=tile)
    other.load(str(tmp_path))
    assert (other.mean, other.std) == (-3.3, 2.2)


def test_window_is_whole_tiles():
    assert Audio(10.0).extent == (128, 1008)
    assert Audio(10.24).extent == (128, 1024)
    assert Audio(1.0, tile=(128, 4)).extent == (128, 100)
    assert Audio(0.07, tile=(128, 7)).extent == (128, 7)
    with pytest.raises(ValueError, match="nearest that is: 128"):
        Audio(mel_bins=130)
    with pytest.raises(ValueError, match="wider than tall"):
        Audio(tile=(16, 32))


def test_tiles_lie_frequency_first_and_padding_is_no_target():
    modality = build(seconds=1.0, tile=(32, 10))
    view = prepared(modality, [encoded(tone(0.5)), encoded(tone(0.05)), encoded(tone(1.2))])
    assert view.data.shape == (3, 40, 320)
    assert view.position[0, :11].tolist() == [[0, i] for i in range(10)] + [[1, 0]]
    assert view.valid_frames.tolist() == [48, 3, 100]
    hideable = modality.hideable(view).view(3, 4, 10)
    assert hideable.sum(-1).tolist() == [[4] * 4, [1] * 4, [10] * 4]
    # Padding is zero before normalising: louder than silence, as the native extractor has it.
    padding = (0 - STATISTICS["mean"]) / (2 * STATISTICS["std"])
    torch.testing.assert_close(spectrogram(modality, view)[0, 48:], torch.full((52, 128), padding))


def test_statistics_are_of_the_rows_without_padding():
    rows = split(24, seed=3)
    modality = Audio(seconds=2.0, tile=(128, 4))
    with pytest.raises(ValueError, match="modality.mean"):
        modality.processor()
    modality.fit(rows, "audio")
    view = prepared(modality, [cell["bytes"] for cell in rows["audio"]])
    valid = torch.cat([s[:n] for s, n in zip(spectrogram(modality, view), view.valid_frames, strict=True)])
    assert valid.mean().abs() < 1e-3 and abs(valid.std() - 0.5) < 1e-3
    silent = Audio(seconds=1.0)
    silent.fit([{"audio": {"bytes": encoded(np.zeros(RATE)), "path": None}}], "audio")
    assert silent.std == 1.0


def test_fit_passes_over_bad_rows():
    rows = [{"audio": {"bytes": b, "path": None}} for b in (b"", encoded(tone()), b"hello")]
    modality = Audio(seconds=1.0)
    modality.fit(rows, "audio")
    assert math.isfinite(modality.mean) and modality.std > 0.1
    with pytest.raises(ValueError, match="none of 1 rows"):
        Audio().fit(rows[:1], "audio")


# What views do


AUGMENTED = {
    "roll": 0.2,
    "gain": 1.0,
    "stretch": 0.2,
    "frequency_scale": 0.1,
    "time_mask": 0.2,
    "frequency_mask": 0.2,
    "mixup": 0.3,
}


@pytest.mark.parametrize("strength", ["weak", "strong"])
def test_views_depend_on_the_seed_alone(strength):
    modality = build(seconds=1.0, tile=(128, 4), **AUGMENTED)
    sources = [encoded(tone(s, pitch=p)) for s, p in ((0.6, 300), (1.0, 500), (3.0, 700), (0.9, 900))]
    view = ViewSpec(scale=(0.6, 1.0), strength=strength)
    a, b = (prepared(modality, sources, view, [5, 6, 7, 8]) for _ in range(2))
    assert torch.equal(a.data, b.data) and torch.isfinite(a.data).all()
    swapped = prepared(modality, sources[::-1], view, [8, 7, 6, 5])
    torch.testing.assert_close(swapped.data.flip(0), a.data)
    other = prepared(modality, sources, ViewSpec(scale=(0.6, 1.0), strength=strength, index=1), [5, 6, 7, 8])
    assert all(not torch.equal(x, y) for x, y in zip(a.data, other.data, strict=True))


@pytest.mark.parametrize("name", [name for name in AUGMENTED if name != "mixup"])
def test_each_augmentation_changes_the_view_and_only_where_it_should(name):
    plain, changed = build(seconds=1.0, tile=(128, 4)), build(seconds=1.0, tile=(128, 4), **{name: AUGMENTED[name]})
    sources = [encoded(tone(0.9, pitch=p) + 0.02 * random.standard_normal(14400)) for p in (300, 3000)]
    for strength in ("none", "weak", "strong"):
        a, b = (prepared(m, sources, ViewSpec(strength=strength)) for m in (plain, changed))
        acts = {"none": False, "weak": name not in ("time_mask", "frequency_mask"), "strong": True}[strength]
        assert torch.equal(a.data, b.data) != acts
        assert torch.isfinite(b.data).all()


def test_gain_is_in_logarithms_of_energy():
    modality = build(seconds=1.0, tile=(128, 4), gain=1.0)
    source = encoded(0.1 * random.standard_normal(RATE))
    change = [
        spectrogram(modality, prepared(modality, [source], ViewSpec(), [s]))
        - spectrogram(modality, prepared(modality, [source]))
        for s in range(20)
    ]
    change = torch.stack([c[0, :98].mean() for c in change]) * 2 * STATISTICS["std"]
    assert change.abs().max() <= 1.01 and change.std() > 0.3


def test_warps_and_masks_are_uniform_up_to_their_settings():
    settings = {"stretch": 0.25, "frequency_scale": 0.1, "time_mask": 0.3, "frequency_mask": 0.2}
    modality, clip = build(seconds=1.0, tile=(128, 4), **settings), build(seconds=1.0).read(cell(0.1 * noise(RATE)))
    made = [modality.view(clip, ViewSpec(strength="strong"), seed)["warp"].numpy() for seed in range(800)]
    speed, pitch, long, begin, wide, low = np.array(made).T
    for values, (least, most) in (
        (np.log(speed), (-np.log(1.25), np.log(1.25))),
        (np.log(pitch), (-np.log(1.1), np.log(1.1))),
        (long, (0, 0.3)),
        (begin, (0, 1)),
        (wide, (0, 0.2)),
        (low, (0, 1)),
    ):
        assert stats.kstest(values, stats.uniform(least, most - least).cdf).pvalue > 1e-4
    weak = np.array([modality.view(clip, ViewSpec(), seed)["warp"].numpy() for seed in range(20)])
    assert (weak[:, 2] == 0).all() and (weak[:, 4] == 0).all() and weak[:, 0].std() > 0.05


def test_gain_roll_and_scale_are_uniform_up_to_their_settings():
    wave = (0.001 + 0.1 * np.arange(RATE) / RATE).astype(
        np.float32
    )  # says where it was cut, and by how much it is louder
    read = build(seconds=1.01).read(cell(wave))
    gain, roll = build(seconds=1.01, gain=1.0), build(seconds=1.01, roll=0.2)
    louder = [2 * np.log(gain.view(read, ViewSpec(), s)["data"].max() / float(wave[-1])).item() for s in range(600)]
    assert stats.kstest(louder, stats.uniform(-1, 2).cdf).pvalue > 1e-4
    turns = [roll.view(read, ViewSpec(), s)["data"][:RATE].argmax().item() + 1 for s in range(600)]
    turns = [(t / RATE + 0.5) % 1 - 0.5 for t in turns]
    assert stats.kstest(turns, stats.uniform(-0.2, 0.4).cdf).pvalue > 1e-4
    cut = build(seconds=1.01)
    valid = [cut.view(read, ViewSpec(scale=(0.3, 0.9)), s)["data"].count_nonzero().item() / RATE for s in range(600)]
    assert stats.kstest(valid, stats.uniform(0.3, 0.6).cdf).pvalue > 1e-4


def test_interpolation_reads_between_frames_and_bins():
    """Values that grow in a line stay exact: at frame t and bin k there is what was at t · speed and k · pitch."""
    frames, bins = torch.arange(20.0), torch.arange(12.0)
    values = (3 * frames[:, None] + 0.5 * bins).expand(2, -1, -1)
    speed, pitch = torch.tensor([1.2, 0.7]), torch.tensor([0.8, 1.1])
    made = interpolated(values, speed, pitch)
    time, place = (frames * speed[:, None]).clamp(max=19), (bins * pitch[:, None]).clamp(max=11)
    torch.testing.assert_close(made, 3 * time[:, :, None] + 0.5 * place[:, None], atol=1e-4, rtol=1e-5)


def test_a_blank_is_where_and_as_long_as_it_is_told():
    modality = build(seconds=1.0, tile=(128, 4))
    made = modality.blank(torch.ones(1, 100, 50), torch.tensor([[1, 1, 0.295, 0.5, 0.19, 1.0]]))[0]
    frames, bins = (made == 0).all(1).nonzero()[:, 0], (made == 0).all(0).nonzero()[:, 0]
    assert frames.tolist() == list(range(36, 65)) and bins.tolist() == list(range(41, 50))


def test_mixing_is_in_energy_with_another_clip():
    modality, strong, shares = build(seconds=1.0, tile=(128, 4), mixup=0.5), ViewSpec(strength="strong"), []
    sources = [encoded(tone(pitch=p)) for p in (300, 3000)]
    alone = spectrogram(modality, prepared(modality, sources))[:, 50]
    low, high = (modality.read({"bytes": source, "path": None}) for source in sources)
    own, other = (a.argmax() for a in alone)
    assert modality.mixes(strong) and not modality.mixes(ViewSpec()) and not build().mixes(strong)
    for seed in range(200):
        made = modality.mix_in(modality.view(low, strong, seed), high, strong, seed)
        view = modality.prepare(modality.collate([made], torch.tensor([seed])))
        # By how much of its energy each peak fell: (1 - share) of the clip's own, share of the other's.
        fall = (spectrogram(modality, view)[0, 50] - torch.maximum(*alone)) * 2 * STATISTICS["std"]
        assert fall[own].exp() + fall[other].exp() == pytest.approx(1, abs=0.02)
        shares.append(fall[other].exp().item())
    assert stats.kstest(shares, stats.uniform(0, 0.5).cdf).pvalue > 1e-4


@pytest.mark.parametrize("own, others", [(0.3, 1.0), (1.0, 0.1), (0.5, 3.0)])
def test_a_clip_keeps_its_length_when_another_is_mixed_in(own, others):
    modality, strong = build(seconds=1.0, tile=(128, 4), mixup=0.5), ViewSpec(strength="strong")
    clip, other = (modality.read({"bytes": encoded(tone(s)), "path": None}) for s in (own, others))
    plain = modality.view(clip, strong, 3)
    made = modality.mix_in(plain, other, strong, 3)
    assert made["data"].shape == plain["data"].shape and made["valid_frames"] == plain["valid_frames"]
    assert not torch.equal(made["data"], plain["data"])


def test_stretch_moves_the_end():
    modality = build(seconds=1.0, tile=(128, 4), stretch=0.3)
    valid = [prepared(modality, [encoded(tone(0.6))], ViewSpec(), [s]).valid_frames.item() for s in range(20)]
    assert min(valid) < 55 and max(valid) > 62


def test_shorter_views_lie_at_the_head_of_the_window():
    modality = Audio(seconds=1.0, tile=(32, 4), **STATISTICS)
    view = prepared(modality, [encoded(tone(1.0))], ViewSpec(scale=(0.1, 0.4), size=0.4, strength="strong"))
    assert view.data.shape[1] == 4 * 10
    assert view.position.amax(1).tolist() == [[3, 9]]
    embedding = make(modality, width=8, depth=1, heads=1).embedding
    whole = embedding.positions.table.view(4, 25, 8)
    assert torch.equal(embedding.place(view.position, view.grid)[0].view(4, 10, 8), whole[:, :10])
