"""Published checkpoints of every family of pictures, tiny and random, and the comparison with what is made of them."""

import torch
import transformers

from triptych.encoders.native import make, start_from
from triptych.modalities import Image, View
from triptych.modalities.domains import build

# Heads are not blocks, and the hidden width is no usual one. Views are higher than wide where the class has such.
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 4, "image_size": [16, 24]}
WIDE = SIZES | {"intermediate_size": 40}
# Rotations of these are exact in float32: theta is a power of 2, and so are the lengths of the grid.
ROTARY = WIDE | {"num_register_tokens": 2, "rope_theta": 16.0, "image_size": [16, 32]}
SQUARE = {"image_size": 24}
CASES = {
    "vit": ("ViT", WIDE),
    "vit without qkv bias": ("ViT", WIDE | {"qkv_bias": False}),
    "deit": ("DeiT", WIDE),
    "ijepa": ("IJepa", WIDE),
    "dinov2": ("Dinov2", SIZES | SQUARE | {"mlp_ratio": 3, "layer_norm_eps": 1e-6}),
    "dinov2, gated": ("Dinov2", SIZES | SQUARE | {"mlp_ratio": 3, "use_swiglu_ffn": True}),
    "dinov2_with_registers": ("Dinov2WithRegisters", SIZES | SQUARE | {"mlp_ratio": 2, "num_register_tokens": 3}),
    "dinov3_vit": ("DINOv3ViT", ROTARY),
    "dinov3_vit, gated": ("DINOv3ViT", ROTARY | {"use_gated_mlp": True, "hidden_act": "silu", "key_bias": True}),
    "siglip_vision_model": ("SiglipVision", WIDE | SQUARE),
}
VIEWS = {"dinov2": (16, 32), "dinov2, gated": (24, 24), "dinov2_with_registers": (16, 32)}  # beside the table's


def randomised(model, seed: int = 0):
    """Norms, biases, layer scales and tables are ones and zeros in a fresh model, and their loss is invisible."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            parameter.copy_(1 + 0.3 * noise if "lambda" in name or "norm" in name and "weight" in name else 0.3 * noise)
    return model.eval()


def published(folder, case: str, **settings):
    """A checkpoint that this project did not make."""
    name, config = CASES[case]
    config = getattr(transformers, f"{name}Config")(**config | settings)
    model = randomised(getattr(transformers, f"{name}Model")(config))
    model.save_pretrained(folder)
    return model


def started(folder, family: str | None = None, **given):
    start = start_from(str(folder), "image")
    settings, _ = start.family.adapted(start.modality, given)
    modality = build(Image, settings | given, "modality.")
    backbone = make(modality, start.family.name, **start.encoder).eval()
    start.load(backbone)
    return start, backbone


def view_of(backbone, pixels) -> View:
    return View(**backbone.modality.cut(pixels), seed=torch.arange(len(pixels)))


def vectors(model, pixels):
    """All hidden states of a native model, the last after its norm, and what its classifier reads."""
    name = type(model).__name__
    with torch.no_grad():
        output = model(pixels, output_hidden_states=True)
    last, layers = output.last_hidden_state, list(output.hidden_states)
    pieces = last[:, len(leads_of(model)) :].mean(1)
    if name in ("IJepaModel", "SiglipVisionModel"):
        pooled = last.mean(1)
    elif name.startswith("Dinov2"):
        pooled = torch.cat([last[:, 0], pieces], dim=1)
    else:
        pooled = last[:, 0]
    return [*layers[:-1], last, pooled]


def leads_of(model) -> list:
    made = model.embeddings
    tokens = [getattr(made, name, None) for name in ("cls_token", "distillation_token", "register_tokens")]
    return [lead for token in tokens if token is not None for lead in token[0]]


def ours(backbone, pixels):
    view = view_of(backbone, pixels)
    with torch.no_grad():
        return [*backbone.encoder(*backbone.tokens(view), every_layer=True), backbone(view)]


def worst(model, backbone, pixels) -> float:
    """Largest relative difference over all hidden states and the pooled vector."""
    pairs = zip(vectors(model, pixels), ours(backbone, pixels), strict=True)
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)


def pixels_of(backbone, size=None):
    return torch.randn(2, 3, *(size or backbone.modality.extent), generator=torch.Generator().manual_seed(1))
