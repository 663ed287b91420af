"""Sound files: any container and rate, windows decoded alone, bad files named."""

import json
import math
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from support import encoded, tone

from triptych.modalities import EVALUATION, BadSample, ViewSpec
from triptych.modalities.audio import Audio
from triptych.modalities.audio_file import RATE, Clip

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
random = np.random.default_rng(0)


def build(**settings) -> Audio:
    modality = Audio(**({"mean": -4.2677393, "std": 4.5689974} | settings))
    return modality


def test_long_file_costs_its_window(tmp_path, monkeypatch):
    path = tmp_path / "long.flac"
    count, rate = 0, 22_050
    with soundfile.SoundFile(path, "w", rate, 2) as file:
        for minute in range(4):
            wave = tone(60, rate, 100.0 * (minute + 1))
            file.write(np.stack([wave, wave], 1))
            count += len(wave)
    read = []
    original = soundfile.SoundFile.read

    def counted(self, frames=-1, *args, **kwargs):
        read.append(frames)
        return original(self, frames, *args, **kwargs)

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    modality = build(seconds=1.0, tile=(128, 4))
    clip = modality.read(str(path))
    assert read == []
    assert clip.length == math.ceil(count * RATE / rate)
    head = modality.view(clip, EVALUATION, 0)["data"].numpy()
    assert np.abs(np.fft.rfft(head[:RATE])).argmax() == 100
    rows = datasets.Dataset.from_dict({"audio": [{"bytes": None, "path": str(path)}]})
    windows = modality.samples(rows, "audio")
    assert len(read) == 1 and len(windows) == math.ceil(clip.length / modality.window)
    # Both views are of one window, and of what the resampling filter reaches: blocks of 441 frames.
    window = modality.read(windows[130]["audio"])
    views = [modality.view(window, ViewSpec(strength="strong", index=i), 3)["data"] for i in range(2)]
    assert len(read) == 2 and max(read) <= math.ceil(modality.window * rate / RATE) + 6 * 441
    assert torch.equal(*views)
    heard = [np.abs(np.fft.rfft(modality.read(cell).wave[:RATE])).argmax() for cell in windows["audio"][::40]]
    assert set(heard) >= {100, 200, 300, 400}


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 48_000])
def test_a_window_is_cut_from_the_whole_file(rate):
    wave = np.random.default_rng(0).standard_normal((rate * 5 + 13, 2)).astype(np.float32) * 0.1
    clip = Clip(encoded(wave, rate, subtype="FLOAT"), RATE)
    whole = torchaudio.functional.resample(torch.from_numpy(wave.mean(1)), rate, RATE).numpy()
    assert clip.wave is None and clip.length == len(whole)
    for start in (0, 1, 12_345, clip.length - RATE):
        np.testing.assert_allclose(clip.window(start, RATE), whole[start : start + RATE], atol=1e-5)


def test_channels_are_averaged_before_resampling():
    modality = build(seconds=2.0)
    left, right = tone(1.0, 48_000, 440.0), tone(1.0, 48_000, 880.0)
    clip = modality.read({"bytes": encoded(np.stack([left, right], 1), 48_000), "path": None})
    assert abs(clip.length - RATE) <= 2
    amplitude = 2 * np.abs(np.fft.rfft(clip.wave[:RATE])) / RATE
    assert amplitude[440] == pytest.approx(0.25, abs=0.02) and amplitude[880] == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("rate", [8_000, 11_025, 11_127, 22_050, 44_100, 44_101, 96_000])
def test_any_rate(rate):
    clip = Clip(encoded(tone(1.0, rate), rate), 2 * RATE)
    assert abs(clip.length - RATE) <= 2 and clip.wave.dtype == np.float32
    wave = clip.wave[100:-100]
    expected = tone(1.1)[100 : 100 + len(wave)]
    assert np.corrcoef(wave, expected)[0, 1] > 0.999


def flac_of_ten_hours() -> bytes:
    data = bytearray(encoded(tone(), format="FLAC"))
    field = int.from_bytes(data[18:26], "big")
    data[18:26] = (field >> 36 << 36 | 36_000 * RATE).to_bytes(8, "big")  # total samples, in STREAMINFO
    return bytes(data)


def loud(value):
    wave = tone()
    wave[700] = value
    return encoded(wave, subtype="FLOAT")


