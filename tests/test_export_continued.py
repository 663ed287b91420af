"""Exports of runs that started from a checkpoint: what came in goes out, and what was not trained is said."""

import json
import re

import numpy as np
import pytest
import torch
import transformers
from image_families import CASES, ours, pixels_of, published, worst
from PIL import Image as pillow

from triptych.encoders.native import start_from
from triptych.export import export
from triptych.training import checkpoint
from triptych.training.command_line import read
from triptych.training.errors import UserError

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SIZES = {"image_size": 16, "patch_size": 4, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
DECODER = {"decoder_hidden_size": 12, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
DECODER |= {"decoder_intermediate_size": 20, "intermediate_size": 40}


def continued(source, folder, objective="simclr", **given):
    """The objective of a run that started there, as if it had been trained."""
    given = {"modality": "image", "objective": objective, "init_from": str(source), "output_dir": str(folder)} | given
    config, start = read(given), start_from(str(source), "image")
    config.adopt(start)
    modality = config.build_modality()
    made = config.build_objective(modality, start).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    weights = {k: v.detach().clone() for k, v in (*made.named_parameters(), *made.named_buffers())}
    folder.mkdir()
    checkpoint.write(folder, 1, weights, {}, {"step": 1}, config.stored(), modality, made.backbone.native)
    return made


def native(folder, name, **settings):
    torch.manual_seed(0)
    config = getattr(transformers, re.sub("(Model|For.*)$", "Config", name))(**SIZES | settings)
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}, **IMAGENET).save_pretrained(folder)
    return model


@pytest.mark.parametrize("case", [case for case in CASES if "," not in case and "without" not in case])
def test_a_continued_encoder_goes_out_as_its_own_class_and_its_card_runs(case, tmp_path, monkeypatch, capsys):
    came = published(tmp_path / "in", case, image_size=24)
    kind = transformers.BitImageProcessor if "dinov2" in case else transformers.ViTImageProcessor
    crop = {"size": {"shortest_edge": 27}, "crop_size": {"height": 24, "width": 24}}
    kind(**(crop if "dinov2" in case else {"size": {"height": 24, "width": 24}}), **IMAGENET).save_pretrained(
        tmp_path / "in"
    )
    made = continued(tmp_path / "in", tmp_path / "run", **{"modality.image_size": 16})
    folder = export(tmp_path / "run")
    back = transformers.AutoModel.from_pretrained(folder)
    assert type(back) is type(came) and worst(back, made.backbone, pixels_of(made.backbone)) < 3e-6
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    assert type(processor) is kind and (processor.crop_size or processor.size)["height"] == 16
    if "dinov2" in case:
        assert processor.size["shortest_edge"] == 18
    card = (folder / "README.md").read_text()
    monkeypatch.chdir(folder)
    capsys.readouterr()
    for code in re.findall("```python\n(.*?)```", card, re.S):
        exec(code, {})
    assert capsys.readouterr().out == f"torch.Size([{made.backbone.pooled_width}])\n"
    assert ("no classifier of this class" in card) == (case in ("dinov3_vit", "siglip_vision_model"))


def test_the_file_s_type_is_the_user_s(tmp_path):
    native(tmp_path / "in", "ViTModel")
    made = continued(tmp_path / "in", tmp_path / "run")
    folder = export(tmp_path / "run", dtype="bfloat16")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    back = transformers.AutoModel.from_pretrained(folder, dtype="auto")
    weight = made.backbone.encoder.blocks[1].mlp.up.weight
    assert torch.equal(back.layers[1].mlp.fc1.weight, weight.bfloat16())


def test_a_classifier_that_came_goes_out_when_asked_for_and_is_called_stale(tmp_path):
    labels = {i: f"kind {i}" for i in range(5)}
    kind = {"num_labels": 5, "id2label": labels, "problem_type": "multi_label_classification"}
    came = native(tmp_path / "in", "ViTForImageClassification", **kind)
    made = continued(tmp_path / "in", tmp_path / "run")
    without = export(tmp_path / "run", to=str(tmp_path / "without"))
    config = json.loads((without / "config.json").read_text())
    assert config["architectures"] == ["ViTModel"]
    # A new head would have the old one's loss, and a pipeline its labels.
    assert not {"id2label", "label2id", "problem_type"} & {name for name, value in config.items() if value}
    assert "Stale" not in (without / "README.md").read_text()
    folder = export(tmp_path / "run", to=str(tmp_path / "with"), keep_heads=True)
    back = transformers.AutoModelForImageClassification.from_pretrained(folder)
    assert torch.equal(back.classifier.weight, came.classifier.weight) and back.config.id2label[4] == "kind 4"
    assert back.config.problem_type == "multi_label_classification"
    assert torch.equal(back.vit.layernorm.bias, made.backbone.encoder.norm.bias)
    assert "- Stale: `classifier` came with the checkpoint" in (folder / "README.md").read_text()


