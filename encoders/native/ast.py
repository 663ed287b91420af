"""AST: `ASTModel`, `ASTForAudioClassification`.

The native kernel is square. A tile that is taller than wide is a kernel as wide as the tile is tall, zero beyond the
tile's width, moved by that width; the spectrogram is longer by the difference, so that the last kernel fits. Tiles that
overlap, as those of the published models do (16, every 10), are squares with a stride.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.encoders.backbone import Backbone
from triptych.encoders.embeddings import GridEmbedding, GridVariant
from triptych.encoders.native.base import Family, fields_of, from_pretrained
from triptych.encoders.native.grid import PROJECTION, GridFamily
from triptych.encoders.native.names import base_prefix
from triptych.encoders.native.start import Start, native_of
from triptych.encoders.native.vit import ViT
from triptych.modalities import Audio
from triptych.modalities.audio_file import RATE
from triptych.modalities.filterbank import framing

KERNEL = f"{PROJECTION}.weight"


class AST(GridFamily):
    name = "audio-spectrogram-transformer"
    modality = "audio"
    pooling = "leads"
    config_class, base_class, classifier = "ASTConfig", "ASTModel", "ASTForAudioClassification"
    auto_classes = "AutoModelForAudioClassification, AutoFeatureExtractor"
    trunk, ends = ViT.trunk, ViT.ends  # the native classes name their trunks alike
    lead_names = ("embeddings.cls_token", "embeddings.distillation_token")
    variant = GridVariant(leads=2, anchored=True)
    free = (*Family.free, "seconds", "mel_bins")

    def pipeline_tag(self, model, backbone: Backbone) -> str:
        return "audio-classification"  # with a head that is new: no stock pipeline gives features of sound

    def settings(self, config) -> dict[str, Any]:
        return ViT.settings(self, config)

    def fields(self, backbone: Backbone) -> dict[str, Any]:
        made, audio = backbone.encoder.architecture, backbone.modality
        return fields_of(made) | {
            "qkv_bias": "query" in made.biases,
            "patch_size": audio.tile[0],
            "frequency_stride": audio.stride[0],
            "time_stride": audio.stride[1],
            "max_length": audio.native_frames,
            "num_mel_bins": audio.extent[0],
        }

    def outward(self, tensors: dict[str, Tensor], backbone: Backbone) -> None:
        height, width = backbone.modality.tile
        kernel = rearrange(tensors["embedding.projection.weight"], "d (h w) -> d 1 h w", h=height)
        tensors["embedding.projection.weight"] = nn.functional.pad(kernel, (0, height - width))

    def inward(self, state: dict[str, Tensor], start: Start, backbone: Backbone) -> None:
        super().inward(state, start, backbone)
        state[KERNEL] = state[KERNEL][..., : backbone.modality.tile[1]]

    def load(self, start: Start, backbone: Backbone) -> None:
        super().load(start, backbone)
        backbone.modality.keep_frames(start.native.config["max_length"])

    def extent_of(self, start: Start) -> tuple[int, int]:
        config = start.native.config
        sides = (config["num_mel_bins"], config["frequency_stride"]), (config["max_length"], config["time_stride"])
        return tuple((side - config["patch_size"]) // stride + 1 for side, stride in sides)

    def resized(self, table: Tensor, extent: tuple[int, int], embedding: GridEmbedding) -> Tensor:
        """A shorter axis is cut from the middle, a longer one interpolated linearly, as AST's own code does it."""
        grid, rows = embedding.positions.extent, table.flatten(0, -2)
        leads = len(rows) - extent[0] * extent[1]
        places = rows[leads:].unflatten(0, extent)
        for axis in range(2):
            if grid[axis] < extent[axis]:
                places = places.narrow(axis, extent[axis] // 2 - grid[axis] // 2, grid[axis])
        if tuple(places.shape[:2]) != grid:
            places = F.interpolate(places.permute(2, 0, 1)[None], size=grid, mode="bilinear")[0].permute(1, 2, 0)
        return torch.cat([rows[:leads], places.flatten(0, 1)])

    def adapted(self, settings: dict[str, Any], given: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        known = ("seconds", "rate", "mel_bins", "tile", "stride")
        sizes = {name: settings[name] for name in known if name in settings}
        asked = sizes | {name: given[name] for name in ("seconds", "mel_bins") if name in given}
        old, new = Audio(**sizes).grid, Audio(**asked).grid
        if old == new:
            return settings, None
        how = "the shorter axis cut from the middle, the longer interpolated"
        return (
            settings,
            f"{new[0]}×{new[1]} tiles instead of {old[0]}×{old[1]}: the table of places is resampled, {how}",
        )

    def start(self, path: str, **hub) -> Start:
        from transformers import ASTFeatureExtractor

        model = from_pretrained(self, path, **hub)
        config = model.config
        patch, strides = config.patch_size, (config.frequency_stride, config.time_stride)
        if max(strides) > patch:
            raise ValueError(
                f"init_from {path}: its patches of {patch} leave gaps (strides {strides[0]} and {strides[1]})"
            )
        kernel = model.state_dict()[base_prefix(model) + KERNEL]
        settings = {"mel_bins": config.num_mel_bins, "positions": "learned"}
        if strides[0] == patch and not kernel[..., strides[1] :].any():
            settings["tile"] = (patch, strides[1])
        else:
            settings |= {"tile": (patch, patch), "stride": strides}
        try:
            processor = ASTFeatureExtractor.from_pretrained(path, **hub)
        except (OSError, ValueError):
            processor = None  # some publish none; then the statistics come from the data
        settings["rate"] = RATE if processor is None else processor.sampling_rate
        frames = (config.max_length - patch) // strides[1] * strides[1] + settings["tile"][1]
        settings["seconds"] = frames * framing(settings["rate"]).hop / settings["rate"]
        if processor is not None:
            normal = processor.do_normalize
            settings |= {"mean": processor.mean if normal else 0.0, "std": processor.std if normal else 0.5}
        return Start(self, settings, self.settings(config), native_of(model), model, processor=processor)
