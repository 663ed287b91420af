"""AST: exports load in stock transformers and are equal; what is imported and exported is equal bit for bit."""

import pytest
import torch
from torch import nn

from encoders.backbone import Backbone
from encoders.native import FAMILIES, make, start_from
from modalities.audio import Audio, padded

AST = FAMILIES["audio-spectrogram-transformer"]
TILES = [(16, 16), (128, 4), (32, 8)]


def backbone(tile, seed=0) -> Backbone:
    torch.manual_seed(seed)
    made = make(Audio(0.6, tile=tile, positions="learned", mean=-4.0, std=3.0), width=32, depth=2, heads=4)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made.eval()


def exported(model: Backbone, folder) -> None:
    AST.export(model, None).save_pretrained(folder)
    model.modality.save(str(folder))


@pytest.mark.parametrize("tile", TILES)
def test_export_is_equal_from_waveform_to_hidden_states(tile, tmp_path):
    from transformers import AutoFeatureExtractor, AutoModel

    ours = backbone(tile)
    exported(ours, tmp_path)
    native = AutoModel.from_pretrained(tmp_path).eval()
    assert type(native).__name__ == "ASTModel"
    waves = [0.1 * torch.randn(n).numpy() for n in (400, 5000, ours.modality.window)]
    inputs = AutoFeatureExtractor.from_pretrained(tmp_path)(waves, sampling_rate=16_000, return_tensors="pt")
    samples = [padded(w, ours.modality.window) for w in waves]
    view = ours.modality.prepare(ours.modality.collate(samples, torch.arange(3)))
    with torch.no_grad():
        theirs = native(**inputs, output_hidden_states=True)
        layers = ours.encoder(*ours.tokens(view), every_layer=True)
        pooled = ours(view)
    torch.testing.assert_close(layers[-1], theirs.last_hidden_state, atol=1e-5, rtol=0)
    for mine, its in zip(layers[:-1], theirs.hidden_states[:-1], strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled, theirs.pooler_output, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tile", TILES)
def test_classifier_lacks_only_its_head(tile, tmp_path):
    from transformers import ASTForAudioClassification

    exported(backbone(tile), tmp_path)
    _, info = ASTForAudioClassification.from_pretrained(tmp_path, num_labels=3, output_loading_info=True)
    assert info["missing_keys"] and all(k.startswith("classifier.") for k in info["missing_keys"])
    assert not info["unexpected_keys"] and not info["mismatched_keys"]


@pytest.mark.parametrize("source", ["ASTModel", "ASTForAudioClassification"])
@pytest.mark.parametrize("tile", TILES)
def test_native_to_ours_to_native_is_equal_bit_for_bit(tile, source, tmp_path):
    import transformers

    first, second = tmp_path / "first", tmp_path / "second"
    exported(backbone(tile), first)
    native = getattr(transformers, source).from_pretrained(first)
    native.save_pretrained(first)
    base = getattr(native, "audio_spectrogram_transformer", native)

    start = start_from(str(first), "audio")
    assert start.family is AST
    assert (start.modality["mean"], start.modality["std"], start.modality["tile"]) == (-4.0, 3.0, tile)
    ours = make(Audio(**start.modality), **start.encoder)
    start.load(ours)
    exported(ours, second)
    again = transformers.ASTModel.from_pretrained(second)
    states = base.state_dict(), again.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert (ours.modality.mean, ours.modality.std) == (-4.0, 3.0)


def test_head_stays_behind():
    ours = backbone((16, 16))
    assert type(AST.export(ours, nn.Linear(32, 256))).__name__ == "ASTModel"


@pytest.mark.parametrize("stride", [10, 20])
def test_overlaps_and_gaps_are_refused(stride, tmp_path):
    from transformers import ASTConfig, ASTModel

    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = ASTConfig(**size, frequency_stride=stride, time_stride=stride, max_length=64, num_mel_bins=64)
    ASTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="overlap" if stride == 10 else "gaps"):
        start_from(str(tmp_path), "audio")