@pytest.mark.parametrize("objective", ["masked", "simclr"])
def test_a_head_that_was_trained_along_is_not_called_stale(objective, tmp_path):
    came = native(tmp_path / "in", "ViTForMaskedImageModeling", encoder_stride=4)
    continued(tmp_path / "in", tmp_path / "run", objective)
    folder = export(tmp_path / "run", keep_heads=True)
    back = transformers.ViTForMaskedImageModeling.from_pretrained(folder)
    stale = "- Stale: `decoder`" in (folder / "README.md").read_text()
    assert stale == torch.equal(back.decoder[0].weight, came.decoder[0].weight) == (objective == "simclr")


@pytest.mark.parametrize("objective", ["mae", "simclr"])
def test_a_masked_autoencoder_goes_out_as_itself_when_asked_for(objective, tmp_path):
    came = native(tmp_path / "in", "ViTMAEForPreTraining", **DECODER)
    made = continued(tmp_path / "in", tmp_path / "run", objective)
    plain = transformers.AutoModel.from_pretrained(export(tmp_path / "run", to=str(tmp_path / "plain")))
    assert type(plain).__name__ == "ViTModel"
    folder = export(tmp_path / "run", to=str(tmp_path / "whole"), keep_heads=True)
    back = transformers.ViTMAEForPreTraining.from_pretrained(folder)
    card = (folder / "README.md").read_text()
    if objective == "simclr":
        assert torch.equal(back.decoder.decoder_pred.weight, came.decoder.decoder_pred.weight)
        assert "- Stale: `decoder`" in card
        return
    assert "Stale" not in card and "hides pieces at random" in card
    start = start_from(str(folder), "image")
    config = read({"modality": "image", "objective": "mae", "init_from": str(folder)})
    config.adopt(start)
    again = dict(config.build_objective(config.build_modality(), start).named_parameters())
    for name, parameter in made.named_parameters():
        # The native class has no token that hides a piece from the encoder; its places are fixed.
        if name not in ("backbone.embedding.hidden",):
            torch.testing.assert_close(again[name], parameter, atol=1e-7, rtol=0, msg=name)


def test_heads_that_cannot_be_kept_are_refused(tmp_path):
    native(tmp_path / "bare", "ViTModel")
    continued(tmp_path / "bare", tmp_path / "first")
    with pytest.raises(UserError, match="--keep_heads: this run did not start from a checkpoint that has heads"):
        export(tmp_path / "first", keep_heads=True)
    native(tmp_path / "whole", "ViTMAEForPreTraining", **DECODER)
    continued(tmp_path / "whole", tmp_path / "second", **{"modality.image_size": 8})
    with pytest.raises(ValueError, match="decoder_pos_embed came for .* leave --keep_heads out"):
        export(tmp_path / "second", keep_heads=True)


def test_an_encoder_made_grey_sees_what_it_saw(tmp_path):
    published(tmp_path / "in", "dinov2")
    transformers.BitImageProcessor(size={"shortest_edge": 27}, crop_size={"height": 24, "width": 24}).save_pretrained(
        tmp_path / "in"
    )
    made = continued(tmp_path / "in", tmp_path / "run", **{"modality.channels": 1, "modality.image_size": 16})
    folder = export(tmp_path / "run")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    assert json.loads((folder / "config.json").read_text())["num_channels"] == len(settings["image_mean"]) == 3
    assert len(set(settings["image_mean"])) == len(set(settings["image_std"])) == 1  # of the one channel
    picture = pillow.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8))
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        theirs = transformers.AutoModel.from_pretrained(folder)(pixels).last_hidden_state
    torch.testing.assert_close(ours(made.backbone, pixels[:, :1])[-2], theirs, atol=1e-5, rtol=1e-5)
