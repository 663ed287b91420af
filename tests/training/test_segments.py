"""Segments of recordings, from tables and tracks: which rows there are, and that each is the file cut by hand."""

import numpy as np
import pytest
from finished import finished
from support import encoded

from triptych import embed
from triptych.embed import main as search
from triptych.evaluation.labels import splits
from triptych.modalities import Audio
from triptych.modalities.base import recording, segment
from triptych.training.errors import UserError
from triptych.training.finding import find
from triptych.training.groups import groups_of
from triptych.training.loader import Samples, division, held_out
from triptych.training.settings import Data
from triptych.training.sources import judged, load, relative

MODALITY = Audio(seconds=0.16, mel_bins=16, tile=(8, 4), mean=0.0, std=1.0)


def recordings(folder, count: int = 3, rate: int = 22_050) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    waves = {f"r{i}.wav": np.random.default_rng(i).standard_normal(2 * rate) / 10 for i in range(count)}
    for name, wave in waves.items():
        (folder / name).write_bytes(encoded(wave, rate, subtype="FLOAT"))
    return waves


def read(folder, **options) -> dict[str, str]:
    """Labels by the names of rows."""
    rows = load(Data(name=str(folder), **options), MODALITY)
    names = [relative(cell["path"], rows.root) for cell in rows.table[:][rows.column]]
    labels = rows.table["label"] if "label" in rows.table.column_names else [None] * len(names)
    return dict(zip(names, labels, strict=True))


CSV = """file,start,end,label
r0.wav,0.5,1,song
r0.wav,0.0,0.25,call
deep/r1.wav,0.1,0.3,call
r2,1.0,1.5,song
r0.wav,0.5,1.0,loud
r9.wav,0,1,call
r0.wav,0.7,0.7,call
r0.wav,,0.7,call
"""
WANTED = {
    "r0.wav#t=0.0,0.25": "call",
    "r0.wav#t=0.5,1.0": "song|loud",
    "r1.wav#t=0.1,0.3": "call",
    "r2.wav#t=1.0,1.5": "song",
}
RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tSpecies\n" + "".join(
    f"{n}\t{view}\t1\t{start}\t{end}\t100\t{species}\n"
    for n, (start, end, species) in enumerate([(0.1, 0.4, "wren"), (0.5, 0.9, "owl")])
    for view in ("Waveform 1", "Spectrogram 1")
)
JOINED = (
    "Selection\tBegin Time (s)\tEnd Time (s)\tBegin File\tFile Offset (s)\tAnnotation\n"
    "1\t0.5\t0.75\tr1.wav\t0.5\twren\n2\t2.5\t2.75\tr2.wav\t0.5\towl\n"
)


@pytest.mark.parametrize(
    "files, wanted",
    [
        ({"marks.csv": CSV}, WANTED),
        ({"sub/marks.tsv": "onset_s\toffset_s\tFile\tSpecies\n0\t1.5\tr1\twren\n"}, {"r1.wav#t=0.0,1.5": "wren"}),
        (
            {"r0.txt": "0.1\t0.4\twren\n\\\t100\t200\n0,5\t0,9\towl\n1.0\t1.0\tpoint\n", "r1.txt": "just words\n"},
            {"r0.wav#t=0.1,0.4": "wren", "r0.wav#t=0.5,0.9": "owl"},
        ),
        ({"r0.Table.1.selections.txt": RAVEN}, {"r0.wav#t=0.1,0.4": "wren", "r0.wav#t=0.5,0.9": "owl"}),
        ({"r1.selections.txt": JOINED}, {"r1.wav#t=0.5,0.75": "wren", "r2.wav#t=0.5,0.75": "owl"}),
    ],
    ids=["csv", "tsv", "audacity", "raven", "raven of several files"],
)
def test_marks_are_rows_of_the_probe_and_recordings_those_of_training(files, wanted, tmp_path, capsys):
    recordings(tmp_path)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert list(read(tmp_path)) == ["r0.wav", "r1.wav", "r2.wav"] == list(read(tmp_path, segments=False))
    assert "are for the probe" in capsys.readouterr().out
    found = judged(Data(name=str(tmp_path)), MODALITY)
    assert found.segments and read(tmp_path, segments=True) == wanted
    said = capsys.readouterr().out
    assert f"{len(wanted)} segments of" in said
    if "marks.csv" in files:
        assert "3 of 8 marks name no recording that is here, or no time of any length" in said
    assert ("r1.txt" in said) == ("r1.txt" in files)  # left out, as what it is


