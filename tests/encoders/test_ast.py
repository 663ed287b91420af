"""AST: exports load in stock transformers and are equal; what is imported and exported is equal bit for bit."""

import json

import pytest
import torch
from torch import nn

from triptych.encoders.backbone import Backbone
from triptych.encoders.native import FAMILIES, make, start_from
from triptych.modalities.audio import Audio
from triptych.objectives import MAE, Masked

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
    samples = [ours.modality.padded(w, ours.modality.window) for w in waves]
    view = ours.modality.prepare(ours.modality.collate(samples, torch.arange(3)))
    with torch.no_grad():
        theirs = native(**inputs, output_hidden_states=True)
        layers = ours.encoder(*ours.tokens(view), every_layer=True)
        pooled = ours(view)
    torch.testing.assert_close(layers[-1], theirs.last_hidden_state, atol=1e-5, rtol=0)
    for mine, its in zip(layers[:-1], theirs.hidden_states[:-1], strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled, theirs.pooler_output, atol=1e-5, rtol=0)


def test_the_rate_goes_out_and_comes_back(tmp_path):
    audio = Audio(0.6, 64, rate=22_050, positions="learned", mean=-4.0, std=3.0)
    exported(make(audio, width=32, depth=1, heads=4), tmp_path)
    again = Audio(**start_from(str(tmp_path), "audio").modality)
    assert (again.rate, again.extent, again.window) == (22_050, audio.extent, audio.window)


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


SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def overlapping(folder, strides=(10, 6), mel_bins=38, max_length=61, kind="ASTModel"):
    """A checkpoint whose patches overlap, and leave bins and frames at the ends over; every parameter random."""
    import transformers

    down, along = strides
    config = transformers.ASTConfig(
        **SIZE, frequency_stride=down, time_stride=along, max_length=max_length, num_mel_bins=mel_bins
    )
    torch.manual_seed(1)
    native = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in native.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    native.save_pretrained(folder)
    processor = transformers.ASTFeatureExtractor(num_mel_bins=mel_bins, max_length=max_length, mean=-4.0, std=3.0)
    processor.save_pretrained(folder)
    return native


def started(folder, **given):
    start = start_from(str(folder), "audio")
    ours = make(Audio(**start.modality | given), start.family.name, **start.encoder)
    start.load(ours)
    return start, ours.eval()


@pytest.mark.parametrize("strides", [(10, 10), (10, 6), (16, 10)])
def test_overlapping_patches_are_tiles_with_a_stride(strides, tmp_path):
    """Every hidden state and the vector in float64; the weights and the configuration out again as they came."""
    from transformers import AutoFeatureExtractor

    native = overlapping(tmp_path / "first", strides, kind="ASTForAudioClassification")
    start, ours = started(tmp_path / "first")
    audio = ours.modality
    assert audio.stride == strides and audio.tile == (16, 16) and audio.grid == ours.embedding.positions.extent
    waves = [0.1 * torch.randn(n).numpy() for n in (400, 5000, 20_000)]
    inputs = AutoFeatureExtractor.from_pretrained(tmp_path / "first")(waves, sampling_rate=16_000, return_tensors="pt")
    view = audio.prepare(audio.collate([audio.padded(w, audio.window) for w in waves], torch.arange(3)))
    base, ours = native.audio_spectrogram_transformer.double(), ours.double()
    with torch.no_grad():
        theirs = base(inputs["input_values"].double(), output_hidden_states=True)
        tiles = audio.cut(inputs["input_values"].transpose(1, 2)[:, None, :, : audio.extent[1]])["data"]
        double = view.replace(data=tiles.double())
        layers = ours.encoder(*ours.tokens(double), every_layer=True)
        pooled = ours(double)
    torch.testing.assert_close(view.data, tiles, rtol=0, atol=1e-5)
    found = [(a - b).abs().max() / b.abs().max() for a, b in zip(layers[:-1], theirs.hidden_states[:-1], strict=True)]
    found += [(layers[-1] - theirs.last_hidden_state).abs().max(), (pooled - theirs.pooler_output).abs().max()]
    assert max(found) < 1e-10, found
    ours = ours.float()
    AST.export(ours, None).save_pretrained(tmp_path / "second")
    states = base.float().state_dict(), AST.export(ours, None).state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    first, second = (json.loads((tmp_path / f / "config.json").read_text()) for f in ("first", "second"))
    assert first | {"architectures": None} == second | {"architectures": None}
    audio.save(str(tmp_path / "second"))
    again = Audio(**start.modality)
    again.load(str(tmp_path / "second"))  # as a run does that goes on
    assert again.processor().max_length == second["max_length"] == 61


