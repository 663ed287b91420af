"""Bad input: one clear line that names the thing and the way out, exit code 1, and nothing half-written."""

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import support
import torch
from PIL import Image as pillow

from triptych import train
from triptych.modalities import BadSample, Image
from triptych.training import checkpoint, engine
from triptych.training.errors import UserError
from triptych.training.settings import Data, Run
from triptych.training.sources import load

CASES = support.ROOT.parent / "shared" / "cases"
EXPECTED = json.loads((CASES / "expected.json").read_text()) if CASES.is_dir() else {}
PICTURE_CASES = [name for name in EXPECTED if name.startswith("images/")]


def read_all(rows) -> tuple[dict[str, pillow.Image], dict[str, str]]:
    """Readable pictures and the reasons of the others, by file name (or row number)."""
    good, bad = {}, {}
    for number, row in enumerate(rows.table):
        cell = row[rows.column]
        name = Path(cell.get("path") or str(number)).name
        try:
            if "://" in (cell.get("path") or "") and cell["bytes"] is None:
                with zipfile.ZipFile(cell["path"].split("::")[1]) as archive:
                    cell = {"path": name, "bytes": archive.read(cell["path"].split("::")[0].removeprefix("zip://"))}
            good[f"{number} {name}"] = rows.modality.read(cell)
        except BadSample as error:
            bad[name] = str(error)
    return good, bad


# Each public case.


@pytest.mark.parametrize("case", PICTURE_CASES)
def test_public_case(case, capfd):
    expected = EXPECTED[case]
    column = expected.get("args", {}).get("image_column")
    rows = load(Data(name=str(CASES / case), column=column), Image(32, 8))
    good, bad = read_all(rows)
    counted = len(good)
    if case == "images/label_order":
        counted += len(load(Data(name=str(CASES / case)), Image(32, 8), "validation"))
    assert counted == expected["good"] or between(counted, expected.get("good_range"))
    assert len(bad) == expected["bad"] or between(len(bad), expected.get("bad_range"))
    if named := expected["exact"].get("bad_files"):
        assert set(bad) <= set(named)
        assert all(bad.values())
    if case == "images/zip_metadata":
        said = capfd.readouterr().out
        assert "1 rows without a file, 1 files without a row" in said
        assert rows.label is None


def between(value: int, bounds) -> bool:
    return bounds is not None and bounds[0] <= value <= bounds[1]


@pytest.mark.skipif(not EXPECTED, reason="the public cases are not here")
def test_two_columns_of_pictures_are_not_guessed():
    with pytest.raises(UserError, match="(?s)mask.*front.*frames|front.*mask|frames"):
        load(Data(name=str(CASES / "images/two_image_columns")), Image(32, 8))


