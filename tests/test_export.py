"""Exports: stock `transformers` loads them, sees our pictures as we do, and computes what we compute."""

import io
import json
import os
import re
import subprocess
import sys

import datasets
import numpy as np
import pytest
import soundfile
import support
import torch
import yaml
from finished import finished
from PIL import Image as pillow
from support import WITHOUT_US
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    ViTModel,
    pipeline,
)

from triptych import export as module
from triptych.evaluation.card import is_hub_id
from triptych.evaluation.features import extract
from triptych.export import export
from triptych.modalities import EVALUATION, MODALITIES, View
from triptych.objectives import OBJECTIVES
from triptych.training.errors import UserError
from triptych.training.settings import Data
from triptych.training.sources import load

FILES = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
SQUARE = {"image_size": 16, "patch_size": 4, "channels": 3}


@pytest.fixture(scope="module")
def mae(tmp_path_factory):
    """An export of MAE's encoder, and the objective it came from."""
    run = tmp_path_factory.mktemp("mae")
    _, objective = finished("image", "mae", run, SQUARE)
    return export(run), objective


def picture(mode: str, size: tuple[int, int]) -> pillow.Image:
    random = np.random.default_rng(0)
    if mode == "P+transparency":
        made = picture("RGB", size).quantize(16)
        made.info["transparency"] = 3
        return made
    bands = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode if mode != "P" else "RGB"]
    array = random.integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    made = pillow.fromarray(array[..., 0] if bands == 1 else array, "RGB" if mode == "P" else mode)
    return made.quantize(32) if mode == "P" else made


def stored(made: pillow.Image) -> bytes:
    file = io.BytesIO()
    made.save(file, "TIFF" if made.mode == "CMYK" else "PNG")
    return file.getvalue()


def evaluation_view(image, contents: list[bytes]) -> torch.Tensor:
    """Pixels as our evaluation view has them, pieces put together again."""
    samples = [image.view(image.read({"bytes": c, "path": None}), EVALUATION, 0) for c in contents]
    data = image.prepare(image.collate(samples, torch.zeros(len(samples), dtype=torch.long))).data
    (rows, columns), (height, width) = image.grid, image.tile
    pieces = data.view(-1, rows, columns, image.channels, height, width)
    return pieces.permute(0, 3, 1, 4, 2, 5).reshape(-1, image.channels, *image.extent)


def hidden_states(objective, pixels: torch.Tensor) -> list[torch.Tensor]:
    backbone = objective.backbone
    view = View(**backbone.modality.cut(pixels), seed=torch.zeros(len(pixels), dtype=torch.long))
    with torch.no_grad():
        return backbone.encoder(*backbone.tokens(view), every_layer=True)


@pytest.mark.parametrize(
    "settings",
    [SQUARE, {"image_size": [8, 16], "patch_size": 4, "positions": "learned"}, {"image_size": 32, "patch_size": 16}],
)
@pytest.mark.parametrize("objective", ["mae", "masked", "simclr"])
def test_hidden_states_are_ours(objective, settings, tmp_path):
    _, ours = finished("image", objective, tmp_path, settings | {"channels": 3})
    folder = export(tmp_path)
    native, info = ViTModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    pixels = torch.randn(3, 3, *ours.backbone.modality.extent)
    with torch.no_grad():
        output = native.eval()(pixels, output_hidden_states=True)
    layers = hidden_states(ours, pixels)
    torch.testing.assert_close(output.last_hidden_state, layers[-1], atol=1e-5, rtol=0)
    for mine, its in zip(layers[:-1], output.hidden_states[:-1], strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-6)
    square = len(set(ours.backbone.modality.extent)) == 1
    masked = objective == "masked" and square
    kind = "ViTForMaskedImageModeling" if masked else "ViTModel"
    assert json.loads((folder / "config.json").read_text())["architectures"] == [kind]


@pytest.mark.parametrize("objective", ["mae", "masked"])
def test_pooler_output_is_the_cls_at_every_load(objective, tmp_path):
    finished("image", objective, tmp_path, SQUARE)
    folder, pixels = export(tmp_path), torch.randn(2, 3, 16, 16)
    for _ in range(2):
        with torch.no_grad():
            output = AutoModel.from_pretrained(folder)(pixels)
        assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])


