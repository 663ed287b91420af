"""ViT and ViT-MAE: what is imported and exported is equal bit for bit, and runs start from it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import support
import torch
import transformers
import yaml
from finished import finished
from PIL import Image as pillow
from safetensors.torch import load_file, save_file

from triptych.encoders.native import FAMILIES, make, start_from
from triptych.export import export
from triptych.modalities import EVALUATION, Image, View
from triptych.modalities.domains import build
from triptych.objectives import MAE, Masked, SimCLR
from triptych.training.command_line import read
from triptych.training.settings import own_defaults

SIZES = {"hidden_size": 44, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 49}
DECODER = {
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 3,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 27,
}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def published(folder, name: str, **settings):
    """A checkpoint that this project did not make."""
    torch.manual_seed(0)
    kind = transformers.ViTMAEConfig if "MAE" in name else transformers.ViTConfig
    more = DECODER if "MAE" in name else {}
    config = kind(
        **{"image_size": 16, "patch_size": 4, "encoder_stride": 4, "layer_norm_eps": 1e-6} | SIZES | more | settings
    )
    native = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in native.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    native.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}, do_convert_rgb=True, **IMAGENET).save_pretrained(
        folder
    )
    return native


def started(folder, kind, **settings):
    start = start_from(str(folder), "image")
    backbone = make(Image(**start.modality), start.family.name, **start.encoder)
    start.load(backbone)
    objective = build(kind, support.nested(settings), "", backbone)
    start.load_heads(objective)
    return start.family, objective


@pytest.mark.parametrize("size", [16, (8, 16)])
@pytest.mark.parametrize("name", ["ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling", "ViTMAEModel"])
def test_native_to_ours_to_native_is_equal_bit_for_bit(name, size, tmp_path):
    if size != 16 and "MAE" in name:
        pytest.skip("the native class has squares only")
    native = published(tmp_path, name, image_size=size)
    masked = name == "ViTForMaskedImageModeling" and size == 16
    family, objective = started(tmp_path, Masked if masked else SimCLR)
    back = family.export(objective.backbone, objective.head)
    before, after = native.state_dict(), back.state_dict()
    if not masked:  # a bare encoder is what goes out
        before = {k.removeprefix("vit."): v for k, v in before.items()}
        before = {k: v for k, v in before.items() if not k.startswith(("classifier.", "decoder.", "embeddings.mask_"))}
    assert before.keys() <= after.keys()
    assert all("pooler" in k for k in after.keys() - before.keys())
    for key, tensor in before.items():
        assert "pooler" in key or torch.equal(tensor, after[key]), key
    for setting in ("hidden_size", "intermediate_size", "num_attention_heads", "layer_norm_eps", "patch_size"):
        assert getattr(back.config, setting) == getattr(native.config, setting)


def test_a_whole_mae_comes_over(tmp_path):
    published(tmp_path, "ViTMAEForPreTraining")
    start = start_from(str(tmp_path), "image")
    _, objective = started(tmp_path, MAE, **start.objective)
    again, block = start.model.state_dict(), objective.decoder.encoder.blocks[1]
    native = "decoder.decoder_layers.1."
    for kind in ("weight", "bias"):
        assert torch.equal(block.mlp.up.get_parameter(kind), again[f"{native}mlp.fc1.{kind}"])
        query = again[f"{native}attention.q_proj.{kind}"]
        assert torch.equal(block.attention.qkv.get_parameter(kind)[: len(query)], query)
        assert torch.equal(objective.decoder.embed.get_parameter(kind), again[f"decoder.decoder_embed.{kind}"])
    assert torch.equal(objective.decoder.places.table, again["decoder.decoder_pos_embed"][0, 1:])
    assert torch.equal(objective.decoder.hidden, again["decoder.mask_token"][0, 0])
    assert not objective.decoder.places.table.requires_grad  # fixed, as the positions of the encoder
    assert not objective.backbone.embedding.positions.table.requires_grad


@pytest.mark.parametrize("normalised, ratio", [(True, 0.6), (False, 0.75)])
def test_a_start_has_the_target_and_the_ratio_of_its_checkpoint(normalised, ratio, tmp_path):
    """As far as the user did not say otherwise, and only for the objective that had them."""
    published(tmp_path, "ViTMAEForPreTraining", norm_pix_loss=normalised, mask_ratio=ratio)
    start, target = start_from(str(tmp_path), "image"), "normalised" if normalised else "raw"

    def adopted(kind: str, **given):
        config = read({"init_from": str(tmp_path), "device": "cpu", "objective": {"name": kind}} | given)
        config.adopt(start)
        return config.modality.get("target"), config.objective.get("mask", {}).get("ratio")

    assert adopted("mae") == (target, ratio)
    said = {"modality": {"name": "image", "target": "absolute"}, "objective": {"name": "mae", "mask": {"ratio": 0.5}}}
    assert adopted("mae", **said) == ("absolute", 0.5)
    assert adopted("masked") == (target, own_defaults("image", "masked")["objective.mask.ratio"])


@pytest.mark.parametrize("other", [{"decoder.width": 32}, {"decoder.depth": 2}, {"decoder.heads": 2}])
def test_a_decoder_of_another_size_starts_fresh_and_says_so(other, tmp_path, capsys):
    published(tmp_path, "ViTMAEForPreTraining")
    start = start_from(str(tmp_path), "image")
    _, objective = started(tmp_path, MAE, **start.objective | other)
    assert "the decoder starts fresh" in capsys.readouterr().out
    native = start.model.state_dict()["vit.layers.0.mlp.fc1.weight"]
    assert torch.equal(objective.backbone.encoder.blocks[0].mlp.up.weight, native)


def test_objectives_without_a_decoder_start_from_mae(tmp_path, capsys):
    published(tmp_path, "ViTMAEForPreTraining")
    started(tmp_path, Masked)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("normal", [True, False])
def test_the_processor_comes_along(normal, tmp_path):
    published(tmp_path, "ViTModel")
    processor = transformers.ViTImageProcessor.from_pretrained(tmp_path)
    processor.do_normalize = normal
    processor.save_pretrained(tmp_path)
    _, objective = started(tmp_path, SimCLR)
    image = objective.backbone.modality
    array = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    theirs = processor(pillow.fromarray(array), return_tensors="pt")["pixel_values"]
    data = image.view(pillow.fromarray(array), EVALUATION, 0)["data"][None]
    view = image.prepare(View(data=data, seed=torch.zeros(1, dtype=torch.long)))
    ours = image.cut(theirs)["data"]
    assert torch.equal(view.data, ours) if normal else torch.allclose(view.data, ours, atol=1e-6)
    assert image.mean == (IMAGENET["image_mean"] if normal else [0.0] * 3)


def test_without_a_processor_defaults_stand(tmp_path, capsys):
    published(tmp_path, "ViTModel")
    (tmp_path / "preprocessor_config.json").unlink()
    _, objective = started(tmp_path, SimCLR)
    assert objective.backbone.modality.mean == [0.5] * 3
    assert "no processor there" in capsys.readouterr().out


def test_others_are_refused(tmp_path):
    with pytest.raises(ValueError, match="init_from .*nowhere: no such folder"):
        start_from(str(tmp_path / "nowhere"), "image")
    transformers.GPT2Config().save_pretrained(tmp_path / "other")
    known = f"known are {', '.join(FAMILIES)}"
    with pytest.raises(ValueError, match=f"of the family 'gpt2'; {known}"):
        start_from(str(tmp_path / "other"), "image")
    (tmp_path / "other" / "config.json").write_text('{"model_type": "somebody_s_own"}')
    with pytest.raises(ValueError, match=known):
        start_from(str(tmp_path / "other"), "image")
    (tmp_path / "other" / "config.json").write_text('{"architecture": "vit_small_patch16_224"}')  # as timm has it
    with pytest.raises(ValueError, match=f"no model_type in its config.json .*; {known}"):
        start_from(str(tmp_path / "other"), "image")
    published(tmp_path / "vit", "ViTModel")
    with pytest.raises(ValueError, match="is of modality image, the run is of text"):
        start_from(str(tmp_path / "vit"), "text")
    published(tmp_path / "relu", "ViTModel", hidden_act="relu")
    with pytest.raises(ValueError, match="hidden_act 'relu' is not one of gelu"):
        start_from(str(tmp_path / "relu"), "image")


def test_every_encoder_weight_must_be_there(tmp_path):
    published(tmp_path, "ViTModel")
    weights = load_file(tmp_path / "model.safetensors")
    missing = next(k for k in weights if "1" in k and "mlp" in k or "layer.1.output" in k)
    save_file({k: v for k, v in weights.items() if k != missing}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="the checkpoint lacks layers.1"):
        start_from(str(tmp_path), "image")


def test_no_pickle_is_read(tmp_path):
    native = published(tmp_path, "ViTModel")
    (tmp_path / "model.safetensors").unlink()
    torch.save(native.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="init_from .*safetensors.*; pickles .* are not read: .*save_pretrained"):
        start_from(str(tmp_path), "image")


def run(arguments: list[str]) -> None:
    from triptych import train

    train.main(arguments)


def arguments_of(modality: str, objective: str, folder, data, init_from, **options) -> list[str]:
    given = {"modality": modality, "objective": objective, "output_dir": folder, "data": data, "init_from": init_from}
    given |= {"per_device_train_batch_size": 4, "report_to": "none", "dataloader_num_workers": 0, "device": "cpu"}
    given |= {"logging_steps": 1, "data.eval_fraction": 0} | options
    return [f"--{name}={value}" for name, value in given.items()]


def test_a_run_starts_from_a_checkpoint_and_continues_from_its_own(tmp_path, pictures, launch, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, folder = Path("my/source"), tmp_path / "run"
    native = published(source, "ViTMAEForPreTraining")
    options = {"max_steps": 4, "save_steps": 2, "learning_rate": 1e-7, "warmup_steps": 0, "weight_decay": 0}
    options |= {"head_steps": 0}  # the recipe's is longer than this run
    arguments = arguments_of("image", "mae", folder, pictures, source, **options)
    launch(run, 1, arguments=arguments).results()

    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["encoder"] | {"width": 44, "depth": 2, "heads": 2, "eps": 1e-6} == config["encoder"]
    assert config["objective"]["decoder"] == {"width": 24, "depth": 3, "heads": 4}
    assert config["modality"]["mean"] == IMAGENET["image_mean"] and config["modality"]["image_size"] == 16
    weights = load_file(folder / "checkpoint-4" / "model.safetensors")
    up = native.vit.layers[1].mlp.fc1.weight
    assert 0 < (weights["backbone.encoder.blocks.1.mlp.up.weight"] - up).abs().max() < 1e-5
    processor = transformers.AutoImageProcessor.from_pretrained(export(folder))
    assert list(processor.image_mean) == IMAGENET["image_mean"]
    # A folder's name that is no path any more still looks like that of a repository.
    shutil.move(source, "elsewhere")
    card = (export(folder, to="again") / "README.md").read_text()
    assert "base_model" not in card and "my/source" not in card and "- Started from: `source`" in card

    # The last checkpoint is lost; what the run began with has other weights by now, and no part in what follows.
    shutil.rmtree(folder / "checkpoint-4")
    published(source, "ViTMAEForPreTraining", initializer_range=1.0)
    launch(run, 1, arguments=arguments).results()
    again = load_file(folder / "checkpoint-4" / "model.safetensors")
    assert weights.keys() == again.keys() and all(torch.equal(weights[k], again[k]) for k in weights)


@pytest.mark.parametrize("modality, objective", [("image", "masked"), ("audio", "mae"), ("text", "masked")])
def test_a_run_starts_from_an_export(modality, objective, tmp_path, launch):
    settings = {"channels": 3} if modality == "image" else {}  # a grey encoder goes out with three channels
    _, made = finished(modality, objective, tmp_path / "first", settings)
    source, data = export(tmp_path / "first"), tmp_path / "data"
    data.mkdir()
    cells, kind = support.cells(modality)
    if kind == "string":
        (data / "all.txt").write_text("\n".join(cells))
    else:
        for cell in cells:
            (data / cell["path"]).write_bytes(cell["bytes"])
    options = {"max_steps": 2, "learning_rate": 1e-7, "warmup_steps": 0, "weight_decay": 0}
    arguments = arguments_of(modality, objective, tmp_path / "second", data, source, **options)
    launch(run, 1, arguments=arguments).results()
    weights = load_file(tmp_path / "second" / "checkpoint-2" / "model.safetensors")
    for name, parameter in made.named_parameters():
        # No native class has a head for sound, nor the token that hides it.
        if modality != "audio" or name.startswith("backbone.") and name != "backbone.embedding.hidden":
            assert (weights[name] - parameter).abs().max() < 1e-5, name
