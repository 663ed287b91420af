"""Windows of recordings: every sample of a recording is in one of them, and each is what a cut of the whole gives."""

import tracemalloc

import datasets
import numpy as np
import pytest
import torch
from support import encoded, tone

from triptych.modalities import EVALUATION, ViewSpec
from triptych.modalities.audio import Audio
from triptych.modalities.audio_file import RATE, Clip
from triptych.modalities.audio_windows import Windows, windows_of
from triptych.modalities.base import NoSamples, recording, segment, span_of
from triptych.training.loader import Samples


def table(sources: list[bytes], **columns):
    return datasets.Dataset.from_dict({"audio": [{"bytes": s, "path": None} for s in sources]} | columns)


def noise(count: int, rate: int = RATE) -> bytes:
    """Values that say where they are."""
    return encoded(np.random.default_rng(count).standard_normal(count).astype(np.float32) / 10, rate, subtype="FLOAT")


@pytest.mark.parametrize("hop", [1, 7, 399, 400])
def test_windows_cover_a_recording_exactly(hop):
    random = np.random.default_rng(hop)
    for length in (1, 399, 400, 401, 799, 800, 801, *random.integers(1, 5000, 60).tolist()):
        begins = windows_of(length, 400, hop)
        heard = np.zeros(length, bool)
        for start in begins:
            assert start >= 0
            heard[start : start + 400] = True
        assert heard.all() and len(set(begins)) == len(begins) and begins == sorted(begins)
        assert begins[-1] == max(0, length - 400)  # the last ends with the recording
        assert all(b - a <= hop for a, b in zip(begins, begins[1:], strict=False))


