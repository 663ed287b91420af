"""Text as it is: files, lines and paragraphs, nested fields, encodings, tables about files, and what is no text."""

import json

import pytest

from triptych.modalities import Image, Text
from triptych.training.errors import UserError
from triptych.training.groups import groups_of
from triptych.training.settings import Data
from triptych.training.sources import load

TWO = "One line.\r\nAnd one.\r\n \t\r\n\r\nA second paragraph,\r\nof two lines.\r\n"


def write(folder, **files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def texts(folder, **data) -> list[str]:
    return [t.replace("\r\n", "\n") for t in load(Data(name=str(folder), **data), Text()).table["text"][:]]


def test_a_sample_is_a_file_a_line_or_a_paragraph(tmp_path, capsys):
    write(
        tmp_path, **{"flat/a.txt": TWO, "flat/b.txt": b"\xef\xbb\xbfMark.\n", "deep/x/a.txt": TWO, "deep/y/b.txt": "B"}
    )
    first, second = "One line.\nAnd one.", "A second paragraph,\nof two lines."
    assert texts(tmp_path / "flat", document="paragraph") == [first, f"{second}\n", "Mark.\n"]
    assert texts(tmp_path / "flat", document="file") == [TWO.replace("\r\n", "\n"), "Mark.\n"]
    said = capsys.readouterr().out
    assert "a paragraph is a sample" in said and "a file is a sample" in said and "--data.document" not in said
    lines = texts(tmp_path / "flat")
    assert "a line is a sample (2 files; if each is a document, --data.document file)" in capsys.readouterr().out
    assert lines == texts(tmp_path / "flat", document="line")
    said = [line.strip("\ufeff") for line in lines if line.strip()]
    assert said == [*first.split("\n"), *second.split("\n"), "Mark."]
    # A line has the label and the name of its file.
    rows = load(Data(name=str(tmp_path / "deep"), document="line", group="file"), Text())
    assert rows.labels().tolist() == [0] * 6 + [1]
    assert groups_of(rows, "here").tolist() == ["x/a.txt"] * 6 + ["y/b.txt"]
    assert groups_of(load(Data(name=str(tmp_path / "flat"), group="file"), Text()), "here")[0] == "a.txt"
    for data, modality, message in (
        ({"name": str(tmp_path / "flat"), "document": "file"}, Image(8, 4), "data.document file: only text"),
        ({"encoding": "latin1000"}, Text(), "data.encoding 'latin1000' is none"),
    ):
        with pytest.raises(UserError, match=message):
            load(Data(**data), modality)


@pytest.mark.fault("a file of text that is none", "left out, counted and named", "files that are not text (b.txt)")
def test_what_is_no_text_is_named_and_other_encodings_are_read(tmp_path, capsys):
    old = "Befund: Größe 3 cm\n".encode("latin-1")
    write(tmp_path / "two", **{"a.txt": "fine\n", "b.txt": b"\x7fELF\0\1\2", "c.txt": "wide\n".encode("utf-16")})
    for data in ({}, {"document": "file"}, {"document": "paragraph"}):
        assert [t.strip() for t in texts(tmp_path / "two", **data)] == ["fine", "wide"]
        assert "1 files that are not text (they hold NUL bytes) (b.txt)" in capsys.readouterr().out
    write(tmp_path, **{"none/b.txt": b"\0\0", "old/a.txt": old, "table.csv": b"text,label\n" + old.strip() + b",1\n"})
    write(tmp_path, **{"table.jsonl": b'{"text": "' + old.strip() + b'"}\n'})
    for data in ({}, {"document": "file"}):
        with pytest.raises(UserError, match=r"files that are not text .*b.txt.*--data.encoding"):
            load(Data(name=str(tmp_path / "none"), **data), Text())
    for name in ("old", "old/a.txt", "table.csv", "table.jsonl"):
        assert texts(tmp_path / name, encoding="latin-1")[0].strip() == "Befund: Größe 3 cm", name
    with pytest.raises(UserError, match="not UTF-8.*--data.encoding"):
        load(Data(name=str(tmp_path / "old"), document="file"), Text())
    marked = "\ufeffGröße\n".encode()
    write(tmp_path / "both", **{"a/1.txt": old, "b/2.txt": marked})
    write(
        tmp_path, **{"m.csv": "\ufefftext,label\nGröße,1\n".encode(), "m.jsonl": '\ufeff{"text": "Größe"}\n'.encode()}
    )
    assert [t.strip() for t in texts(tmp_path / "both", encoding="latin-1")] == ["Befund: Größe 3 cm", "Größe"]
    for name in ("m.csv", "m.jsonl"):  # a file's own mark is surer
        assert texts(tmp_path / name, encoding="latin-1") == ["Größe"], name


def test_many_files_of_another_encoding_are_refused(tmp_path):
    old = {f"a/{i}.txt": b"Gr\xf6\xdfe" for i in range(11)}
    write(tmp_path, **old, **{f"b/{i}.txt": "fine" for i in range(20)})
    with pytest.raises(UserError, match=r"11 files that are not UTF-8 .*11 files would be lost, more than 10.*latin-1"):
        load(Data(name=str(tmp_path)), Text())
    assert len(texts(tmp_path, max_bad=11)) == 20


def test_nested_fields_go_by_a_dotted_name(tmp_path):
    rows = [
        {"id": str(i), "report": {"findings": {"text": f"text {i}", "code": "ab"[i % 2]}, "by": f"p{i // 2}"}}
        for i in range(6)
    ]
    rows[5]["report"]["findings"] = None
    write(tmp_path, **{"a.jsonl": "\n".join(map(json.dumps, rows))})
    import datasets

    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        data = Data(
            name=str(tmp_path / name),
            column="report.findings.text",
            label_column="report.findings.code",
            group="report.by",
        )
        found = load(data, Text())
        assert found.table[found.column][:] == [*(f"text {i}" for i in range(5)), None]
        assert found.table[found.label][:] == ["a", "b", "a", "b", "a", None]
        assert groups_of(found, "here").tolist() == ["p0", "p0", "p1", "p1", "p2", "p2"]
        with pytest.raises(UserError, match="in 'id' or in the longer 'report.findings.text'"):
            load(Data(name=str(tmp_path / name)), Text())
        with pytest.raises(UserError, match=r"no such column; did you mean report.findings.text\?"):
            load(Data(name=str(tmp_path / name), column="report.findings.test"), Text())
    for row in rows:
        row["id"] = 1
    write(tmp_path, **{"b.jsonl": "\n".join(map(json.dumps, rows))})
    with pytest.raises(UserError, match=r"within them report.findings.text, .*, such as --data.column report.findings"):
        load(Data(name=str(tmp_path / "b.jsonl")), Text())


def test_a_table_about_files_may_lie_anywhere_and_name_them_in_short(tmp_path, capsys):
    write(tmp_path, **{f"notes/{i % 2}/n{i}.txt": f"note {i}" for i in range(4)})
    for name, called in (("stems", "n{}"), ("bases", "n{}.txt"), ("paths", "{1}/n{0}.txt")):
        lines = [f"{called.format(i, i % 2)},{'abab'[i]},p{i}" for i in range(3)]
        write(tmp_path, **{f"{name}.csv": "\n".join(["what,kind,patient", *lines, "other,a,p9", ""])})
        data = Data(name=str(tmp_path / "notes"), metadata=str(tmp_path / f"{name}.csv"), label_column="kind")
        rows = load(data, Text())
        found = dict(zip(rows.table["path"][:], rows.table["kind"][:], strict=True))
        assert found == {"0/n0.txt": "a", "1/n1.txt": "b", "0/n2.txt": "a", "1/n3.txt": None}, name
        assert f"{name}.csv: 1 rows without a file, 1 files without a row" in capsys.readouterr().out
    with pytest.raises(UserError, match="data.metadata no.csv: no such table"):
        load(Data(name=str(tmp_path / "notes"), metadata="no.csv"), Text())
    inside = tmp_path / "notes" / "about.csv"
    inside.write_text("what,kind\nn1,b\n")
    rows = load(Data(name=str(tmp_path / "notes"), metadata=str(inside)), Text())
    assert sorted(filter(None, rows.table["kind"][:])) == ["b"]
