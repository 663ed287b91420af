"""Families of pictures: equal to their native classes in every hidden state, before and after training, both ways."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from image_families import (
    CASES,
    SQUARE,
    VIEWS,
    WIDE,
    ours,
    pixels_of,
    published,
    randomised,
    started,
    vectors,
    view_of,
    worst,
)
from PIL import Image as pillow
from safetensors.torch import load_file
from torch.nn import functional

from triptych.encoders import backbone as backbones
from triptych.encoders import embeddings, encoder, positions
from triptych.encoders.native import FAMILIES, Native, make, start_from
from triptych.encoders.native import grid as grids
from triptych.evaluation.load import opened
from triptych.modalities import EVALUATION, Image
from triptych.modalities.image_processor import resized_extent, settings_from
from triptych.objectives import MAE, OBJECTIVES, Masked, SimCLR
from triptych.training.command_line import read
from triptych.training.errors import UserError


@pytest.fixture(autouse=True)
def quiet():
    torch.manual_seed(0)


@pytest.mark.parametrize("case", CASES)
def test_every_hidden_state_is_the_native_one(case, tmp_path):
    model = published(tmp_path, case)
    _, backbone = started(tmp_path)
    assert worst(model, backbone, pixels_of(backbone)) < 3e-6
    model, backbone = model.double(), backbone.double()
    for size in {None, VIEWS.get(case)}:  # of another grid than the table's, too
        assert worst(model, backbone, pixels_of(backbone, size).double()) < 1e-10


@pytest.mark.parametrize("rows, columns", [(4, 6), (5, 3)])
def test_rotations_of_any_grid(rows, columns, tmp_path):
    model = published(tmp_path, "dinov3_vit", rope_theta=100.0)
    _, backbone = started(tmp_path)
    assert worst(model, backbone, pixels_of(backbone, (4 * rows, 4 * columns))) < 3e-6


def equal(before: dict, after: dict) -> None:
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name


@pytest.mark.parametrize("case", CASES)
def test_what_came_in_goes_out(case, tmp_path):
    dropout = "attention_dropout" if case.startswith(("dinov3", "siglip")) else "hidden_dropout_prob"
    model = published(
        tmp_path / "in", case, **{dropout: 0.25, "initializer_range": 0.5} if "siglip" not in case else {dropout: 0.25}
    )
    start, backbone = started(tmp_path / "in")
    back = start.family.export(backbone)
    assert type(back) is type(model)
    equal(model.state_dict(), back.state_dict())
    back.save_pretrained(tmp_path / "out")
    equal(*(load_file(tmp_path / where / "model.safetensors") for where in ("in", "out")))
    before, after = (json.loads((tmp_path / where / "config.json").read_text()) for where in ("in", "out"))
    assert before == after and after[dropout] == 0.25


@pytest.mark.parametrize("objective", [MAE, Masked, SimCLR])
@pytest.mark.parametrize("case", CASES)
def test_after_ten_steps_the_export_is_ours(case, objective, tmp_path):
    published(tmp_path / "in", case)
    start, backbone = started(tmp_path / "in")
    made = objective(backbone.train())
    start.load_heads(made)
    optimizer = torch.optim.AdamW(made.parameters(), 1e-2)
    for step in range(10):
        views = [view_of(backbone, torch.randn(4, 3, *backbone.modality.extent)) for _ in made.views]
        views = [v.replace(seed=torch.arange(4) + 9 * step) for v in views]
        loss = made(views)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.isfinite()
    start.family.export(backbone.eval()).save_pretrained(tmp_path / "out")
    back, info = type(start.model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert worst(back.eval(), backbone, pixels_of(backbone)) < 3e-6
    assert worst(start.model, backbone, pixels_of(backbone)) > 1e-3


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.modality == "image"])
def test_from_nothing_by_name(family, tmp_path):
    sizes = {"width": 16, "depth": 2, "heads": 2}
    backbone = make(Image(32, 8, rescale="before", flip=0), family, **sizes).eval()
    randomised(backbone)
    back = FAMILIES[family].export(backbone)
    back.save_pretrained(tmp_path)
    assert worst(transformers.AutoModel.from_pretrained(tmp_path), backbone, pixels_of(backbone)) < 3e-6
    for module in backbone.modules():  # a parameter that is not there is not named
        assert all(hasattr(module, name) for name in getattr(module, "no_decay", ()))
    for name, objective in OBJECTIVES.items():
        fresh = make(Image(32, 8), family, **sizes)
        more = {"frozen_teacher": {"teacher": str(tmp_path)}, "diet": {"samples": 4}}.get(name, {})
        if name == "position" and not fresh.embedding.placed:
            with pytest.raises(ValueError, match="no table of places"):
                objective(fresh)
            continue
        made = objective(fresh, **more | objective.found(fresh.modality, **more))
        views = [
            view_of(backbone, torch.randn(4, 3, 32, 32)).replace(row=torch.arange(4), identity=torch.arange(4))
            for _ in made.views
        ]
        made(views)["loss"].backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters()), name


# What the table of faults has for pictures, planted one at a time. The suite must see each.


def plant(monkeypatch, name: str) -> None:
    coordinate, rotation = embeddings.GridEmbedding.coordinate, encoder.rotation
    resample, lead_content = positions.resample, lambda self: self.lead_content

    def moved(place, width, theta):
        place = place.clone()
        place[:, :3] += 1.0
        return rotation(place, width, theta)

    def with_leads(encoded, view):
        return torch.cat([encoded.leads.flatten(1, 2), encoded.pieces], dim=1).mean(1)

    def eps(made):
        return torch.nn.LayerNorm(made.width, 1e-6)

    def swapped(mlp, x):
        return mlp.down(mlp.activation(mlp.up(x)) * mlp.gate(x))

    replaced = {
        "no layer scale": (encoder.Scale, "forward", lambda _, x: x),
        "no qkv bias": (encoder.QKV, "forward", lambda qkv, x: functional.linear(x, qkv.weight)),
        "tanh-gelu for gelu": (
            encoder,
            "ACTIVATIONS",
            encoder.ACTIVATIONS | {"gelu": encoder.ACTIVATIONS["gelu_tanh"]},
        ),
        "gelu for tanh-gelu": (encoder, "ACTIVATIONS", encoder.ACTIVATIONS | {"gelu_tanh": functional.gelu}),
        "eps 1e-6 for 1e-12": (encoder.Architecture, "make_norm", eps),
        "gate and up swapped": (encoder.GatedMLP, "forward", swapped),
        "theta": (encoder, "rotation", lambda place, width, theta: rotation(place, width, 10_000.0)),
        "(x, y)": (embeddings.GridEmbedding, "coordinate", lambda *a: coordinate(*a).flip(-1)),
        "no 2π": (embeddings.GridEmbedding, "coordinate", lambda *a: coordinate(*a) / (2 * math.pi)),
        "corners": (embeddings.GridEmbedding, "coordinate", lambda e, at, grid: coordinate(e, at.float() - 0.5, grid)),
        "leads moved": (encoder, "rotation", moved),
        "antialias": (
            positions,
            "resample",
            lambda table, extent, grid, smooth: resample(table, extent, grid, not smooth),
        ),
        "no place of the CLS": (embeddings.GridEmbedding, "lead", lead_content),
        "registers are pieces": (backbones, "pool_pieces", with_leads),
    }
    monkeypatch.setattr(*replaced[name])


PLANTS = [
    ("dinov2", "no layer scale"),
    ("dinov3_vit", "no layer scale"),
    ("vit", "no qkv bias"),
    ("dinov3_vit", "no qkv bias"),
    ("vit", "tanh-gelu for gelu"),
    ("siglip_vision_model", "gelu for tanh-gelu"),
    ("vit", "eps 1e-6 for 1e-12"),
    ("dinov2, gated", "gate and up swapped"),
    ("dinov3_vit, gated", "gate and up swapped"),
    ("dinov3_vit", "theta"),
    ("dinov3_vit", "(x, y)"),
    ("dinov3_vit", "no 2π"),
    ("dinov3_vit", "corners"),
    ("dinov3_vit", "leads moved"),
    ("dinov2", "antialias"),
    ("dinov2_with_registers", "antialias"),
    ("deit", "no place of the CLS"),
    ("dinov2_with_registers", "registers are pieces"),
]


@pytest.mark.parametrize("case, fault", PLANTS)
def test_a_planted_fault_is_seen(case, fault, tmp_path, monkeypatch):
    plant(monkeypatch, fault)
    with pytest.raises(AssertionError):
        test_every_hidden_state_is_the_native_one(case, tmp_path)


def test_what_is_lost_on_the_way_is_seen(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # siglip's head
        patch.setattr(Native, "kept", property(lambda _: {}, lambda *_: None), raising=False)
        with pytest.raises((AssertionError, RuntimeError)):
            test_what_came_in_goes_out("siglip_vision_model", tmp_path / "kept")
    with monkeypatch.context() as patch:  # dropout
        brought = grids.native_of

        def without(model):
            made = brought(model)
            del made.config["hidden_dropout_prob"]
            return made

        patch.setattr(grids, "native_of", without)
        with pytest.raises(AssertionError):
            test_what_came_in_goes_out("vit", tmp_path / "config")


def checkpoints() -> list[Path]:
    """Real checkpoints of pictures, in a folder that `TRIPTYCH_CHECKPOINTS` names."""
    found = sorted(Path(os.environ.get("TRIPTYCH_CHECKPOINTS", os.devnull)).rglob("config.json"))
    kinds = {kind for f in FAMILIES.values() if f.modality == "image" for kind in (f.name, *f.wholes)}
    return [file.parent for file in found if json.loads(file.read_text()).get("model_type") in kinds]


@pytest.mark.parametrize("folder", checkpoints(), ids=str)
def test_a_real_checkpoint(folder, tmp_path):
    start, backbone = started(folder)
    model = getattr(transformers, start.family.base_class).from_pretrained(folder, dtype=torch.float32).eval()
    assert worst(model, backbone, pixels_of(backbone)) < 3e-6
    back = start.family.export(backbone)
    if start.family.name != "vit_mae":
        equal(model.state_dict(), back.state_dict())


# Processors.

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
PROCESSORS = {
    "vit": transformers.ViTImageProcessor(size={"height": 24, "width": 32}),
    "deit": transformers.DeiTImageProcessor(size={"height": 28, "width": 28}, crop_size={"height": 24, "width": 24}),
    "dinov2": transformers.BitImageProcessor(
        size={"shortest_edge": 27}, crop_size={"height": 24, "width": 24}, **IMAGENET
    ),
    "dinov2, wide": transformers.BitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 24, "width": 32}),
    "dinov2, as published": transformers.BitImageProcessor(size={"shortest_edge": 256}, **IMAGENET),
    "dinov3": transformers.DINOv3ViTImageProcessor(size={"height": 24, "width": 24}),
    "siglip": transformers.SiglipImageProcessor(size={"height": 24, "width": 24}),
}


def odd_pictures():
    random = np.random.default_rng(0)
    for bands in (1, 3, 4):
        for height, width in ((24, 24), (1, 1), (30, 90), (41, 13), (7, 5)):
            array = random.integers(0, 256, (height, width, bands), dtype=np.uint8)
            yield pillow.fromarray(array[..., 0] if bands == 1 else array)
    yield pillow.fromarray(random.integers(0, 2**16, (20, 31), dtype=np.uint16))


def seen(image, sample) -> torch.Tensor:
    data = image.prepare(image.collate([image.view(sample, EVALUATION, 0)], torch.zeros(1, dtype=torch.long))).data
    (rows, columns), (height, width) = image.grid, image.tile
    pieces = data.view(rows, columns, image.channels, height, width)
    return pieces.permute(2, 0, 3, 1, 4).reshape(1, image.channels, *image.extent)


@pytest.mark.parametrize("size", [None, 16, (8, 16)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_the_evaluation_view_is_the_processor_s(name, size, tmp_path):
    processor = PROCESSORS[name]
    image = Image(patch_size=4, **settings_from(processor, "it") | ({} if size is None else {"image_size": size}))
    image.published = processor
    if size is not None:
        processor = image.processor()  # with other sizes
        assert type(processor) is type(PROCESSORS[name])
    image.save(str(tmp_path))
    again = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    for picture in odd_pictures():
        sample = image.read(picture)
        ours = seen(image, sample)
        for which in (processor, again):
            assert torch.equal(which(sample, return_tensors="pt")["pixel_values"], ours), (picture.mode, picture.size)
    assert {k: v for k, v in again.to_dict().items() if k != "do_convert_rgb"} == {
        k: v for k, v in processor.to_dict().items() if k != "do_convert_rgb"
    }


def test_the_edge_of_a_resize_scales_with_the_crop():
    settings = settings_from(PROCESSORS["dinov2, as published"], "it")
    assert settings["image_size"] == 224 and resized_extent(Image(patch_size=14, **settings)) == (256, 256)
    image = Image(patch_size=14, **settings | {"image_size": 112})
    assert image.processor().size == {"shortest_edge": 128} and image.processor().crop_size["height"] == 112


@pytest.mark.parametrize(
    "change",
    [
        {"do_resize": False},
        {"resample": 1},
        {"resample": None},
        {"do_rescale": False},
        {"size": {"longest_edge": 9, "shortest_edge": 3}},
    ],
)
def test_a_processor_that_cannot_be_followed_is_refused(change):
    with pytest.raises(ValueError, match=f"it: its ViTImageProcessor has {next(iter(change))}"):
        settings_from(transformers.ViTImageProcessor(**change), "it")


@pytest.mark.parametrize(
    "kind, size, more",
    [
        ("MobileViTImageProcessor", {"shortest_edge": 28}, {}),  # blue comes first
        ("PoolFormerImageProcessor", {"shortest_edge": 24}, {"crop_pct": 0.8}),
        ("LevitImageProcessor", {"shortest_edge": 24}, {}),  # enlarges by 256 / 224
        ("EfficientNetImageProcessor", {"height": 24, "width": 24}, {}),  # normalises twice
    ],
)
def test_a_processor_that_does_more_than_it_says_is_refused(kind, size, more):
    processor = getattr(transformers, kind)(size=size, crop_size={"height": 24, "width": 24}, **more)
    with pytest.raises(ValueError, match=f"it: its {kind} does more to a picture than"):
        settings_from(processor, "it")


@pytest.mark.parametrize("mean, std", [(0.4, 0.3), ([0.4], [0.3])])
def test_a_processor_of_one_number_for_all_channels(mean, std):
    processor = transformers.ViTImageProcessor(size={"height": 24, "width": 24}, image_mean=mean, image_std=std)
    image = Image(patch_size=4, **settings_from(processor, "it"))
    for picture in odd_pictures():
        sample = image.read(picture)
        assert torch.equal(processor(sample, return_tensors="pt")["pixel_values"], seen(image, sample))


# The user's word.


@pytest.mark.parametrize(
    "case", ["vit", "deit", "ijepa", "siglip_vision_model", "dinov2", "dinov2_with_registers", "dinov3_vit"]
)
def test_another_size_is_the_native_interpolation(case, tmp_path):
    model = published(tmp_path / "in", case, image_size=24)
    start, backbone = started(tmp_path / "in", image_size=16)
    pixels = pixels_of(backbone)
    assert pixels.shape[-1] == 16
    more = {} if case.startswith("dino") else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        theirs = model(pixels, **more).last_hidden_state
    mine = ours(backbone, pixels)[-2]
    torch.testing.assert_close(mine, theirs, atol=3e-6, rtol=3e-6)
    start.family.export(backbone).save_pretrained(tmp_path / "out")
    back = transformers.AutoModel.from_pretrained(tmp_path / "out")
    assert worst(back, backbone, pixels) < 3e-6
    if case.startswith("dinov2"):  # the table is the checkpoint's
        equal(model.state_dict(), back.state_dict())
    _, note = start.family.adapted(start.modality, {"image_size": 16})
    assert (
        note.startswith("16×16 pixels instead of 24×24: ") and ("rotations" if "v3" in case else "6×6 to 4×4") in note
    )


@pytest.mark.parametrize("case", ["vit", "dinov2", "siglip_vision_model"])
def test_a_grey_picture_looks_to_one_channel_as_to_three(case, tmp_path):
    model = published(tmp_path, case, image_size=24)
    transformers.ViTImageProcessor(size={"height": 24, "width": 24}, **IMAGENET).save_pretrained(tmp_path)
    start, backbone = started(tmp_path, channels=1)
    grey = pillow.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24), dtype=np.uint8))
    image = backbone.modality
    view = image.prepare(image.collate([image.view(image.read(grey), EVALUATION, 0)], torch.zeros(1, dtype=torch.long)))
    pixels = start.processor(grey.convert("RGB"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        theirs, mine = model(pixels).last_hidden_state, backbone.encoder(*backbone.tokens(view))
        back = start.family.export(backbone)(**image.processor()(grey, return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(back, theirs, atol=2e-5, rtol=1e-5)
    assert "1 channel instead of 3" in start.family.adapted(start.modality, {"channels": 1})[1]


@pytest.mark.parametrize("channels, count", [(1, 3), (4, 3), (3, 1), (3, 3)])
def test_channels_are_folded(channels, count):
    random = np.random.default_rng(0)
    kernel, bias = torch.randn(2, count, 1, 1), torch.randn(2)
    mean, std, new_mean, new_std = (list(random.uniform(0.2, 0.8, n)) for n in (count, count, channels, channels))
    made, shifted = grids.fold(kernel, bias, mean, std, new_mean, new_std)
    x = random.uniform(size=channels)
    ours = made[:, :, 0, 0].double() @ torch.tensor((x - new_mean) / new_std) + shifted
    for row in range(2):
        theirs = float(bias[row])
        for j in range(count if channels == 1 else channels):
            c, value, share = (j, x[0], 1) if channels == 1 else (j % count, x[j], count / channels)
            theirs += share * float(kernel[row, c]) * (value - mean[c]) / std[c]
        assert abs(theirs - ours[row]) < 1e-5


def test_other_statistics_change_no_feature(tmp_path):
    model = published(tmp_path, "vit")
    transformers.ViTImageProcessor(size={"height": 16, "width": 24}, **IMAGENET).save_pretrained(tmp_path)
    start, backbone = started(tmp_path, mean=0.1, std=[0.3, 0.4, 0.5])
    grey = pillow.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))
    theirs = vectors(model, start.processor(grey, return_tensors="pt")["pixel_values"])[-1]
    torch.testing.assert_close(ours(backbone, seen(backbone.modality, grey))[-1], theirs, atol=1e-5, rtol=1e-5)


def test_what_is_given_stays_and_what_cannot_be_is_refused(tmp_path):
    published(tmp_path, "dinov2")
    PROCESSORS["dinov2, as published"].save_pretrained(tmp_path)

    def adopted(*argv):
        config = read({"modality": "image", "init_from": str(tmp_path)}, list(argv))
        return config, config.adopt(start_from(str(tmp_path), "image"))

    assert adopted("--modality.image_size", "20")[0].build_modality().grid == (
        5,
        5,
    )  # no multiple of the default's patch
    config, note = adopted("--modality.image_size", "16", "--modality.channels", "1")
    assert note == (
        "16×16 pixels instead of 224×224: places are interpolated from 6×6 to 4×4 at every forward; "
        "1 channel instead of 3: the first convolution's are summed to one, the normalisation folded in"
    )
    assert config.modality["image_size"] == 16 and config.modality["channels"] == 1
    assert config.modality["mean"] == [pytest.approx(sum(IMAGENET["image_mean"]) / 3)]
    assert config.modality["table_side"] == 6 and config.modality["aspect"] == "crop"
    assert adopted()[1] is None
    with pytest.raises(UserError, match="modality.patch_size 8 was given, but .* has 4, which cannot be changed"):
        adopted("--modality.patch_size", "8")
    with pytest.raises(UserError, match="modality.table_side 9 was given"):
        adopted("--modality.table_side", "9")
    with pytest.raises(ValueError, match="modality.registers 4: family dinov2 has none"):
        make(Image(16, 4, registers=4), "dinov2", width=8, heads=1, depth=1)
    with pytest.raises(ValueError, match="SiglipVisionModel has squares only"):
        make(Image((16, 8), 4), "siglip_vision_model", width=8, heads=1, depth=1)


@pytest.mark.parametrize(
    "family, argument, says",
    [
        ("vit", {"mlp": "gated"}, "encoder.mlp gated: the native class ViTModel has plain only"),
        ("vit", {"windows": (1,)}, r"encoder.windows \[1\]: the native class ViTModel has \[0\] only"),
        ("vit", {"biases": ("query",)}, r"encoder.biases \['query'\]: .* or \['out', 'mlp'\] only"),
        ("siglip_vision_model", {"biases": ("out", "mlp")}, "encoder.biases"),
        (
            "dinov2",
            {"hidden": 13},
            "encoder.hidden 13, plain, gelu: the native class Dinov2Model has, of width 8, 8, 16",
        ),
        ("dinov3_vit", {"heads": 4}, "rotations on two axes want a multiple of 4 a head, not 2"),
    ],
)
def test_what_the_native_class_cannot_say_is_refused_before_training(family, argument, says):
    with pytest.raises(ValueError, match=says):
        make(Image(16, 4), family, **{"width": 8, "heads": 1, "depth": 1} | argument)
    config = {f"encoder.{name}": value for name, value in ({"width": 8, "heads": 1, "depth": 1} | argument).items()}
    with pytest.raises(UserError, match=says):
        read({"modality": "image", "family": family, **config})


def test_the_tower_of_a_whole_siglip(tmp_path, capfd):
    vision = WIDE | SQUARE
    text = {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "intermediate_size": 8,
        "vocab_size": 50,
    }
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    whole = randomised(transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)))
    whole.save_pretrained(tmp_path)
    capfd.readouterr()
    start, backbone = started(tmp_path)
    said = capfd.readouterr()
    assert "logit_bias, logit_scale, text_model of the file have no place in a SiglipVisionModel" in said.out
    assert "UNEXPECTED" not in said.err  # a line a tensor
    assert str(start).startswith("siglip_vision_model; image_size 24, patch_size 4, channels 3, positions learned")
    config = read({"data": "pictures", "init_from": str(tmp_path)})  # which says nothing of the modality
    assert config.origin["modality.name"] == config.origin["train_last"] == "recipe"
    assert opened(tmp_path).build().pooling == "pieces"
    assert worst(whole.vision_model, backbone, pixels_of(backbone)) < 3e-6
    equal(whole.vision_model.state_dict(), start.family.export(backbone).state_dict())
