"""Masked objectives: loss and every gradient as the native classes', with copied weights and the same masks."""

import copy
import dataclasses
from unittest import mock

import pytest
import support
import torch
from support import nested
from transformers import ViTConfig, ViTForMaskedImageModeling, ViTMAEConfig, ViTMAEForPreTraining

from triptych.encoders.native import make, start_from
from triptych.modalities import Audio, Image, View
from triptych.modalities.domains import build
from triptych.objectives import MAE, Decoder, Mask, Masked, masked, masking
from triptych.training.loader import Samples

SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
DECODER = {
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
}
TARGETS = {True: "normalised", False: "raw"}


def randomised(model):
    """Weights of a size at which every part of the model matters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()  # neither has any dropout


def objective_of(folder, kind, target, **settings):
    """Our objective with the weights of a native checkpoint, and what it was started from."""
    start = start_from(str(folder), "image")
    backbone = make(Image(**start.modality | {"target": target}), start.family.name, **start.encoder)
    start.load(backbone)
    objective = build(kind, nested(start.objective) | settings, "", backbone)
    start.load_heads(objective)
    return start, objective


def batch(image, samples=5):
    torch.manual_seed(1)
    pixels = torch.randn(samples, image.channels, *image.extent)
    return pixels, View(**image.cut(pixels), seed=torch.randint(1 << 32, (samples,)))


def assert_gradients_equal(start, objective, native):
    """A gradient has the shape and the names of its weights, so the import of weights maps it to ours."""
    gradients = copy.deepcopy(native)
    with torch.no_grad():
        for parameter, source in zip(gradients.parameters(), native.parameters(), strict=True):
            parameter.copy_(torch.zeros_like(source) if source.grad is None else source.grad)
    expected = copy.deepcopy(objective)
    start = dataclasses.replace(start, model=gradients)
    start.load(expected.backbone)
    start.load_heads(expected)
    compared = 0
    for (name, ours), theirs in zip(objective.named_parameters(), expected.parameters(), strict=True):
        if ours.grad is None:  # fixed positions; MAE hides nothing in the encoder
            assert not ours.requires_grad or name == "backbone.embedding.hidden", name
            continue
        bound = 1e-4 * theirs.abs().max()
        assert bound > 0 and (ours.grad - theirs).abs().max() <= bound, name
        compared += 1
    return compared


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("image_size, patch_size, channels", [(224, 16, 3), (32, 4, 3), (28, 4, 1)])
def test_mae_has_loss_and_gradients_of_the_native_class(image_size, patch_size, channels, normalised, tmp_path):
    config = ViTMAEConfig(
        **SIZES,
        **DECODER,
        image_size=image_size,
        patch_size=patch_size,
        num_channels=channels,
        norm_pix_loss=normalised,
        mask_ratio=0.75,
    )
    native = randomised(ViTMAEForPreTraining(config))
    native.save_pretrained(tmp_path)
    start, objective = objective_of(tmp_path, MAE, TARGETS[normalised], mask=Mask(0.75))
    pixels, view = batch(objective.backbone.modality)
    # The native class keeps the lowest noise, ours drops the lowest keys.
    noise = -masking.random(view, 3).argsort(1).argsort(1).float()

    loss = objective([view])["loss"]
    expected = native(pixels, noise=noise).loss
    assert abs(loss - expected) <= 1e-5
    loss.backward()
    expected.backward()
    parts = sum(p.requires_grad for p in objective.parameters()) - 1
    assert assert_gradients_equal(start, objective, native) == parts


@pytest.mark.parametrize("image_size, patch_size, channels", [(64, 16, 3), (32, 4, 3), (28, 4, 1)])
def test_hiding_has_loss_and_gradients_of_the_native_class(image_size, patch_size, channels, tmp_path):
    config = ViTConfig(
        **SIZES, image_size=image_size, patch_size=patch_size, num_channels=channels, encoder_stride=patch_size
    )
    native = randomised(ViTForMaskedImageModeling(config))
    native.save_pretrained(tmp_path)
    start, objective = objective_of(tmp_path, Masked, "absolute", mask=Mask(0.6))
    pixels, view = batch(objective.backbone.modality)
    hidden = masking.hide(view, 0.6, "random", 3)

    loss = objective([view])["loss"]
    expected = native(pixels, bool_masked_pos=hidden).loss
    assert abs(loss - expected) <= 1e-5
    loss.backward()
    expected.backward()
    assert assert_gradients_equal(start, objective, native) == len(list(objective.parameters()))


def test_dropped_pieces_are_neither_embedded_nor_seen():
    torch.manual_seed(0)
    objective = MAE(make(Image(32, 4), width=32, depth=2, heads=2), decoder=Decoder(32, 1))
    _, view = batch(objective.backbone.modality)
    embedded = []
    projection = objective.backbone.embedding.projection
    projection.register_forward_hook(lambda _, inputs, __: embedded.append(inputs[0].shape))
    features = objective([view])["features"]
    assert embedded == [(5, 16, 48)]
    dropped = masking.hide(view, 0.75, "random", 3)
    noisy = view.replace(data=torch.where(dropped[..., None], torch.randn_like(view.data), view.data))
    assert torch.equal(objective([noisy])["features"], features)


OVERLAP = {"seconds": 1.06, "mel_bins": 46, "tile": (16, 16), "stride": (10, 10), "mean": 0.0, "std": 1.0}


def overlapping(**settings):
    audio = Audio(**OVERLAP | settings)
    torch.manual_seed(0)
    view = audio.cut(torch.randn(3, 1, *audio.extent))
    return audio, View(seed=torch.tensor([5, 17, 90]), **view)


def test_values_that_a_visible_tile_holds_are_no_secret():
    """Against the loop over tiles; the share that could be copied is the 40 % that the docstring names."""
    audio, view = overlapping()
    hide = masking.hide(view, 0.75, "random", 3)
    secret = audio.secret(view, hide)
    rows, columns = view.grid
    for sample in range(3):
        seen = torch.zeros(audio.extent, dtype=torch.bool)
        where = [(y * 10, x * 10) for y in range(rows) for x in range(columns)]
        for (y, x), hidden in zip(where, hide[sample], strict=True):
            if not hidden:
                seen[y : y + 16, x : x + 16] = True
        for number, (y, x) in enumerate(where):
            assert torch.equal(secret[sample, number], ~seen[y : y + 16, x : x + 16].flatten())
    long = overlapping(seconds=10.16, mel_bins=128)[1]
    audio = overlapping(seconds=10.16, mel_bins=128)[0]
    hide = masking.hide(long, 0.75, "random", 3)
    assert 0.37 < 1 - audio.secret(long, hide)[hide].float().mean() < 0.43
    assert Audio(0.64, tile=(16, 16)).secret(view, hide) is None  # tiles that touch share nothing


@pytest.mark.parametrize("target", ["normalised", "raw", "absolute"])
@pytest.mark.parametrize("kind", [MAE, Masked])
def test_what_could_be_copied_does_not_count(kind, target, monkeypatch):
    """A head that copies every value that a visible tile holds, and guesses elsewhere, gains nothing by copying."""
    audio, view = overlapping(target=target, stride=(6, 6))
    objective = kind(make(audio, width=32, depth=1, heads=2), Mask(0.3))
    judged = []
    error = type(audio).error

    def spied(self, guess, data, *secret):
        judged.append(error(self, guess, data, *secret))
        (told,) = secret
        copied = guess + 7.0 * ~told
        assert torch.equal(error(self, copied, data, told), judged[-1])
        other = guess + 7.0 * told
        counted = told.any(-1)
        assert not torch.isclose(error(self, other, data, told), judged[-1])[counted].any()
        assert (~counted).any()  # some tiles are seen whole: they have no error, and are not in the mean
        total[:] = [judged[-1][counted].sum(), counted.sum()]
        return judged[-1]

    total = [0, 0]
    monkeypatch.setattr(type(audio), "error", spied)
    loss = objective([view])["loss"]
    torch.testing.assert_close(loss, total[0] / total[1])
    loss.backward()


def bottleneck(module, name: str, noise: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a MAE whose decoder sees leads alone, and what it is by hand; `noise` is added to encoded pieces."""
    config = support.config(name, "mae", "unused")
    built = config.build_modality()
    rows = support.rows_of(name, built)
    made = config.build_objective(built)
    objective = module.MAE(made.backbone, Mask(0.6), Decoder(16, 1, 2), bottleneck=True)
    randomised(objective)
    view = Samples(rows.table, rows.column, built, objective.views, 0, 10).__getitems__([(0, i) for i in range(6)])
    view = built.prepare(view["views"][0])
    kept, dropped, _, valid = masking.drop(view, objective.mask, built)
    encoded = objective.backbone.encode(kept)
    noisy = encoded._replace(pieces=encoded.pieces + noise)
    with mock.patch.object(objective.backbone, "encode", lambda _: noisy):
        loss = objective([view])["loss"]
    dropped, kept = dropped.one_a_row(), kept.one_a_row()
    valid = masking.predictable(dropped, valid, built)
    decoder, errors = objective.decoder, []
    for sample in range(1, len(view) + 1):  # each alone
        own = dropped.segment == sample
        lead = encoded.leads.flatten(0, 1)[kept.samples.flatten() == sample][0]
        place = decoder.places(dropped.position.expand(*own.shape, -1)[own][None], dropped.grid)
        tokens = decoder.encoder(torch.cat([decoder.embed(lead)[None], decoder.hidden + place], 1))[0, len(lead) :]
        error = built.error(objective.predict(tokens), dropped.data[own])
        errors.append(error if valid is None else error[valid[own]])
    return loss, torch.cat(errors).mean()


