"""What families of grids share: a kernel that projects a piece, a table of places; of pictures also their processor."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from triptych.encoders.backbone import Backbone
from triptych.encoders.embeddings import GridEmbedding, GridVariant
from triptych.encoders.encoder import BIASES, Architecture
from triptych.encoders.native.base import Family, fields_of, from_pretrained, settings_of
from triptych.encoders.native.names import Pair, leaves
from triptych.encoders.native.start import Start, native_of
from triptych.encoders.positions import resample
from triptych.modalities import Grid, Image
from triptych.modalities.image_processor import KEPT, settings_from
from triptych.modalities.image_views import LUMA

PROJECTION = "embeddings.patch_embeddings.projection"
TABLE = "embeddings.position_embeddings"
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


class GridFamily(Family):
    """Names of a grid's embedding, and its variant."""

    auto_classes = "AutoModelForImageClassification, AutoImageProcessor"
    projection: ClassVar[str] = PROJECTION
    table: ClassVar[str] = TABLE
    lead_names: ClassVar[tuple[str, ...]] = ("embeddings.cls_token",)
    variant: ClassVar[GridVariant] = GridVariant()
    said = (*Family.said, "biases")
    choices = {"biases": (BIASES, ("out", "mlp"))}

    def embedding(self, modality: Grid, made: Architecture) -> GridEmbedding:
        return GridEmbedding(modality, made, self.variant)

    def pairs(self, backbone: Backbone) -> Iterator[Pair]:
        yield from super().pairs(backbone)
        yield from leaves("embedding.projection", self.projection)
        yield ("embedding.lead_content",), self.lead_names
        yield ("embedding.lead_place", "embedding.positions.table"), (self.table,)
        yield ("embedding.hidden",), ("embeddings.mask_token",)

    def inward(self, state: dict[str, Tensor], start: Start, backbone: Backbone) -> None:
        embedding = backbone.embedding
        if self.table in state and embedding.variant.table:
            state[self.table] = self.resized(state[self.table], self.extent_of(start), embedding)

    def resized(self, table: Tensor, extent: tuple[int, int], embedding: GridEmbedding) -> Tensor:
        """The native table for another grid, as the native class interpolates it, once."""
        grid = embedding.positions.extent
        if extent == grid:
            return table
        rows = table.flatten(0, -2)
        leads = len(rows) - extent[0] * extent[1]
        return torch.cat([rows[:leads], resample(rows[leads:], extent, grid, self.variant.antialias)])

    def extent_of(self, start: Start) -> tuple[int, int]:
        """Grid of the checkpoint's table."""
        height, width = pair(start.native.config["image_size"])
        patch, _ = pair(start.native.config["patch_size"])
        return height // patch, width // patch


