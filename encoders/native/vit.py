"""ViT: `ViTModel`, `ViTForImageClassification`, `ViTForMaskedImageModeling`; and `vit_mae`, which goes out as ViT."""

from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from encoders.backbone import Backbone
from encoders.embeddings import GridEmbedding, GridVariant
from encoders.encoder import BIASES, Architecture
from encoders.native.base import (
    Family,
    Pair,
    Start,
    copy_in,
    fields_of,
    from_pretrained,
    leaves,
    native_of,
    require,
    settings_of,
)
from encoders.positions import resample
from modalities import Grid
from modalities.image import LUMA

PROJECTION = "embeddings.patch_embeddings.projection"
TABLE = "embeddings.position_embeddings"


class GridFamily(Family):
    """What families of pictures and spectrograms share: a kernel that projects a piece, and a table of places."""

    auto_classes = "AutoModelForImageClassification, AutoImageProcessor"
    projection = PROJECTION
    table = TABLE
    lead_names: tuple[str, ...] = ("embeddings.cls_token",)
    variant = GridVariant()
    antialias = False  # of the native interpolation of places

    def embedding(self, modality: Grid, made: Architecture) -> GridEmbedding:
        return GridEmbedding(modality, made, self.variant)

    def pairs(self, backbone: Backbone) -> Iterator[Pair]:
        yield from super().pairs(backbone)
        yield from leaves("embedding.projection", self.projection)
        yield ("embedding.lead_content",), self.lead_names
        yield ("embedding.lead_place", "embedding.positions.table"), (self.table,)
        yield ("embedding.hidden",), ("embeddings.mask_token",)

    def outward(self, tensors: dict[str, Tensor], backbone: Backbone) -> None:
        """A grey kernel becomes one of red, green and blue, which sees the same grey in them."""
        if backbone.modality.channels == 1:
            kernel = tensors["embedding.projection.weight"]
            tensors["embedding.projection.weight"] = torch.cat([kernel * part for part in LUMA], dim=1)

    def head_outward(self, tensors: dict[str, Tensor], backbone: Backbone) -> None:
        if backbone.modality.channels == 1:
            for name, tensor in tensors.items():
                tensors[name] = tensor.repeat(3, *[1] * (tensor.ndim - 1))

    def inward(self, state: dict[str, Tensor], start: Start, backbone: Backbone) -> None:
        embedding = backbone.embedding
        if self.table in state and embedding.variant.table:
            state[self.table] = self.resized(state[self.table], self.extent_of(start), embedding)
        kernel, bias = state[f"{self.projection}.weight"], state[f"{self.projection}.bias"]
        state[f"{self.projection}.weight"], state[f"{self.projection}.bias"] = self.channels(kernel, bias, backbone)

    def resized(self, table: Tensor, extent: tuple[int, int], embedding: GridEmbedding) -> Tensor:
        """The native table for another grid, as the native class interpolates it, once."""
        grid = embedding.positions.extent
        if extent == grid:
            return table
        leads = table.shape[1] - extent[0] * extent[1]
        return torch.cat([table[0, :leads], resample(table[0, leads:], extent, grid, self.antialias)])[None]

    def extent_of(self, start: Start) -> tuple[int, int]:
        """Grid of the checkpoint's table."""
        size, patch = start.native.config["image_size"], start.native.config["patch_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return height // patch, width // patch

    def channels(self, kernel: Tensor, bias: Tensor, backbone: Backbone) -> tuple[Tensor, Tensor]:
        """The native kernel `[d c h w]` and bias as they are; families of pictures fold other channels in."""
        return kernel, bias


class ViT(GridFamily):
    name = "vit"
    modality = "image"
    pooling = "lead"
    config_class, base_class, classifier = "ViTConfig", "ViTModel", "ViTForImageClassification"
    trunk = {
        "norm1": "layers.{}.layernorm_before",
        "attention.qkv": (
            "layers.{}.attention.q_proj",
            "layers.{}.attention.k_proj",
            "layers.{}.attention.v_proj",
        ),
        "attention.out": "layers.{}.attention.o_proj",
        "norm2": "layers.{}.layernorm_after",
        "mlp.up": "layers.{}.mlp.fc1",
        "mlp.down": "layers.{}.mlp.fc2",
    }
    ends = {"encoder.norm": "layernorm"}

    def pipeline_tag(self, model) -> str | None:
        return "image-feature-extraction" if model.config.num_channels == 3 else None  # pipelines hand over RGB

    def settings(self, config) -> dict[str, Any]:
        biases = BIASES if getattr(config, "qkv_bias", True) else ("out", "mlp")
        return settings_of(config) | {"biases": biases}

    def fields(self, backbone: Backbone) -> dict[str, Any]:
        made, image = backbone.encoder.architecture, backbone.modality
        require(backbone, self.base_class, mlp="plain", order="pre", norm="layer", theta=None, layer_scale=None)
        return fields_of(made) | {
            "qkv_bias": "query" in made.biases,
            "image_size": image.extent[0] if image.extent[0] == image.extent[1] else list(image.extent),
            "patch_size": image.tile[0],
            "num_channels": 3 if image.channels == 1 else image.channels,
        }

    def without_dropout(self) -> dict[str, Any]:
        return super().without_dropout() | {"pooler_act": "linear"}  # see `fill`

    def fill(self, backbone: Backbone) -> dict[str, Tensor]:
        # An identity, so that AutoModel's pooler_output is the CLS, and not a random projection of it.
        width = backbone.width
        return {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}

    def head_class(self, head: nn.Module) -> str | None:
        return "ViTForMaskedImageModeling" if isinstance(head, nn.Linear) else None

    def head_pairs(self, head: nn.Module) -> Iterator[Pair]:
        # A piece's values lie (channel, height, width), as PixelShuffle takes them.
        yield ("weight",), ("decoder.0.weight",)
        yield ("bias",), ("decoder.0.bias",)

    def native(self, backbone: Backbone, head: nn.Module | None = None, keep_heads: bool = False):
        import transformers

        height, width = backbone.modality.grid
        model = super().native(backbone, head if height == width else None, keep_heads)  # the class wants a square
        if type(model).__name__ == "ViTForMaskedImageModeling":
            model.config.encoder_stride = backbone.modality.tile[0]
            model = type(model)(model.config)
            model.vit = transformers.ViTModel(model.config, use_mask_token=True)  # with a pooler, see `fill`
        return model

    def start(self, path: str, **hub) -> Start:
        import transformers

        model = from_pretrained(self, path, **hub)
        config = model.config
        size = config.image_size
        settings = {
            "image_size": size if isinstance(size, int) else tuple(size),
            "patch_size": config.patch_size,
            "channels": config.num_channels,
            "positions": "learned",
        }
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(path, **hub)
        except (OSError, ValueError):  # some publish none
            print(f"init_from {path}: no processor there; modality.mean and modality.std stay as they are", flush=True)
            processor = None
        else:
            normal = processor.do_normalize
            settings["mean"] = list(processor.image_mean) if normal else 0.0
            settings["std"] = list(processor.image_std) if normal else 1.0
        return Start(self, settings, self.settings(config), native_of(model), model, processor=processor)


class ViTMAE(ViT):
    """The encoder of a masked autoencoder (He et al. 2022). It has no classifier, so it goes out as `vit`."""

    name = "vit_mae"
    config_class, base_class, classifier = "ViTMAEConfig", "ViTMAEModel", None

    def export(self, backbone: Backbone, head: nn.Module | None = None, keep_heads: bool = False):
        return super().export(backbone, head, True) if keep_heads else ViT().export(backbone, head)

    def start(self, path: str, **hub) -> Start:
        start = super().start(path, **hub)
        config = start.model.config
        start.modality |= {"positions": "fixed", "target": "normalised" if config.norm_pix_loss else "raw"}
        start.trained_by = "mae"
        start.objective = {
            "mask.ratio": config.mask_ratio,
            "decoder.width": config.decoder_hidden_size,
            "decoder.depth": config.decoder_num_hidden_layers,
            "decoder.heads": config.decoder_num_attention_heads,
        }
        return start

    def load_heads(self, start: Start, objective: nn.Module) -> None:
        """The decoder, into an objective that has one of the same size."""
        state, decoder = start.model.state_dict(), getattr(objective, "decoder", None)
        if "decoder.mask_token" not in state or decoder is None:
            return
        config, made = start.model.config, decoder.architecture
        there = (
            config.decoder_hidden_size,
            config.decoder_num_hidden_layers,
            config.decoder_num_attention_heads,
            config.decoder_intermediate_size,
        )
        if there != (made.width, made.depth, made.heads, made.hidden):
            print("init_from: the decoder there has another size, so the decoder starts fresh", flush=True)
            return
        image = objective.backbone.modality
        for kind in ("weight", "bias"):  # the native target lies (height, width, channel)
            name = f"decoder.decoder_pred.{kind}"
            state[name] = rearrange(state[name], "(h w c) ... -> (c h w) ...", h=image.tile[0], w=image.tile[1])
        state["decoder.decoder_pos_embed"] = state["decoder.decoder_pos_embed"][0, 1:]
        ours = dict(objective.named_parameters())
        for mine, theirs in self.decoder_pairs(made.depth):
            copy_in(ours, state, mine, theirs)

    def decoder_pairs(self, depth: int) -> Iterator[Pair]:
        for number in range(depth):
            for ours, native in self.trunk.items():
                names = (native,) if isinstance(native, str) else native
                names = tuple(f"decoder.decoder_{name}" for name in names)
                yield from leaves(f"decoder.blocks.{number}.{ours}", names, number)
        yield from leaves("decoder.norm", "decoder.decoder_norm")
        yield from leaves("embed", "decoder.decoder_embed")
        yield from leaves("predict", "decoder.decoder_pred")
        yield ("hidden",), ("decoder.mask_token",)
        yield ("places.table",), ("decoder.decoder_pos_embed",)