def test_a_table_that_is_named_is_rows_of_segments(tmp_path, capsys):
    recordings(tmp_path)
    text = CSV.replace("deep/r1", "r1").replace("r2,", "r2.wav,").replace("r9.wav,0,1", "r2.wav,,")
    (tmp_path / "marks.csv").write_text(text)
    rows = load(Data(name=str(tmp_path / "marks.csv")), MODALITY)
    names = [relative(cell["path"], rows.root) for cell in rows.table[:]["file"]]
    assert names == ["r0.wav#t=0.5,1.0", "r0.wav#t=0.0,0.25", "r1.wav#t=0.1,0.3", "r2.wav#t=1.0,1.5"] + [
        "r0.wav#t=0.5,1.0",
        "r2.wav",
    ]
    assert rows.recordings().tolist() == [0, 0, 2, 3, 0, 5]
    said = capsys.readouterr().out
    assert "rows are segments of recordings, by the seconds in start and end" in said
    assert "2 of 8 rows have no seconds of any length" in said
    assert len(load(Data(name=str(tmp_path / "marks.csv"), segments=False), MODALITY)) == 8


@pytest.mark.parametrize("name", ["", "marks.csv"])
def test_a_recording_is_on_one_side_of_the_probe(name, tmp_path):
    recordings(tmp_path, 5)
    lines = [f"r{i}.wav,{t / 4},{t / 4 + 0.2},{'ab'[(i + t) % 2]}" for i in range(5) for t in range(4)]
    (tmp_path / "marks.csv").write_text("\n".join(["file,start,end,label", *lines]))
    found = splits(Data(name=str(tmp_path / name)), MODALITY, "train", None, 100)
    learn, judge = ({recording(path) for path in rows.paths()} for rows in (found.learn, found.judge))
    assert len(learn) == 4 and len(judge) == 1 and not learn & judge
    assert len(found.learn) == 16 and len(found.judge) == 4
    rows = load(Data(name=str(tmp_path / "marks.csv")), MODALITY)
    training, held = held_out(len(rows), 0.5, groups_of(rows, "to train on"))
    assert {i // 4 for i in training}.isdisjoint({i // 4 for i in held})


def test_recordings_that_are_called_by_numbers_are_found(tmp_path, capsys):
    for name in recordings(tmp_path):
        (tmp_path / name).rename(tmp_path / name.replace("r", "00"))
    (tmp_path / "marks.csv").write_text("file,start,end,label\n000,0.1,0.3,1\n002,0,1,2\n")
    assert read(tmp_path, segments=True) == {"000.wav#t=0.1,0.3": 1, "002.wav#t=0.0,1.0": 2}
    assert "marks.csv: numbers in column 'file' are taken for names of recordings" in capsys.readouterr().out


def test_segments_that_nobody_marked_are_refused(tmp_path):
    recordings(tmp_path)
    with pytest.raises(UserError, match="no table or track"):
        find(Data(name=str(tmp_path), segments=True), MODALITY)
    assert judged(Data(name=str(tmp_path)), MODALITY).segments is None


def test_segments_of_a_recording_are_not_each_others_negatives(tmp_path):
    recordings(tmp_path)
    (tmp_path / "r0.txt").write_text("0.1\t0.5\ta\n0.6\t0.8\tb\n")
    (tmp_path / "r1.txt").write_text("0.1\t0.5\ta\n5\t7\tbeyond its end\n8\t9\tbeyond its end\n")
    rows = load(Data(name=str(tmp_path), segments=True), MODALITY)
    table, numbers = division(rows, np.arange(len(rows)))
    assert len(table) > len(rows)  # the long ones are several windows
    samples = Samples(table, rows.column, MODALITY, (), 0, 10, rows.recordings()[numbers])
    assert samples.numbers.tolist() == [{0: 0, 1: 0}.get(n, 2) for n in numbers]
    with pytest.raises(ValueError, match="are beyond its end"):
        MODALITY.read(rows.table[4][rows.column])


def test_vectors_of_a_segment_are_those_of_the_file_cut_by_hand(tmp_path, capsys):
    finished("audio", "mae", tmp_path / "run")
    waves, rate = recordings(tmp_path / "data"), 22_050
    spans = {"r0.wav": (0.2, 0.3), "r1.wav": (0.25, 1.5), "r2.wav": (1.1, 99.0)}
    named = [segment(str(tmp_path / "data" / name), span) for name, span in spans.items()]
    by_hand = [(waves[n].astype(np.float32)[round(a * rate) : round(b * rate)], rate) for n, (a, b) in spans.items()]
    ours, theirs = (embed(str(tmp_path / "run"), data) for data in (named, by_hand))
    assert np.array_equal(ours, theirs) and np.isfinite(ours).all()
    capsys.readouterr()
    search([str(tmp_path / "run"), "--data", str(tmp_path / "data"), "--query", named[1], "--neighbours", "1"])
    assert "nearest to r1.wav#t=0.25,1.5:\n" in capsys.readouterr().out
