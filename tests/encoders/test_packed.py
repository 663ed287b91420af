"""Samples that share a row, sorted and attended by sequences of many lengths: the same as under the mask."""

import pytest
import support
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional as F
from torch.nn.attention import varlen

from triptych.encoders import Architecture, Encoder, packed
from triptych.modalities import MODALITIES
from triptych.modalities.view import View
from triptych.objectives import OBJECTIVES
from triptych.training.loader import Samples


def rows(leads: int) -> View:
    """Three rows of 2, 3 and 3 samples, all leads of a row in front, with holes between and behind the pieces."""
    samples = torch.tensor([[4, 1, 0], [2, 6, 3], [5, 8, 7]])
    pieces = [[4, 4, 0, 1, 1, 1, 4, 0, 0], [6, 2, 2, 3, 0, 3, 6, 6, 6], [5, 0, 5, 5, 7, 7, 7, 5, 8]]
    segment = torch.cat([samples.repeat_interleave(leads, dim=1), torch.tensor(pieces)], dim=1)
    return View(data=segment, seed=torch.arange(8), segment=segment, samples=samples)


def each_alone(q, k, v, starts, _, longest, __, window_size):
    """What the kernel does, sequence by sequence. Values that no sequence holds are as undefined as there."""
    assert q.ndim == 3 and starts.dtype == torch.int32 and min(window_size) >= longest - 1
    out = torch.full_like(q, float("nan"))
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        assert 0 <= end - start <= longest
        if end > start:
            one = (x[start:end].transpose(0, 1) for x in (q, k, v))
            out = torch.cat([out[:start], F.scaled_dot_product_attention(*one).transpose(0, 1), out[end:]])
    return out


@pytest.mark.parametrize("leads", [0, 1, 2])
def test_each_sequence_is_one_sample_of_one_row(leads):
    view = rows(leads)
    found = packed.sequences(view.segment, view.samples.shape[1])
    assert found.starts.tolist()[0] == 0 and found.starts.tolist()[-1] == view.segment.numel()
    assert len(found.starts) == 3 * (3 + 1) + 1
    row = torch.arange(3)[:, None].expand_as(view.segment)
    labels = torch.stack([row, view.segment], dim=-1)
    lying = found.sort(labels).flatten(0, 1)
    together = [lying[a:b].unique(dim=0).tolist() for a, b in zip(found.starts[:-1], found.starts[1:], strict=True)]
    assert [one for one in together if one] == [[label] for label in labels.flatten(0, 1).unique(dim=0).tolist()]
    place = torch.arange(view.segment.numel()).view(*view.segment.shape, 1)
    assert (found.sort(place).flatten().diff()[lying.diff(dim=0).eq(0).all(1)] > 0).all()  # their order is kept
    assert torch.equal(found.put_back(found.sort(place)), place)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("wanted", [None, 5])