def test_a_processor_that_does_not_normalise_gives_its_values_as_they_are(tmp_path):
    from transformers import ASTFeatureExtractor

    overlapping(tmp_path)
    extractor = ASTFeatureExtractor(num_mel_bins=38, max_length=61, mean=-4.0, std=3.0, do_normalize=False)
    extractor.save_pretrained(tmp_path)
    audio = started(tmp_path)[1].modality
    wave = 0.1 * torch.randn(20_000).numpy()
    values = extractor(wave, sampling_rate=16_000, return_tensors="pt")["input_values"]
    tiles = audio.cut(values.transpose(1, 2)[:, None, :, : audio.extent[1]])["data"]
    view = audio.prepare(audio.collate([audio.padded(wave, audio.window)], torch.arange(1)))
    torch.testing.assert_close(view.data, tiles, rtol=0, atol=1e-4)


@pytest.mark.parametrize("argument", [{"order": "post"}, {"mlp": "gated"}, {"theta": 1e4}, {"biases": ("query",)}])
def test_what_the_native_class_cannot_say_is_refused_before_training(argument):
    with pytest.raises(ValueError, match=f"encoder.{next(iter(argument))} .*: the native class ASTModel has .* only"):
        make(Audio(0.6), width=32, depth=2, heads=4, **argument)


def test_gaps_are_refused(tmp_path):
    overlapping(tmp_path, (20, 20), mel_bins=64, max_length=64)
    with pytest.raises(ValueError, match="gaps"):
        start_from(str(tmp_path), "audio")


@pytest.mark.parametrize("seconds, mel_bins", [(0.3, 38), (1.2, 38), (0.61, 26), (0.61, 58), (0.3, 58)])
def test_the_user_s_length_and_bins(seconds, mel_bins, tmp_path):
    """Places are cut from the middle, or interpolated along one axis after the other, as AST's own code does."""
    native = overlapping(tmp_path, (10, 10))
    start = start_from(str(tmp_path), "audio")
    _, note = AST.adapted(start.modality, {"seconds": seconds, "mel_bins": mel_bins})
    _, ours = started(tmp_path, seconds=seconds, mel_bins=mel_bins)
    rows, columns = ours.modality.grid
    assert f"{rows}×{columns} tiles instead of 3×5" in note
    table = native.embeddings.position_embeddings[0].detach()
    assert torch.equal(ours.embedding.lead_place, table[:2])
    wanted = table[2:].T.reshape(1, 32, 3, 5)
    if columns <= 5:
        wanted = wanted[..., 5 // 2 - columns // 2 : 5 // 2 - columns // 2 + columns]
    else:
        wanted = torch.nn.functional.interpolate(wanted, size=(3, columns), mode="bilinear")
    if rows <= 3:
        wanted = wanted[:, :, 3 // 2 - rows // 2 : 3 // 2 - rows // 2 + rows]
    else:
        wanted = torch.nn.functional.interpolate(wanted, size=(rows, columns), mode="bilinear")
    torch.testing.assert_close(ours.embedding.positions.table.T.reshape(1, 32, rows, columns), wanted)
    back = AST.export(ours, None)
    assert back.config.num_mel_bins == mel_bins and back(torch.zeros(1, back.config.max_length, mel_bins))
    assert ours.modality.processor().max_length == back.config.max_length


@pytest.mark.parametrize("kind", [MAE, Masked])
def test_an_overlapping_start_trains(kind, tmp_path):
    from transformers import AutoFeatureExtractor

    overlapping(tmp_path)
    objective = kind(started(tmp_path)[1])
    audio = objective.backbone.modality
    waves = [0.1 * torch.randn(audio.window).numpy() for _ in range(3)]
    view = audio.prepare(audio.collate([audio.padded(w, audio.window) for w in waves], torch.arange(3)))
    optimizer = torch.optim.AdamW(objective.parameters(), 1e-3)
    losses = []
    for _ in range(10):
        loss = objective([view])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    # After ten steps the export is still ours: none of what was trained stays behind.
    frames = AutoFeatureExtractor.from_pretrained(tmp_path)(waves, sampling_rate=16_000, return_tensors="pt")
    frames, ours = frames["input_values"], objective.backbone.eval()
    view = view.replace(data=audio.cut(frames.transpose(1, 2)[:, None, :, : audio.extent[1]])["data"])
    with torch.no_grad():
        theirs, pooled = AST.export(ours, None)(frames).pooler_output, ours(view)
    assert (pooled - theirs).abs().max() < 3e-6 * theirs.abs().max()
