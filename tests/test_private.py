"""Nothing that a DICOM file says of a person is ever written: by a run, its page, an export, a table of vectors."""

import warnings

import numpy as np
import pytest
import support

from triptych.embed import main as embed
from triptych.evaluation import report
from triptych.export import export
from triptych.train import pretrain

PERSONAL = {
    "PatientName": "Quagmire^Zebedee",
    "PatientID": "QZ-190117",
    "PatientBirthDate": "19170119",
    "InstitutionName": "Saint Elsewhere",
    "ReferringPhysicianName": "Zhivago^Yuri",
    "AccessionNumber": "ACC990017",
    "StudyDate": "20190703",
    "ImageComments": "Zebedee was restless",
}
SECRETS = [
    word.encode() for value in PERSONAL.values() for word in (value, value.replace("^", " "), value.split("^")[0])
]


@pytest.mark.slow
def test_no_personal_field_is_written_anywhere(tmp_path, capfd):
    random, data = np.random.default_rng(0), tmp_path / "elsewhere" / "scans"
    for i in range(16):
        scan = support.dicom(random.integers(0, 4096, (12, 10)), "MONOCHROME1" if i % 2 else "MONOCHROME2", **PERSONAL)
        assert all(word in scan for word in SECRETS[::3])
        (data / f"visit{i // 4}").mkdir(parents=True, exist_ok=True)
        (data / f"visit{i // 4}" / f"IM{i:04d}").write_bytes(scan)  # as an archive of a hospital names them
    (data / "DICOMDIR").write_bytes(scan)
    (data / "visit0" / "cut.dcm").write_bytes(scan[:-60])
    broken = scan.replace(b"19170119", b"17 Jan19")  # a field that is not as it should be, of which pydicom warns
    (data / "visit1" / "odd.dcm").write_bytes(broken)
    config = support.config(
        "image", "mae", tmp_path / "run", max_steps=2, report=False, **{"data.name": str(data), "data.max_bad": 3}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        pretrain(config)
        report.write(tmp_path / "run")
        export(tmp_path / "run", to=str(tmp_path / "exported"))
        embed([str(tmp_path / "run"), "--to", str(tmp_path / "vectors.parquet"), "--device", "cpu"])
    said = capfd.readouterr()
    assert "18 rows of" in said.out and "0 is black and 4095 white" in said.out and "17 Jan" not in said.err
    assert "DICOM that cannot be read" in said.out + said.err
    written = [f for f in tmp_path.rglob("*") if f.is_file() and data not in f.parents]
    assert {"report.html", "config.yaml", "README.md", "vectors.parquet"} <= {f.name for f in written}
    texts = {str(f): f.read_bytes() for f in written} | {"what was printed": (said.out + said.err).encode()}
    found = {(name, word) for name, text in texts.items() for word in [*SECRETS, b"17 Jan19"] if word in text}
    assert not found
    page = (tmp_path / "run" / "report.html").read_text()
    assert str(data.parent) not in page, "paths of a page are relative to the data"