@pytest.mark.parametrize("leads", [0, 1, 2])
@pytest.mark.parametrize("settings", [{}, {"order": "post", "theta": 100.0}], ids=["learned", "rotary"])
def test_vectors_and_gradients_are_those_of_the_mask(monkeypatch, settings, leads, wanted, recompute):
    torch.manual_seed(0)
    made, view = Encoder(Architecture(32, 3, 2, **settings)), rows(leads)
    made.recompute = recompute
    tokens = torch.randn(*view.segment.shape, 32, requires_grad=True)
    place = torch.arange(view.segment.shape[1], dtype=torch.float32)[None, :, None]
    weight = torch.randn(3, wanted or view.segment.shape[1], 32)

    def out_and_gradients():
        out = made(tokens, view.segment, place, wanted=wanted, samples=3)
        return out, *torch.autograd.grad((out * weight).sum(), [tokens, *made.parameters()])

    expected = out_and_gradients()
    monkeypatch.setattr(packed, "usable", lambda tokens, head_width: True)
    monkeypatch.setattr(varlen, "varlen_attn", each_alone)
    for ours, theirs in zip(out_and_gradients(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("modality", MODALITIES)
def test_every_objective_has_the_loss_and_gradients_of_the_mask(monkeypatch, tmp_path, modality, objective):
    """On real batches: the number of samples that a row holds is handed on, and true."""
    config = support.config(modality, objective, tmp_path)
    built = config.build_modality()
    rows = support.rows_of(modality, built)
    made = config.build_objective(built)
    samples = Samples(rows.table, rows.column, built, made.views, 0, 10)
    views = [built.prepare(view) for view in samples.__getitems__([(0, i) for i in range(12)])["views"]]
    kernels = []

    def noted(*given, **named):
        kernels.append(len(given[3]))
        return each_alone(*given, **named)

    def loss_and_gradients():
        torch.manual_seed(0)
        loss = made(views)["loss"]
        found = torch.autograd.grad(loss, [p for p in made.parameters() if p.requires_grad], materialize_grads=True)
        return loss, torch.cat([gradient.flatten() for gradient in found])

    expected = loss_and_gradients()
    monkeypatch.setattr(packed, "usable", lambda tokens, head_width: True)
    monkeypatch.setattr(varlen, "varlen_attn", noted)
    for ours, theirs in zip(loss_and_gradients(), expected, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()
    if views[0].segment is not None:
        assert kernels and max(kernels) < sum(view.segment.numel() for view in views)  # far fewer than one a token


def test_layers_come_back_in_the_rows_order_and_windows_keep_the_mask(monkeypatch):
    torch.manual_seed(0)
    view, tokens = rows(1), torch.randn(3, 12, 32)
    place = torch.arange(12.0)[None, :, None]
    made, near = Encoder(Architecture(32, 2, 2)), Encoder(Architecture(32, 2, 2, windows=(0, 2)))
    expected = made(tokens, view.segment, every_layer=True), near(tokens, view.segment, place)
    monkeypatch.setattr(packed, "usable", lambda tokens, head_width: True)
    monkeypatch.setattr(varlen, "varlen_attn", each_alone)
    # Without `samples` a row may hold as many segments as tokens.
    for ours, theirs in zip(made(tokens, view.segment, every_layer=True), expected[0], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert torch.equal(near(tokens, view.segment, place), expected[1])


def test_the_kernel_takes_what_it_is_given_and_the_host_reads_nothing(monkeypatch):
    """Traced through torch's own kernel, without values: whatever reads one raises."""
    kernel, seen = varlen.varlen_attn, []

    def noted(*given, **named):
        seen.append({(x.dtype, x.shape, x.stride(-1)) for x in given[:3]})
        return kernel(*given, **named)

    monkeypatch.setattr(packed, "usable", lambda tokens, head_width: True)
    monkeypatch.setattr(varlen, "varlen_attn", noted)
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16):
        made, tokens = Encoder(Architecture(32, 2, 2, theta=100.0)), torch.randn(3, 12, 32)
        segment = torch.zeros(3, 12, dtype=torch.long)
        with pytest.raises(DataDependentOutputException):
            segment.max().item()
        out = made(tokens, segment, torch.zeros(1, 12, 1), wanted=7, samples=3)
        out.float().sum().backward()
    assert out.shape == (3, 7, 32) and all(p.grad.shape == p.shape for p in made.parameters())
    assert seen == [{(torch.bfloat16, (36, 2, 16), 1)}] * 2


def test_a_cpu_keeps_the_mask():
    assert not packed.usable(torch.zeros(1, 2, 64, dtype=torch.bfloat16), 64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("length", [100, 300])
def test_on_a_gpu_bfloat16_gives_the_vectors_of_the_mask(monkeypatch, length, compiled):
    torch.manual_seed(0)
    made = Encoder(Architecture(128, 2, 2)).cuda()
    tokens, weight = torch.randn(2, 5, length, 128, device="cuda")
    segment = torch.randint(0, 4, (5, length), device="cuda")

    def out_and_gradients(run):
        with torch.autocast("cuda", torch.bfloat16):
            out = run(tokens, segment, samples=3)
        return out, *torch.autograd.grad((out * weight).sum(), list(made.parameters()))

    assert packed.usable(tokens.bfloat16(), 64)
    ours = out_and_gradients(torch.compile(made, fullgraph=True) if compiled else made)
    monkeypatch.setattr(packed, "usable", lambda tokens, head_width: False)
    for found, expected in zip(ours, out_and_gradients(made), strict=True):
        assert (found - expected).norm() <= 0.03 * expected.norm()