BAD = {
    "empty": (b"", "empty file"),
    "text": (b"no sound at all" * 10, "not readable as sound"),
    "m4a": (b"\0\0\0\x20ftypM4A " + bytes(100), "MPEG-4"),
    "webm": (b"\x1a\x45\xdf\xa3" + bytes(100), "WebM"),
    "nan": (loud(np.nan), "not finite"),
    "inf": (loud(-np.inf), "not finite"),
    "huge": (loud(1e29), "full scale is 1"),
    "integers": (loud(15_000), "full scale is 1"),
    "nothing": (encoded(np.zeros(0)), "least length is 400"),
    "short": (encoded(tone()[:399]), "least length is 400"),
    "ten hours": (flac_of_ten_hours(), "36000.0 s that its header promises"),
    "cut": (encoded(random.standard_normal(RATE) * 0.1, format="MP3")[:2400], "header promises"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_named(kind):
    source, message = BAD[kind]
    modality = build(seconds=1.0)
    with pytest.raises(BadSample, match=message):
        modality.view(modality.read({"bytes": source, "path": None}), EVALUATION, 0)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(BadSample, match="no such file"):
        build().read({"bytes": None, "path": str(tmp_path / "none.wav")})


@pytest.mark.parametrize(
    "format, subtype",
    [
        ("WAV", "PCM_U8"),
        ("WAV", "PCM_24"),
        ("WAV", "DOUBLE"),
        ("WAV", "ULAW"),
        ("WAVEX", "PCM_16"),
        ("RF64", "PCM_16"),
        ("AIFF", "PCM_16"),
        ("AU", "PCM_16"),
        ("FLAC", "PCM_24"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
    ],
)
def test_encodings(format, subtype, tmp_path):
    path = tmp_path / "misleading.wav"  # kind is judged by content
    path.write_bytes(encoded(tone(), format=format, subtype=subtype))
    clip = build(seconds=2.0).read(str(path))
    assert abs(clip.length - RATE) <= 400
    n = min(clip.length, RATE)
    assert np.corrcoef(clip.wave[:n], tone()[:n])[0, 1] > 0.99


def test_archives_are_read(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("tone.wav", encoded(tone()))
    assert build().read({"bytes": None, "path": f"zip://tone.wav::{tmp_path}/a.zip"}).length == RATE


# The shared hard cases

EXPECTED = json.loads((CASES / "expected.json").read_text()) if (CASES / "expected.json").exists() else {}


@pytest.mark.parametrize("case", [name for name in EXPECTED if name.startswith("audio/")])
def test_case(case):
    expected = EXPECTED[case]
    modality = build(seconds=1.0, tile=(128, 4))
    good, bad = {}, {}
    for path in sorted((CASES / case).iterdir()):
        if path.suffix.lower() not in Audio.suffixes:
            continue
        try:
            good[path.name] = modality.view(modality.read(str(path)), EVALUATION, 0)
        except BadSample as error:
            bad[path.name] = str(error)
    low, high = expected.get("good_range", [expected["good"]] * 2)
    assert low <= len(good) <= high, bad
    assert len(good) + len(bad) == expected["good"] + expected["bad"]
    batch = modality.prepare(modality.collate(list(good.values()), torch.arange(len(good))))
    assert torch.isfinite(batch.data).all()
    exact = expected.get("exact", {})
    assert set(exact.get("always_bad", [])) | set(exact.get("bad_files", [])) <= bad.keys()
    for name in exact.get("files", []):
        wave = good[name]["data"][:RATE].numpy()
        assert np.abs(wave).max() == pytest.approx(0.5, abs=0.02)
        assert np.corrcoef(wave, tone())[0, 1] >= 0.99
    if case == "audio/containers":
        assert "MPEG-4" in bad["stub.m4a"] and "WebM" in bad["stub.webm"]
    if case == "audio/stereo":
        for name, strength in {
            "stereo_48k.wav": {440: 0.25, 880: 0.25},
            "one_side.wav": {440: 0.25},
        }.items():
            amplitude = 2 * np.abs(np.fft.rfft(good[name]["data"][:RATE].numpy())) / RATE
            for pitch, value in strength.items():
                assert amplitude[pitch] == pytest.approx(value, abs=0.02)


def tag(size: int, flags: int = 0, padding: int = 0) -> bytes:
    """An ID3v2 tag of so many bytes, as a cover picture makes it."""
    length = bytes((size >> shift) & 127 for shift in (21, 14, 7, 0))
    return (
        b"ID3\4\0"
        + bytes([flags])
        + length
        + b"\x55" * size
        + (b"3DI\4\0\0" + length if flags & 0x10 else b"")
        + bytes(padding)
    )


@pytest.mark.parametrize("format", ["FLAC", "MP3", "WAV", "OGG"])
@pytest.mark.parametrize(
    "before", [tag(0), tag(1000), tag(500_000), tag(300, flags=0x10), tag(300, padding=900), tag(9) + tag(70_000)]
)
def test_tags_before_the_sound_are_skipped(format, before, tmp_path):
    plain = encoded(tone(2.0), format=format)
    (tmp_path / "tagged").write_bytes(before + plain)
    wanted = Clip(plain, 4 * RATE)
    for source in (before + plain, str(tmp_path / "tagged")):
        assert np.array_equal(Clip(source, 4 * RATE).wave, wanted.wave)
        windows = [Clip(s, RATE).window(RATE // 2, 8000) for s in (source, plain)]  # each decoded alone
        assert np.array_equal(*windows) and len(windows[0]) == 8000


def test_what_lies_behind_a_tag_is_named():
    with pytest.raises(BadSample, match="AAC: no decoder"):
        Clip(tag(100) + b"\xff\xf1" + bytes(100), RATE)
    for data in (tag(100)[:60], b"ID3", b"ID3\4\0\0\x7f\x7f\x7f\x7f"):
        with pytest.raises(BadSample):
            Clip(data, RATE)