@pytest.mark.parametrize("rate, hop", [(16_000, None), (22_050, 0.1), (44_100, 0.055), (8_000, 0.3)])
def test_an_epoch_hears_every_sample_of_every_recording_once(rate, hop):
    """At any rate, of any length: shorter than a window, just one, a sample more, many."""
    modality = Audio(seconds=0.3, tile=(128, 2), hop=hop, mean=0.0, std=1.0)
    whole = [modality.window - 1, modality.window, modality.window + 1, 3 * modality.window, 12_345]
    counts = [rate // 20, *(int(n * rate / RATE) for n in whole)]
    sources = [noise(count, rate) for count in counts]
    rows = table(sources, label=list(range(len(counts))))
    starts, note = modality.starts(rows, "audio")
    made = modality.samples(rows, "audio", starts)
    assert made.column_names == ["audio", "label", "source_row"] and f"{len(made)} windows" in note
    assert made["source_row"].tolist() == made["label"] and set(made["label"]) == set(range(len(counts)))
    for row, source in enumerate(sources):
        clip = Clip(source, 10**9)
        heard = np.zeros(clip.length, bool)
        for cell in [cell for cell, own in zip(made["audio"], made["source_row"], strict=True) if own == row]:
            window = modality.read(cell)
            wanted = clip.wave[cell["start"] : cell["start"] + modality.window]
            assert window.length == len(wanted) == min(clip.length, modality.window)
            np.testing.assert_allclose(window.wave, wanted, atol=1e-5)
            heard[cell["start"] : cell["start"] + modality.window] = True
        assert heard.all()


def test_recordings_of_one_window_are_rows_as_they_are():
    modality = Audio(seconds=1.0, tile=(128, 4), mean=0.0, std=1.0)
    rows = table([encoded(tone(s)) for s in (0.1, 0.5, 1.0)] + [b"no sound"])
    starts, note = modality.starts(rows, "audio")
    assert starts == [[0]] * 4 and note is None
    assert modality.samples(rows, "audio", starts) is rows and modality.samples(rows, "audio") is rows


def test_a_table_of_windows_is_read_as_one_of_rows():
    modality = Audio(seconds=0.3, tile=(128, 2), mean=0.0, std=1.0)
    made = modality.samples(table([noise(12_000), noise(3_000)], label=[5, 6]), "audio")
    assert len(made) == 4 and made[3]["label"] == 6 and made[-1] == made[3]
    assert made[1:3]["label"] == [5, 5] == made[[1, 2]]["label"] and made[0:0]["audio"] == []
    assert [cell["start"] for cell in made[[2, 0, 0]]["audio"]] == [12_000 - modality.window, 0, 0]
    assert made.select_columns(["audio"])[3].keys() == {"audio", "source_row"}
    many = Windows(made.rows, "audio", np.zeros(10**6, np.int64), np.arange(10**6))
    tracemalloc.start()
    many[[5, 7]], many[3:5], many[-1]
    assert tracemalloc.get_traced_memory()[1] < 10**6  # what is asked for, not something of all windows each time
    tracemalloc.stop()


def test_hop_is_at_most_the_window():
    with pytest.raises(ValueError, match="never be heard"):
        Audio(seconds=1.0, tile=(128, 4), hop=1.2)
    assert Audio(seconds=1.0, tile=(128, 4), hop=1.0).hop == RATE


def test_silence_is_left_out_of_training_alone():
    modality = Audio(seconds=0.5, tile=(128, 4), silence=30.0, mean=0.0, std=1.0)
    loud, count = 0.1 * tone(4.0, pitch=500.0), modality.window
    loud[count : 2 * count] *= 0.04  # 28 dB below the loudest
    loud[3 * count : 4 * count] *= 0.02  # 34 dB
    rows = table([encoded(loud, subtype="FLOAT"), encoded(tone(0.3) / 100), encoded(np.zeros(RATE)), b"none"])
    starts, note = modality.starts(rows, "audio")
    assert starts[0] == [s for s in windows_of(4 * RATE, count) if s != 3 * count]
    assert starts[1:] == [[0], [], [0]]  # quiet is not silent; what cannot be read is named when it is its turn
    assert "3 of which are silent and left out" in note
    assert set(modality.samples(rows, "audio", starts)["source_row"]) == {0, 1, 3}
    assert len(modality.samples(rows, "audio")) == len(windows_of(4 * RATE, count)) + 2 + 2
    with pytest.raises(NoSamples, match="none of 1 rows has any sound"):
        modality.samples(rows.select([2]), "audio", [[]])


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_windows_of_a_file_that_is_opened_once_are_those_of_one_opened_for_each(rate):
    """Also the second of two that begin within a filter's reach of the start: it was read on from the first's end."""
    clip, starts = Clip(noise(2 * rate, rate), RATE), [0, 5, 100, 7000]
    for one, start in zip(clip.windows(starts, RATE), starts, strict=True):
        np.testing.assert_array_equal(one, clip.window(start, RATE))


def test_a_segment_is_the_file_cut_by_hand(tmp_path):
    """At any rate of the file, long or short: bit for bit what a file of these seconds alone gives."""
    modality = Audio(seconds=0.5, tile=(128, 4), mean=-4.0, std=4.0)
    for rate in (8_000, 16_000, 22_050, 44_100):
        wave = np.random.default_rng(rate).standard_normal((4 * rate, 2)).astype(np.float32) / 10
        (path := tmp_path / "whole.wav").write_bytes(encoded(wave, rate, subtype="FLOAT"))
        for start, end in ((0.0, 0.3), (1.234, 1.5), (0.7, 2.9), (3.5, 9.0)):
            cut = encoded(wave[round(start * rate) : round(end * rate)], rate, subtype="FLOAT")
            cells = {"bytes": None, "path": segment(str(path), (start, end))}, {"bytes": cut, "path": None}
            rows = [modality.samples(datasets.Dataset.from_dict({"audio": [cell]}), "audio") for cell in cells]
            assert len(rows[0]) == len(rows[1]) == len(windows_of(modality.read(cells[1]).length, modality.window))
            for one, other in zip(*(part["audio"] for part in rows), strict=True):
                views = [modality.view(modality.read(cell), EVALUATION, 0)["data"] for cell in (one, other)]
                assert torch.equal(*views)


def test_names_of_segments():
    name = segment("a b#1.wav", (1, 2.5))
    assert name == "a b#1.wav#t=1.0,2.5" and span_of(name) == (1.0, 2.5) and recording(name) == "a b#1.wav"
    assert span_of({"bytes": None, "path": name}) == (1.0, 2.5)
    assert (
        span_of({"bytes": b"", "path": None}) is None is span_of("plain.wav") and recording("plain.wav") == "plain.wav"
    )
    assert span_of(segment("x", (1e-5, 1e6))) == (1e-5, 1e6)


def test_a_recording_that_breaks_off_is_one_bad_sample():
    """Whichever of its windows are asked for; those before the break are used. Replacements do not run out on it."""
    modality = Audio(seconds=0.2, tile=(128, 2), mean=0.0, std=1.0)
    whole = encoded(np.random.default_rng(0).standard_normal(40 * RATE) / 10, format="FLAC")
    rows = table([whole[: len(whole) // 40], *(noise(4_000) for _ in range(3))])
    made = modality.samples(rows, "audio")
    samples = Samples(made, "audio", modality, (ViewSpec(),), 0, 0, made["source_row"])
    last = len(made) - 1
    found = samples.__getitems__([(0, i) for i in (0, 100, 120, last)])
    assert found["bad"].keys() == {0} and "its header promises" in found["bad"][0][1]
    row = found["views"][0].row.tolist()
    assert row[0] == 0 and row[3] == last and {made["source_row"][i] for i in row[1:3]} <= {1, 2, 3}
    assert found["views"][0].identity.tolist() == [made["source_row"][i] for i in row]