class ImageFamily(GridFamily):
    """A family of pictures is these lines and a table of names.

    `interpolated` families keep the table that the checkpoint has, and take a view's places from it at every forward;
    the others' table is the view's. `usual` are settings of the modality that the published processors agree in, where
    a checkpoint has none.
    """

    modality = "image"
    masked_class: ClassVar[str | None] = None  # carries the head of masked prediction
    interpolated: ClassVar[bool] = False
    square: ClassVar[bool] = False  # the native class has square views only
    usual: ClassVar[dict[str, Any]] = {}
    free = ("image_size", "channels", "mean", "std", "target", "positions", "resample", "edge", "aspect", "rescale")

    def embedding(self, modality: Image, made: Architecture) -> GridEmbedding:
        (height, width), variant = modality.grid, self.variant
        if self.square and height != width:
            raise ValueError(
                f"modality.image_size {list(modality.extent)}: the native {self.base_class} has squares only"
            )
        if modality.registers is not None:
            if modality.registers and not variant.registers:
                raise ValueError(f"modality.registers {modality.registers}: family {self.name} has none")
            variant = replace(variant, registers=modality.registers)
        if self.interpolated:  # from a square, whatever the view is
            variant = replace(variant, extent=(modality.table_side or max(height, width),) * 2)
        return GridEmbedding(modality, made, variant)

    def pipeline_tag(self, model, backbone: Backbone) -> str | None:
        # Pipelines hand over RGB of 8 bits.
        rgb = backbone.modality.native_channels == 3 and not backbone.modality.arrays
        return "image-feature-extraction" if rgb else None

    def settings(self, config) -> dict[str, Any]:
        biased = getattr(config, "qkv_bias", True)
        return settings_of(config) | {"biases": BIASES if biased else ("out", "mlp")}

    def of_architecture(self, made: Architecture) -> dict[str, Any]:
        """Fields of the native configuration that say what the encoder is."""
        return fields_of(made) | {"qkv_bias": "query" in made.biases}

    def fields(self, backbone: Backbone) -> dict[str, Any]:
        image, (height, width) = backbone.modality, backbone.modality.extent
        if self.interpolated:
            height, width = (side * image.tile[0] for side in backbone.embedding.variant.extent)
        return self.of_architecture(backbone.encoder.architecture) | {
            "image_size": height if height == width else [height, width],
            "patch_size": image.tile[0],
            "num_channels": image.native_channels,
        }

    def outward(self, tensors: dict[str, Tensor], backbone: Backbone) -> None:
        """A grey kernel becomes one of red, green and blue, which sees the same grey in them."""
        if backbone.modality.native_channels != backbone.modality.channels:
            kernel = tensors["embedding.projection.weight"]
            tensors["embedding.projection.weight"] = torch.cat([kernel * part for part in LUMA], dim=1)

    def head_outward(self, tensors: dict[str, Tensor], backbone: Backbone) -> None:
        if backbone.modality.native_channels != backbone.modality.channels:
            for name, tensor in tensors.items():
                tensors[name] = tensor.repeat(3, *[1] * (tensor.ndim - 1))

    def without_dropout(self) -> dict[str, Any]:
        import transformers

        known = getattr(transformers, self.config_class)().to_dict()
        wanted = super().without_dropout() | {"pooler_act": "linear"}  # see `fill`
        return {name: value for name, value in wanted.items() if name in known}

    def fill(self, backbone: Backbone) -> dict[str, Tensor]:
        # An identity, so that AutoModel's pooler_output is the CLS, and not a random projection of it.
        width = backbone.width
        return {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}

    def head_class(self, head: nn.Module) -> str | None:
        return self.masked_class if isinstance(head, nn.Linear) else None

    def head_pairs(self, head: nn.Module) -> Iterator[Pair]:
        # A piece's values lie (channel, height, width), as PixelShuffle takes them.
        yield ("weight",), ("decoder.0.weight",)
        yield ("bias",), ("decoder.0.bias",)

    def native(self, backbone: Backbone, head: nn.Module | None = None, keep_heads: bool = False):
        import transformers

        height, width = backbone.modality.grid
        model = super().native(backbone, head if height == width else None, keep_heads)  # the class wants a square
        if type(model).__name__ == self.masked_class:
            model.config.encoder_stride = backbone.modality.tile[0]
            model = type(model)(model.config)
            base = getattr(transformers, self.base_class)(
                model.config, use_mask_token=True
            )  # with a pooler, see `fill`
            setattr(model, model.base_model_prefix, base)
        return model

    def start(self, path: str, **hub) -> Start:
        model = from_pretrained(self, path, **hub)
        config = model.config
        (patch, other), (height, width) = pair(config.patch_size), pair(config.image_size)
        if patch != other:
            raise ValueError(f"init_from {path}: its patches are {patch}×{other}; here they are squares")
        settings = {
            "image_size": height if height == width else (height, width),
            "patch_size": patch,
            "channels": config.num_channels,
            "positions": "learned",
        }
        if self.interpolated:
            settings["table_side"] = height // patch
        if self.variant.registers:
            settings["registers"] = config.num_register_tokens
        processor = published_processor(path, **hub)
        if processor is None:
            settings |= self.usual
            if self.interpolated and height > 224 and 224 % patch == 0:
                settings["image_size"] = 224  # as the published processors
            usual = ", ".join(f"{name} {value}" for name, value in self.usual.items())
            usual = (
                f"{self.name}'s usual one is taken: {usual}"
                if usual
                else "modality.mean and modality.std stay as they are"
            )
            print(f"init_from {path}: no processor there; {usual}", flush=True)
        else:
            its = settings_from(processor, f"init_from {path}")
            if self.variant.table and not self.interpolated:
                del its["image_size"]  # of another one the native class itself takes no picture
            settings |= its
        found = {name: getattr(processor, name, None) for name in KEPT}
        own = {name: tuple(v) if isinstance(v, list) else v for name, v in found.items() if v is not None}
        return Start(self, settings, self.settings(config), native_of(model), model, processor=processor, own=own)

    def adapted(self, settings: dict[str, Any], given: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        changed, notes = dict(settings), []
        size, wanted = (pair(which.get("image_size", settings["image_size"])) for which in (settings, given))
        if size != wanted:
            how = "rotations go by the grid of the view"
            if self.variant.table:
                patch, side = settings["patch_size"], settings.get("table_side")
                old = (side, side) if side else tuple(s // patch for s in size)
                new = tuple(s // patch for s in wanted)
                how = f"places are interpolated from {old[0]}×{old[1]} to {new[0]}×{new[1]}"
                how += " at every forward" if self.interpolated else ""
            notes.append(f"{wanted[0]}×{wanted[1]} pixels instead of {size[0]}×{size[1]}: {how}")
        channels, count = given.get("channels", settings["channels"]), settings["channels"]
        if channels != count:
            for name in ("mean", "std"):
                if name in settings:
                    values = each(settings[name], count)
                    changed[name] = (
                        [sum(values) / count] if channels == 1 else [values[j % count] for j in range(channels)]
                    )
            what, how = f"{channels} channels", f"are repeated × {count}/{channels}"
            if channels == 1:
                what, how = "1 channel", "are summed to one"
            notes.append(f"{what} instead of {count}: the first convolution's {how}, the normalisation folded in")
        elif any(
            name in settings and each(given[name], count) != each(settings[name], count)
            for name in {"mean", "std"} & given.keys()
        ):
            notes.append("another mean or std: folded into the first convolution")
        return changed, "; ".join(notes) or None

    def inward(self, state: dict[str, Tensor], start: Start, backbone: Backbone) -> None:
        super().inward(state, start, backbone)
        weight, bias, image = f"{self.projection}.weight", f"{self.projection}.bias", backbone.modality
        count = state[weight].shape[1]
        # Without a processor nothing is known of the checkpoint's statistics: then they are ours.
        its = [each(start.modality.get(name, 0.5), count) for name in ("mean", "std")]
        if image.channels == count and ("mean" not in start.modality or its == [image.mean, image.std]):
            return
        state[weight], state[bias] = fold(state[weight], state[bias], *its, image.mean, image.std)

    def load(self, start: Start, backbone: Backbone) -> None:
        super().load(start, backbone)
        backbone.modality.published = start.processor


def fold(kernel: Tensor, bias: Tensor, mean: list, std: list, new_mean: list, new_std: list) -> tuple[Tensor, Tensor]:
    """The kernel `[d c h w]` and bias for other channels and another normalisation, so that the sum stays what it was.

    One channel is seen by the kernels of all of the old ones. More are seen by the old ones in turn, so many times
    weaker as there are more of them.
    """
    count, channels = len(mean), len(new_mean)
    seen = torch.ones(1, count) if channels == 1 else torch.zeros(channels, count)
    if channels > 1:
        seen[range(channels), [j % count for j in range(channels)]] = count / channels
    mean, std, new_mean, new_std, seen, wide = (
        torch.as_tensor(v, dtype=torch.float64) for v in (mean, std, new_mean, new_std, seen, kernel)
    )
    scale = seen * new_std[:, None] / std
    shift = (seen * (new_mean[:, None] - mean) / std).sum(0)
    made = torch.einsum("jc,dchw->djhw", scale, wide)
    return made.to(kernel.dtype), (bias.double() + wide.sum((2, 3)) @ shift).to(bias.dtype)


def each(value: Any, count: int) -> list[float]:
    return list(value) if isinstance(value, (list, tuple)) else [value] * count


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def published_processor(path: str, **hub):
    """The processor of a checkpoint; None if it has none."""
    import transformers

    try:
        return transformers.AutoImageProcessor.from_pretrained(path, **hub)
    except (OSError, ValueError):
        return None


def within(prefix: str, names: dict[str, str | tuple[str, ...]]) -> dict[str, str | tuple[str, ...]]:
    """The same names below `prefix`."""
    return {
        ours: prefix + native if isinstance(native, str) else tuple(prefix + name for name in native)
        for ours, native in names.items()
    }