@pytest.mark.skipif(not EXPECTED, reason="the public cases are not here")
def test_exact_pixels_of_the_public_cases():
    def read(name):
        return np.asarray(Image(32, 8).read({"path": str(CASES / "images" / name), "bytes": None})).astype(float)

    for name, colour, most in (
        ("color_modes/cmyk.jpg", (255, 0, 0), 4),
        ("color_modes/cmyk.tif", (0, 255, 0), 1),
        ("color_modes/gray.png", (128, 128, 128), 0.5),
        ("color_modes/gray_alpha.png", (128, 128, 128), 0.5),
    ):
        assert np.abs(read(name).mean((0, 1)) - colour).max() <= most, name
    halves = read("color_modes/one_bit.png")
    width = halves.shape[1] // 2
    assert (halves[:, :width] == 0).all() and (halves[:, width:] == 255).all()
    for name in ("palette_trns.png", "rgba_hidden.png"):
        x = read(f"palette_alpha/{name}")
        width = x.shape[1] // 2
        assert (x[:, :width] == (0, 160, 0)).all() and (x[:, width:] == 255).all(), name
    x = read("palette_alpha/rgba_half.png")
    assert np.abs(x[:, x.shape[1] // 2 :] - (127, 127, 255)).max() <= 2
    for name in ("gray16/ramp16.png", "gray16/ramp16_be.tif"):
        x = read(name)[..., 0]
        assert np.abs(x - np.arange(x.shape[1])).max() <= 1
        assert len(np.unique(x)) == 256 and (x == 255).mean() <= 1 / 256
    for file in (CASES / "images/exif_rotate").glob("orient_*"):
        x = read(f"exif_rotate/{file.name}")
        assert x.shape[:2] == (40, 60), file
        corners = x[5, 5], x[5, 55], x[35, 5], x[35, 55]
        for seen, wanted in zip(corners, ((220, 0, 0), (0, 200, 0), (0, 0, 220), (240, 240, 240)), strict=True):
            assert np.abs(seen - wanted).max() <= 20, file


@pytest.mark.skipif(not EXPECTED, reason="the public cases are not here")
def test_labels_of_the_public_case_go_by_name():
    parts = [load(Data(name=str(CASES / "images/label_order")), Image(32, 8), s) for s in ("train", "validation")]
    assert same_names(*parts) == {"1", "10", "2"}


def same_names(first, second) -> set[str]:
    """Class folders in both; asserts that each has one number."""

    def table(rows):
        names = rows.table.features[rows.label].names
        return {(Path(r[rows.column]["path"]).parent.name, names[r[rows.label]]) for r in rows.table}

    assert all(folder == name for folder, name in table(first) | table(second))
    return {folder for folder, _ in table(second)}


# The same kinds, made here.


def as_cell(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return {"path": f"made.{kind}", "bytes": file.getvalue()}


def ramp() -> np.ndarray:
    return np.tile(np.arange(256), (4, 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F"])
def test_every_mode_becomes_eight_bits_a_channel(mode):
    grey = pillow.fromarray(ramp().astype(np.uint8))
    if mode == "I;16":
        picture, kind = pillow.fromarray((ramp() * 257).astype(np.uint16)), "PNG"
    elif mode == "I":
        picture, kind = pillow.fromarray((ramp() * 257).astype(np.int32)), "TIFF"
    elif mode == "F":
        picture, kind = pillow.fromarray((ramp() / 255).astype(np.float32)), "TIFF"
    else:
        picture, kind = grey.convert(mode), "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    for channels, wanted in ((1, "L"), (3, "RGB"), (4, "RGBA")):
        seen = Image(32, 8, channels=channels).read(as_cell(picture, kind))
        # A picture in colours becomes grey last of all, as stock pipelines have it.
        assert seen.mode == ("RGB" if wanted == "L" and mode in ("LA", "P", "RGB", "RGBA", "CMYK", "YCbCr") else wanted)
        values = np.asarray(seen).reshape(4, 256, -1)[..., 0].astype(int)
        if mode not in ("1", "P"):  # two levels, and Pillow's palette of 216 colours
            assert np.abs(values - ramp()).max() <= 2, (mode, channels)


def test_hidden_colours_do_not_come_through():
    x = np.zeros((8, 8, 4), np.uint8)
    x[:, :4] = (0, 160, 0, 255)
    x[:, 4:] = (255, 0, 255, 0)
    palette = pillow.fromarray(np.repeat([[0] * 4 + [1] * 4], 8, 0).astype(np.uint8), mode="P")
    palette.putpalette([0, 160, 0, 255, 0, 255])
    for cell in (as_cell(pillow.fromarray(x)), as_cell(palette, transparency=1)):
        seen = np.asarray(Image(32, 8).read(cell))
        assert (seen[:, :4] == (0, 160, 0)).all() and (seen[:, 4:] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation):
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:20, :30], upright[:20, 30:], upright[20:, :30] = (220, 0, 0), (0, 200, 0), (0, 0, 220)
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, 3),
    }[orientation]
    exif = pillow.Exif()
    exif[0x0112] = orientation
    seen = Image(32, 8).read(as_cell(pillow.fromarray(np.ascontiguousarray(turned)), exif=exif))
    assert (np.asarray(seen) == upright).all()


def spoil(folder: Path) -> list[str]:
    """Five files that are no pictures, whatever they are called."""
    whole = support.picture(np.random.default_rng(5), 64)
    jpeg = as_cell(pillow.open(io.BytesIO(whole)), "JPEG")["bytes"]
    bad = {
        "cut.png": whole[: len(whole) // 2],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "empty.jpg": b"",
        "page.jpg": b"<!doctype html><html><body>404</body></html>" * 9,
        "head.png": whole[:30],
    }
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    return sorted(bad)


def test_unreadable_files_are_named(pictures):
    bad = spoil(pictures)
    good, reasons = read_all(load(Data(name=str(pictures)), Image(32, 8)))
    assert len(good) == 48
    assert sorted(reasons) == bad
    assert all(reasons.values())


def test_archive_with_metadata(tmp_path, capfd):
    random = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for i in range(12):
            archive.writestr(f"{i}.png", support.picture(random))
    rows = [f"{i}.png,{i}" for i in range(1, 12)] + ["lost.png,5"]
    (tmp_path / "metadata.csv").write_text("file_name,weight\n" + "\n".join(rows))
    loaded = load(Data(name=str(tmp_path)), Image(32, 8))
    assert len(read_all(loaded)[0]) == 12
    assert "1 rows without a file, 1 files without a row" in capfd.readouterr().out
    assert loaded.label is None
    assert sorted(w for w in loaded.table["weight"] if w is not None) == list(range(1, 12))


def test_columns_are_found_by_type_and_not_guessed(tmp_path):
    import datasets

    cells, _ = support.cells("image", 6)
    columns = {"front": cells, "mask": cells, "number": list(range(6))}
    features = {"front": datasets.Image(decode=False), "mask": datasets.Image(decode=False)}
    table = datasets.Dataset.from_dict(columns).cast(datasets.Features(features | {"number": datasets.Value("int64")}))
    table.to_parquet(tmp_path / "both.parquet")
    table.remove_columns("mask").to_parquet(tmp_path / "one.parquet")
    with pytest.raises(UserError, match=r"several columns.*front, mask.*--data.column"):
        load(Data(name=str(tmp_path / "both.parquet")), Image(32, 8))
    assert load(Data(name=str(tmp_path / "both.parquet"), column="mask"), Image(32, 8)).column == "mask"
    assert load(Data(name=str(tmp_path / "one.parquet")), Image(32, 8)).column == "front"
    with pytest.raises(UserError, match="'maks': no such column; did you mean mask"):
        load(Data(name=str(tmp_path / "both.parquet"), column="maks"), Image(32, 8))


@pytest.mark.parametrize("splits", [("train", "val"), ("train", "test"), ("dev", "train")])
def test_labels_go_by_name(tmp_path, splits):
    for split, classes in zip(splits, (("0", "1", "10", "2"), ("1", "10", "2")), strict=True):
        for name in classes if split == "train" or "dev" not in splits else ("1", "2", "10"):
            support.write_pictures(tmp_path / split / name, 2)
    if "dev" in splits:
        support.write_pictures(tmp_path / "train" / "0", 2)
    other = {"val": "validation", "dev": "validation", "test": "test"}[next(s for s in splits if s != "train")]
    first, second = (load(Data(name=str(tmp_path)), Image(32, 8), s) for s in ("train", other))
    assert same_names(first, second) == {"1", "10", "2"}
    assert first.table.features["label"].names == ["0", "1", "10", "2"]


# Refusals: before anything is built or written.


def refuse(argv: list[str], capfd) -> str:
    """The one line with which the command line refuses."""
    with pytest.raises(SystemExit) as refused:
        train.main([str(a) for a in argv])
    line = refused.value.code
    assert isinstance(line, str), (line, capfd.readouterr())
    assert line.startswith("train.py: ") and "\n" not in line
    assert len(line) < 600, line
    return line


TINY = "--modality.image_size 8 --modality.patch_size 4 --encoder.width 32 --encoder.depth 1 --encoder.heads 2".split()
TINY += "--device cpu --report_to none".split()

REFUSALS = [
    ("--modality.image_size 30 --modality.patch_size 8", r"image_size 30×30 .*patch_size 8; nearest that is: 32×32"),
    ("--objective.mask.ratio 1.0", r"objective.mask.ratio 1.0 is not in \(0, 1\); try 0.75"),
    ("--objective.mask.ratio 0", r"mask.ratio 0.* is not in \(0, 1\)"),
    ("--objective.mask.ratio=-0.5", r"mask.ratio -0.5 is not in \(0, 1\)"),
    ("--objective simclr --objective.temperature 0", r"temperature 0.* is not in \(0, inf\); try 0.1"),
    ("--learning_rat 1e-3", r"no option '--learning_rat'; did you mean --learning_rate\?"),
    ("--ratio 0.5", r"no option '--ratio'; did you mean --objective.mask.ratio\?"),
    ("--objective.mask.ration 0.5", r"did you mean --objective.mask.ratio\?"),
    ("--objective simclr --objective.mask.ratio 0.5", r"no option '--objective.mask.ratio'"),
    ("--objective mea", r"objective 'mea' is not one of .*; did you mean mae\?"),
    ("--modality pictures", r"modality 'pictures' is not one of image"),
    ("--encoder tinny", r"encoder.name 'tinny' is not one of tiny, small"),
    ("--encoder.heads 5", r"width 192 is not a multiple of heads 5"),
    ("--learning_rate fast", r"learning_rate.*fast"),
    ("--learning_rate -1", r"learning_rate -1.0 is not in \(0, inf\); try 0.0015"),
    ("--per_device_train_batch_size 0", r"per_device_train_batch_size 0 is not in \[1, inf\); try 64"),
    ("--save_total_limit 1", r"save_total_limit 1 is not in \[2, inf\); try 2"),
    ("--optim adam", r"optim.*adam"),
    ("--data.eval_fraction 1.5", r"data.eval_fraction 1.5 is not in \[0, 1\); try 0.01"),
    ("--report_to mlflow", r"report_to 'mlflow' is not one of"),
    ("--config nowhere.yaml", r"no config file 'nowhere.yaml'"),
    ("pictures", r"pictures"),
]


@pytest.mark.parametrize(("argv", "says"), REFUSALS, ids=[argv for argv, _ in REFUSALS])
def test_wrong_options(argv, says, tmp_path, capfd):
    line = refuse([*argv.split(), "--output_dir", tmp_path / "run"], capfd)
    assert re.search(says, line), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("learning_rates: 1e-3", "no option 'learning_rates'; did you mean learning_rate?"),
        ("objective: {name: mae, mask: {ration: 0.5}}", "no option 'objective.mask.ration'; did you mean"),
        ("objective: {name: [}", "is not YAML"),
        ("- a\n- b", "holds no options"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        ("modality: {class_path: os.system}", "no option 'modality.class_path'"),
        ("max_steps: many", "max_steps"),
    ],
)
def test_wrong_configuration_files(content, says, tmp_path, capfd):
    (tmp_path / "my.yaml").write_text(content)
    line = refuse(["--config", tmp_path / "my.yaml", "--output_dir", tmp_path / "run"], capfd)
    assert says in line
    assert not (tmp_path / "run").exists()


def test_wrong_data(tmp_path, pictures, capfd, monkeypatch):
    def refused(*argv):
        line = refuse([*TINY, *argv, "--output_dir", tmp_path / "run"], capfd)
        assert not (tmp_path / "run").exists(), line
        return line

    (tmp_path / "empty").mkdir()
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "a.wav").write_bytes(b"RIFF")
    assert "it is empty" in refused("--data", tmp_path / "empty")
    assert "look like modality audio" in refused("--data", tmp_path / "music")
    assert "no such file or folder" in refused("--data", tmp_path / "nowhere")
    assert "did you mean digits" in refused("--data", "digit")
    assert "has no split 'tain'; it has train" in refused("--data", pictures, "--data.split", "tain")
    assert "fewer than a step's batch of 500" in refused("--data", pictures, "--per_device_train_batch_size", "500")
    assert "no GPU is visible; use --device cpu" in refused("--data", pictures, "--device", "cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "wandb: it is not installed; pip install wandb" in refused("--data", pictures, "--report_to", "wandb")


def test_wrong_output_folders(tmp_path, pictures, capfd):
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    assert "holds other files" in refuse([*TINY, "--data", pictures, "--output_dir", folder], capfd)
    assert "is a file" in refuse([*TINY, "--data", pictures, "--output_dir", folder / "thesis.tex"], capfd)
    assert [p.name for p in folder.iterdir()] == ["thesis.tex"]


def test_deepspeed_settings(tmp_path, pictures, capfd):
    run = Run(per_device_train_batch_size=4, gradient_accumulation_steps=3)
    auto = dict.fromkeys(engine.BATCH_KEYS, "auto") | {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto", "overlap_comm": True},
        "gradient_clipping": "auto",
        "optimizer": "auto",
        "fp16": {"enabled": "auto"},
        "bf16": {"enabled": False},
    }
    run.deepspeed = auto
    made = engine.settings(run, 2)
    assert [made[key] for key in engine.BATCH_KEYS] == [24, 4, 3]
    assert made["zero_optimization"]["overlap_comm"] and '"auto"' not in json.dumps(made)
    for key, value in zip(engine.BATCH_KEYS, (25, 5, 2), strict=True):
        run.deepspeed = {key: value}
        with pytest.raises(UserError, match=f"deepspeed {key} {value} clashes with our"):
            engine.settings(run, 2)
    for given in ({"optimizer": {"type": "Adam"}}, {"fp16": {"enabled": True}}, {"scheduler": {"type": "WarmupLR"}}):
        run.deepspeed = given
        with pytest.raises(UserError, match="leave it out"):
            engine.settings(run, 2)
    (tmp_path / "clash.json").write_text('{"train_batch_size": 7}')
    (tmp_path / "broken.json").write_text('{"train_batch_size": ')
    for name, says in (("clash", "train_batch_size 7 clashes"), ("broken", "not JSON"), ("none", "no such file")):
        argv = [*TINY, "--data", pictures, "--deepspeed", tmp_path / f"{name}.json", "--output_dir", tmp_path / "run"]
        assert says in refuse(argv, capfd)
        assert not (tmp_path / "run").exists()


# The command line itself.


def command_line(*argv, cwd=support.ROOT) -> tuple[int, str, str, float]:
    """Exit code, output, errors and seconds of processor time of a fresh Python."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    process = subprocess.Popen(
        [sys.executable, *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment,
    )
    output, errors = process.stdout.read(), process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, output, errors, used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--learning_rat", "1"], "did you mean --learning_rate?"),
        (["--objective.mask.ratio", "2"], "mask.ratio 2.0 is not in (0, 1); try 0.75"),
    ],
)
def test_a_refusal_is_one_line_on_stderr(argv, says, tmp_path):
    code, output, errors, _ = command_line("train.py", *argv, "--output_dir", tmp_path / "run")
    assert code == 1
    assert says in errors and errors.count("\n") == 1
    assert not output and not (tmp_path / "run").exists()


def test_an_empty_folder_is_one_line_on_stderr(tmp_path):
    (tmp_path / "data").mkdir()
    code, _, errors, _ = command_line("train.py", "--data", tmp_path / "data", "--output_dir", tmp_path / "run")
    assert code == 1
    assert "no file that modality image reads (it is empty)" in errors and errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_help_and_refusals_are_as_fast_as_torch():
    """Processor time, the least of several, so that what else the machine does matters little."""
    runs = {"torch": ["-c", "import torch"], "help": ["train.py", "--help"]}
    runs["refusal"] = ["train.py", "--objective.mask.ratio", "2"]
    times = {name: [] for name in runs}
    for _ in range(3):
        for name, argv in runs.items():
            times[name].append(command_line(*argv)[3])
    least = {name: min(values) for name, values in times.items()}
    assert least["help"] <= 1.2 * least["torch"], least
    assert least["refusal"] <= 1.2 * least["torch"], least


@pytest.mark.parametrize("argv", [["--help"], ["--objective.mask.ratio", "2"], ["--print_config"]])
def test_heavy_libraries_wait_for_good_arguments(argv):
    program = (
        f"import sys, train\ntry:\n    train.main({argv!r})\nexcept SystemExit:\n    pass\n"
        "heavy = {'transformers', 'datasets', 'deepspeed', 'sklearn', 'pandas', 'torchvision', 'torchaudio'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    _, output, errors, _ = command_line("-c", program)
    assert "heavy: []" in output, output[-300:] + errors


# While it trains.


def command(folder, data, **more) -> list[str]:
    options = {
        "output_dir": folder,
        "data": data,
        "objective.decoder.width": 32,
        "objective.decoder.depth": 1,
        "per_device_train_batch_size": 8,
        "max_steps": 8,
        "logging_steps": 1,
        "data.eval_fraction": 0.2,
    } | {key.replace("__", "."): value for key, value in more.items()}
    return [*TINY, *(part for key, value in options.items() for part in (f"--{key}", str(value)))]


def run(argv: list[str]) -> None:
    train.main(argv)


def broken(argv: list[str], steps: list[int], how: str, rank: int | None = None) -> list[str]:
    """Train at each ZeRO stage with a loss that is not finite in those steps; returns what `main` said at the end."""
    from triptych.objectives import MAE, OBJECTIVES

    class Broken(MAE):
        calls = 0

        def forward(self, views):
            out = super().forward(views)
            if self.training:
                type(self).calls += 1
                if self.calls in steps and rank in (None, int(os.environ.get("RANK", 0))):
                    out["loss"] = out["loss"] * torch.nan if how == "product" else out["loss"] + torch.inf
                    out["features"] = out["features"] * torch.nan
            return out

    OBJECTIVES["mae"] = Broken
    said = []
    folder = argv[argv.index("--output_dir") + 1]
    for stage in range(4):
        Broken.calls = 0
        zero = support.ROOT / f"configs/deepspeed/zero{stage}.json"
        try:
            train.main([*argv, "--output_dir", f"{folder}{stage}", "--deepspeed", str(zero)])
            said.append("")
        except SystemExit as error:
            said.append(error.code)
    return said


@pytest.mark.fault(
    "two steps in a row that are not finite",
    "ends; weights and moments stay finite",
    "steps 6 and 7 were not finite; last good checkpoint",
)
@pytest.mark.parametrize(("how", "ranks", "rank"), [("product", 1, None), ("sum", 1, None), ("product", 2, 1)])
def test_loss_that_is_not_finite(launch, pictures, tmp_path, how, ranks, rank):
    argv = command(
        tmp_path / "run",
        pictures,
        save_steps=1,
        save_total_limit=20,
        max_steps=8,
        per_device_train_batch_size=8 // ranks,
    )
    given = {"argv": argv, "steps": [3, 6, 7], "how": how, "rank": rank}
    ended = launch(broken, ranks, **given)
    first, *others = ended.results()
    assert all(code == 1 for said in others for code in said)  # one rank speaks, the others are told
    for stage, line in enumerate(first):
        folder = tmp_path / f"run{stage}"
        assert "steps 6 and 7 were not finite" in line and "\n" not in line, (stage, line)
        assert f"last good checkpoint: {folder / 'checkpoint-6'}" in line
        weights = [checkpoint.read(folder / f"checkpoint-{step}")[:2] for step in range(1, 7)]
        for kind in (0, 1):  # parameters and moments
            tensors = [w[kind] for w in weights]
            assert all(v.isfinite().all() for w in tensors for v in w.values() if v.is_floating_point())
            assert all(torch.equal(tensors[1][k], tensors[2][k]) for k in tensors[1]), stage  # step 3
            assert all(torch.equal(tensors[4][k], tensors[5][k]) for k in tensors[4]), stage  # step 6
            assert not all(torch.equal(tensors[2][k], tensors[3][k]) for k in tensors[2]), stage
    assert ended.output().count("step 3: the gradient is not finite") == 4


@pytest.mark.fault(
    "unreadable pictures among good ones",
    "replaced, counted, named in bad_samples.jsonl",
    "5 unusable samples replaced",
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_unusable_samples_are_replaced_counted_and_named(launch, pictures, tmp_path, ranks):
    bad = spoil(pictures)
    more = {"max_steps": 24, "per_device_train_batch_size": 8 // ranks, "eval_steps": 8}
    more["data__eval_fraction"] = 0.1 if ranks == 1 else 0.0  # held-out rows that fill no batch are not read
    argv = command(tmp_path / "run", pictures, **more)
    ended = launch(run, ranks, argv=argv)
    ended.results()
    lines = [json.loads(line) for line in (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()]
    assert sorted(Path(line["source"]).name for line in lines) == bad  # of the held-out part, too
    order = sorted(p.name for p in pictures.iterdir())
    assert all(order[line["row"]] == Path(line["source"]).name and line["reason"] for line in lines)
    assert "5 unusable samples replaced" in ended.output()


@pytest.mark.fault(
    "too many unreadable samples", "ends; a higher limit continues", "more than 2 unusable samples (data.max_bad)"
)
def test_too_many_unusable_samples_stop_the_run(launch, pictures, tmp_path):
    spoil(pictures)
    ended = launch(run, 1, argv=command(tmp_path / "run", pictures, data__max_bad=2))
    assert ended.wait() == [1]
    line = ended.output().splitlines()[-1]
    assert line.startswith("train.py: more than 2 unusable samples (data.max_bad), such as ")
    assert "bad_samples.jsonl" in line
    # Raising the limit is the way out, and continues the run.
    launch(run, 1, argv=command(tmp_path / "run", pictures, data__max_bad=20)).results()


@pytest.mark.fault("nothing but unreadable samples", "ends", "no usable sample in ...")
@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_unusable_samples(launch, tmp_path, workers):
    (tmp_path / "data").mkdir()
    for i in range(30):
        (tmp_path / "data" / f"{i}.png").write_bytes(b"no picture")
    ended = launch(run, 1, argv=command(tmp_path / "run", tmp_path / "data", dataloader_num_workers=workers))
    assert ended.wait() == [1]
    line = ended.output().splitlines()[-1]
    assert line.startswith("train.py: no usable sample in ") and "not a readable picture" in line, line