def compare_bottleneck(module) -> None:
    for modality in ("image", "text", "audio"):
        loss, by_hand = bottleneck(module, modality)
        torch.testing.assert_close(loss, by_hand, atol=1e-5, rtol=1e-5)
        assert torch.equal(bottleneck(module, modality, noise=1.0)[0], loss)


def test_a_bottleneck_decodes_from_leads_and_places_alone():
    compare_bottleneck(masked)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("self.leads_alone(encoded, kept) if self.bottleneck else", ""),  # the decoder sees all that the encoder saw
        ("_replace(pieces=", "_replace(leads=0 * encoded.leads, pieces="),  # it sees places alone
    ],
)
def test_a_planted_fault_of_the_bottleneck_is_seen(good, bad):
    with pytest.raises(AssertionError):
        compare_bottleneck(support.planted(masked, good, bad))


def test_a_bottleneck_trains_the_lead_and_needs_one():
    made = MAE(make(Image(16, 4), width=32, depth=1, heads=2), decoder=Decoder(16, 1, 2), bottleneck=True)
    _, view = batch(made.backbone.modality)
    made([view])["loss"].backward()
    assert made.backbone.embedding.lead_content.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="bottleneck: this family has no lead"):
        MAE(make(Image(16, 4), "ijepa", "pieces", width=32, depth=1, heads=2), bottleneck=True)