def test_the_masked_head_goes_along(tmp_path):
    _, objective = finished("image", "masked", tmp_path, SQUARE | {"target": "absolute"})
    native, info = AutoModelForMaskedImageModeling.from_pretrained(export(tmp_path), output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    pixels, hide = torch.randn(2, 3, 16, 16), torch.rand(2, 16) < 0.5
    backbone = objective.backbone
    view = View(**backbone.modality.cut(pixels), seed=torch.zeros(2, dtype=torch.long))
    with torch.no_grad():
        guess = objective.head(backbone.encode(view, hide).pieces)
        output = native(pixels, bool_masked_pos=hide)
    error = backbone.modality.error(guess[hide], view.data[hide]).mean()
    torch.testing.assert_close(output.loss, error, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(backbone.modality.cut(output.reconstruction)["data"], guess, atol=1e-5, rtol=0)


def test_a_classifier_lacks_only_its_head_and_learns(mae):
    folder, _ = mae
    model, info = AutoModelForImageClassification.from_pretrained(folder, num_labels=3, output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"} and not info["mismatched_keys"]
    torch.manual_seed(0)
    pixels, labels = torch.randn(12, 3, 16, 16), torch.arange(12) % 3
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(20):
        loss = model.train()(pixels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("size", [(16, 16), (8, 8), (40, 23), (5, 100)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "P+transparency", "CMYK", "RGBA", "LA"])
def test_the_processor_s_pixels_are_our_evaluation_view(mode, size, mae):
    folder, objective = mae
    content = stored(picture(mode, size))
    theirs = AutoImageProcessor.from_pretrained(folder)(pillow.open(io.BytesIO(content)), return_tensors="pt")
    assert torch.equal(theirs["pixel_values"], evaluation_view(objective.backbone.modality, [content]))


@pytest.mark.parametrize(
    "mode, settings",
    [
        ("L", {"channels": 1}),
        ("L", {"channels": 1, "mean": 0.13, "std": 0.31}),
        ("RGBA", {"channels": 4}),
        ("RGB", {"channels": 3, "image_size": [8, 24]}),
        ("RGB", {"channels": 3, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}),
    ],
)
def test_so_they_are_with_other_channels_sizes_and_statistics(mode, settings, tmp_path):
    _, objective = finished("image", "mae", tmp_path, SQUARE | settings)
    folder = export(tmp_path)
    contents = [stored(picture(mode, size)) for size in ((16, 16), (30, 21))]
    pictures = [pillow.open(io.BytesIO(c)) for c in contents]
    theirs = AutoImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt")["pixel_values"]
    ours = evaluation_view(objective.backbone.modality, contents)
    if settings.get("channels") == 1:  # goes out with three, of which it sees the grey
        assert theirs.shape[1] == 3
        torch.testing.assert_close(theirs, ours.expand(-1, 3, -1, -1), atol=1e-5, rtol=0)
    else:
        assert torch.equal(theirs, ours)
    with torch.no_grad():
        output = AutoModel.from_pretrained(folder)(theirs).last_hidden_state
    torch.testing.assert_close(output, hidden_states(objective, ours)[-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mean, std", [([0.5, 0.5], 0.5), (0.5, [0.5] * 4), (0.5, 0.0), (0.5, [0.1, 0.1, -1.0])])
def test_statistics_that_do_not_fit_are_refused(mean, std, tmp_path):
    with pytest.raises(ValueError, match="modality.(mean|std)"):
        finished("image", "mae", tmp_path, SQUARE | {"mean": mean, "std": std})


def test_a_folder_holds_what_save_pretrained_writes_and_a_card(mae):
    folder, _ = mae
    assert {f.name for f in folder.iterdir()} == FILES
    assert not [f for f in folder.parent.iterdir() if f.name.startswith(".exported")]
    assert "transformers_version" in json.loads((folder / "config.json").read_text())
    assert folder.stat().st_mode & 0o777 == 0o755


def test_the_card_is_valid_and_keeps_paths_to_itself(tmp_path, monkeypatch):
    from huggingface_hub import ModelCard

    data = tmp_path / "secret" / "pictures"
    data.mkdir(parents=True)
    run = tmp_path / "run"
    findings = ",".join(f"finding {i}" for i in range(40))  # longer than any name of a file
    (tmp_path / "unsaid" / "labelled").mkdir(parents=True)  # where the run was called from
    told = {"data": {"name": str(data), "label_column": findings}, "probe_data": "unsaid/labelled"}
    finished("image", "mae", run, SQUARE, init_from="google/some-vit", **told)
    card = ModelCard.load(export(run, license="apache-2.0") / "README.md")
    metadata = card.data.to_dict()
    assert metadata["library_name"] == "transformers" and metadata["license"] == "apache-2.0"
    assert metadata["base_model"] == "google/some-vit" and "datasets" not in metadata
    assert {"mae", "image"} <= set(metadata["tags"])
    assert "Data: `pictures`" in card.text and "secret" not in card.content and "unsaid" not in card.content
    settings = yaml.safe_load(card.text.split("```yaml\n")[1].split("```")[0])
    assert settings["objective"]["name"] == "mae" and settings["modality"]["image_size"] == 16
    (tmp_path / "google" / "some-vit").mkdir(parents=True)  # beside the run, wherever the export is called from
    card = ModelCard.load(export(run, to=str(tmp_path / "again")) / "README.md")
    assert card.data.base_model is None and card.data.license is None


@pytest.mark.parametrize("name", ["./runs/x", "/tmp/x", "~/x", "runs/a/b", "x" * 100])
def test_a_path_is_no_base_model(name, tmp_path):
    assert not is_hub_id(name, tmp_path)
    assert is_hub_id("google/vit-base-patch16-224", tmp_path)


def blocks(folder) -> list[str]:
    return re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), re.S)


@pytest.mark.parametrize("weights", ["student", "teacher"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("modality", MODALITIES)
def test_what_a_card_tells_people_to_run_runs(modality, objective, weights, tmp_path, monkeypatch, capsys):
    _, made = finished(modality, objective, tmp_path)
    if weights == "teacher" and made.averaged() is None:
        with pytest.raises(UserError, match="weights teacher: this objective has none"):
            export(tmp_path, weights=weights)
        return
    folder = export(tmp_path, weights=weights, dtype="float32" if weights == "student" else "bfloat16")
    encoder = made.backbone if weights == "student" else made.averaged()
    monkeypatch.chdir(folder)
    features, fine_tuning = blocks(folder)
    capsys.readouterr()
    exec(features, {})
    assert capsys.readouterr().out == f"torch.Size([{encoder.pooled_width}])\n"
    scope: dict = {}
    exec(fine_tuning, scope)
    bias = encoder.encoder.norm.bias if weights == "student" else encoder.encoder.norm.bias.bfloat16().float()
    assert {p.dtype for p in scope["model"].parameters()} == {torch.float32}
    norm = [m for m in scope["model"].modules() if isinstance(m, torch.nn.LayerNorm)]
    assert scope["model"].num_labels == 10 and any(
        torch.equal(m.bias, bias) for m in norm if m.bias.shape == bias.shape
    )
    assert type(scope["processor"]).__name__ == type(encoder.modality.processor()).__name__
    assert not [
        f for f in folder.rglob("*") if f.is_file() and f.suffix not in (".json", ".safetensors", ".md", ".txt")
    ]


@pytest.mark.parametrize("objective", ["mae", "masked"])
@pytest.mark.parametrize("modality, settings", [*((m, {}) for m in MODALITIES), ("image", SQUARE)])
def test_the_pipeline_that_a_card_names_runs(modality, settings, objective, tmp_path):
    from huggingface_hub import ModelCard

    finished(modality, objective, tmp_path / "run", settings)
    folder = export(tmp_path / "run")
    inputs = {
        "image": [picture(mode, (20, 30)) for mode in ("L", "RGB", "RGBA", "P")],
        "audio": [support.tone(0.1), support.tone(1.0)],
        "text": ["river stone <mask> garden"],
    }[modality]
    named = ModelCard.load(folder / "README.md").data.pipeline_tag
    pipe = pipeline(named, model=str(folder))
    for value in inputs:
        assert len(pipe(value))
    if modality == "image":
        with torch.no_grad():
            features = torch.tensor(pipe(inputs[1]))[0]
            native = AutoModel.from_pretrained(folder)
            theirs = AutoImageProcessor.from_pretrained(folder)(inputs[1], return_tensors="pt")
        torch.testing.assert_close(features, native(**theirs).last_hidden_state[0], atol=1e-5, rtol=0)


def test_an_encoder_that_no_pipeline_serves_names_none(tmp_path):
    finished("image", "mae", tmp_path, SQUARE | {"channels": 4})
    assert "pipeline_tag" not in (export(tmp_path) / "README.md").read_text()


def pictures(folder):
    random = np.random.default_rng(0)
    for mode in ("RGB", "L", "P", "P+transparency", "CMYK", "RGBA", "LA"):
        for size in ((16, 16), (9, 7), (90, 30)):
            suffix = "tiff" if mode == "CMYK" else "png"
            (folder / f"{mode}{size[0]}.{suffix}").write_bytes(stored(picture(mode, size)))
    for bits in (8, 12):
        deep = random.integers(0, 2**bits, (20, 30)).astype(np.uint16)
        pillow.fromarray(deep).save(folder / f"deep{bits}.png")
    np.save(folder / "bytes.npy", random.integers(0, 256, (20, 30), dtype=np.uint8))
    np.save(folder / "deep.npy", random.integers(0, 5000, (20, 30, 1)))
    (folder / "white.dcm").write_bytes(support.dicom(random.integers(0, 4096, (20, 30)), kind="MONOCHROME1"))
    (folder / "sloped.dcm").write_bytes(support.dicom(random.integers(0, 1024, (20, 30)), RescaleSlope=2))
    turned = pillow.Exif()
    turned[0x0112] = 6
    picture("RGB", (40, 20)).save(folder / "turned.jpg", exif=turned)
    pillow.fromarray(deep).save(folder / "turned.png", exif=turned)
    picture("L", (30, 20)).save(folder / "small.jpg")


def sounds(folder):
    random = np.random.default_rng(0)
    for rate in (8_000, 16_000, 44_100):
        for seconds in (0.03, 0.175, 0.35, 1.0):  # the window has 0.175 s
            for channels in (1, 2):
                wave = 0.1 * random.standard_normal((round(rate * seconds), channels))
                soundfile.write(folder / f"{rate}-{seconds}-{channels}.flac", wave, rate)


def texts(folder):
    lines = [
        "river stone",
        " ".join(support.sentences(20)),
        "Ünïcödé 🙂 漢字 \u200b e\u0301",
        "tab\tand  two spaces ",
        "",
        "   ",
        "x" * 200,
        "a <mask> b </s> <s> <pad> <unk>",  # words like any other
    ]
    datasets.Dataset.from_dict({"text": lines}).to_json(str(folder / "all.jsonl"), force_ascii=False)


INPUTS = {"image": pictures, "audio": sounds, "text": texts}
# How a stranger reads each file; `features` is the card's.
READ = {
    "arrays": "{f.name: features(read(f)) for f in files}",
    "image": "{f.name: features(Image.open(f)) for f in files if f.suffix not in ('.npy', '.dcm')}",
    "audio": "{f.name: features(*soundfile.read(f, dtype='float32')) for f in files}",
    "text": "{str(i): features(t) for i, t in enumerate(json.loads(l)['text'] for l in open(files[0])) if t.strip()}",
}


@pytest.mark.parametrize(
    "modality, objective, settings",
    [
        ("image", "masked", {"channels": 1, "mean": 0.3}),
        ("image", "mae", SQUARE | {"channels": 4}),
        ("image", "mae", SQUARE | {"value_range": [0, 4095]}),
        ("audio", "mae", {}),
        ("text", "masked", {}),
    ],
)
def test_the_probe_s_features_are_those_of_stock_transformers(modality, objective, settings, tmp_path):
    _, made = finished(modality, objective, tmp_path / "run", settings)
    folder, data = export(tmp_path / "run"), tmp_path / "data"
    data.mkdir()
    INPUTS[modality](data)
    script = (
        WITHOUT_US
        + "import json, pathlib, soundfile, torch\n"
        + blocks(folder)[0].replace('folder = "."', f'folder = "{folder}"')
    )
    script += "files = sorted(pathlib.Path(sys.argv[1]).iterdir())\n"
    arrays = modality == "image" and made.backbone.modality.arrays
    script += f"torch.save({READ['arrays' if arrays else modality]}, sys.argv[2])\n"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-I", "-c", script, str(data), "features.pt"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr[-3000:]
    theirs = torch.load(tmp_path / "features.pt", weights_only=True)
    rows = load(Data(name=str(data)), made.backbone.modality)
    ours = extract(made.backbone, rows, batch=5)
    cells = rows.table[rows.column][:]
    names = [os.path.basename(c["path"]) if isinstance(c, dict) else str(i) for i, c in enumerate(cells)]
    beside = {n for n in names if n.endswith((".npy", ".dcm"))} if modality == "image" and not arrays else set()
    assert not ours.bad and {names[i] for i in ours.row} - beside == theirs.keys() and len(theirs) >= 5
    for i, vector in zip(ours.row, ours.x["native"], strict=True):
        if names[i] in beside:  # the card of an encoder of bytes has no lines for them
            continue
        np.testing.assert_allclose(vector, theirs[names[i]].numpy(), atol=2e-5, err_msg=names[i])


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    finished("image", "mae", tmp_path / "run")
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="other is not empty.*--to"):
        export(tmp_path / "run", to=str(other))
    assert [f.name for f in other.iterdir()] == ["notes.txt"]


@pytest.mark.fault("an export that fails midway", "nothing is left", "the reason")
def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    finished("image", "mae", tmp_path / "run")
    monkeypatch.setattr(module, "card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(tmp_path / "run", to=str(tmp_path / "new"))
    assert [f.name for f in tmp_path.iterdir()] == ["run"]


def test_the_teacher_is_exported_when_asked_for(tmp_path):
    _, byol = finished("image", "byol", tmp_path, SQUARE)
    pixels = torch.randn(2, 3, 16, 16)
    outputs = {}
    for weights in ("student", "teacher"):
        native = AutoModel.from_pretrained(export(tmp_path, to=str(tmp_path / weights), weights=weights))
        with torch.no_grad():
            outputs[weights] = native(pixels).pooler_output
            view = View(**byol.backbone.modality.cut(pixels), seed=torch.zeros(2, dtype=torch.long))
            ours = (byol.backbone if weights == "student" else byol.teacher[0])(view)
        torch.testing.assert_close(outputs[weights], ours, atol=1e-5, rtol=0)
    assert (outputs["student"] - outputs["teacher"]).abs().max() > 0.01


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{run}", "--weights", "teacher"], "weights teacher: this objective has none"),
        (["{run}/nowhere"], "nowhere: no such run"),
        (["{empty}"], "holds no whole checkpoint"),
        (["{run}", "--push", "name"], "a repository is named user/name"),
    ],
)
def test_a_mistake_is_one_line(arguments, words, tmp_path, capsys):
    finished("image", "mae", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    places = {"run": tmp_path / "run", "empty": tmp_path / "empty"}
    with pytest.raises(SystemExit) as stop:
        module.main([a.format(**places) for a in arguments])
    assert words in str(stop.value) and "\n" not in str(stop.value) and str(stop.value).startswith("export.py: ")
    assert not (tmp_path / "run" / "exported").exists()


@pytest.mark.fault(
    "an export of a damaged checkpoint", "refused", "checkpoint-1 is damaged (model.safetensors has another SHA-256)"
)
def test_a_damaged_checkpoint_is_named_and_not_exported(tmp_path):
    finished("image", "mae", tmp_path)
    with open(tmp_path / "checkpoint-1" / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x07")
    with pytest.raises(
        UserError, match="all checkpoints are damaged .checkpoint-1: model.safetensors has another SHA-256"
    ):
        export(tmp_path)


STRANGER = (
    support.WITHOUT_US
    + """
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification
from PIL import Image
folder = sys.argv[1]
pixels = AutoImageProcessor.from_pretrained(folder)(Image.open(sys.argv[2]), return_tensors="pt")
with torch.no_grad():
    torch.save(AutoModel.from_pretrained(folder)(**pixels).last_hidden_state, sys.argv[3])
AutoModelForImageClassification.from_pretrained(folder)
"""
)


@pytest.mark.slow
def test_a_process_without_this_project_loads_it(mae, tmp_path):
    folder, objective = mae
    content = stored(picture("RGB", (20, 30)))
    (tmp_path / "picture.png").write_bytes(content)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    arguments = [str(folder), "picture.png", "features.pt"]
    command = [sys.executable, "-I", "-c", STRANGER, *arguments]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=120)
    ours = hidden_states(objective, evaluation_view(objective.backbone.modality, [content]))[-1]
    theirs = torch.load(tmp_path / "features.pt", weights_only=True)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
