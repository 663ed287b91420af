"""The two forms of the mask that keeps samples apart are one."""

import pytest
import torch
from torch.nn.attention import flex_attention

from triptych.encoders import Architecture, Encoder, encoder


@pytest.mark.parametrize("wanted", [None, 40])
def test_flex_attention_gives_the_vectors_and_gradients_of_the_mask(monkeypatch, wanted):
    torch.manual_seed(0)
    made = Encoder(Architecture(64, 2, 2))
    tokens = torch.randn(5, 150, 64)
    segment = torch.randint(0, 4, (5, 150)).sort(1).values
    weight = torch.randn(5, wanted or 150, 64)

    def out_and_gradients(module):
        out = module(tokens, segment, wanted=wanted)
        return out, *torch.autograd.grad((out * weight).sum(), list(made.parameters()))

    expected = out_and_gradients(made)
    monkeypatch.setattr(encoder, "_flexible", lambda segment: True)
    # On a CPU only its plain form has a backward, which `flex_attention` refuses; on a GPU there is nothing to patch.
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    flexible = out_and_gradients(torch.compile(made, backend="aot_eager", fullgraph=True))
    for ours, theirs in zip(flexible, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_compiled_on_a_gpu_packed_rows_give_the_vectors_of_a_cpu():
    torch.manual_seed(0)
    made = Encoder(Architecture(64, 2, 2))
    tokens, weight = torch.randn(2, 5, 300, 64)
    segment = torch.randint(0, 4, (5, 300)).sort(1).values
    expected = made(tokens, segment)
    (expected * weight).mean().backward()
    gradient = made.blocks[0].mlp.up.weight.grad.clone()
    made.zero_grad()
    made = made.cuda()
    found = torch.compile(made)(tokens.cuda(), segment.cuda())
    (found * weight.cuda()).mean().backward()
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(made.blocks[0].mlp.up.weight.grad.cpu(), gradient, atol=1e-3, rtol=1e-3)
