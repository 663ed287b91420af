"""AST: `ASTModel`, `ASTForAudioClassification`.

The native kernel is square. A tile that is taller than wide is a kernel as wide as the tile is tall, zero beyond the
tile's width, moved by that width; the spectrogram is longer by the difference, so that the last kernel fits.
"""

from typing import Any

from einops import rearrange
from torch import Tensor, nn

from encoders.backbone import Backbone
from encoders.embeddings import GridVariant
from encoders.native.base import Start, fields_of, from_pretrained, native_of, require
from encoders.native.grid import PROJECTION, GridFamily
from encoders.native.vit import ViT

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

    def pipeline_tag(self, model) -> str:
        return "audio-classification"  # with a head that is new: no stock pipeline gives features of sound

    def settings(self, config) -> dict[str, Any]:
        return ViT.settings(self, config)

    def fields(self, backbone: Backbone) -> dict[str, Any]:
        made, audio = backbone.encoder.architecture, backbone.modality
        require(backbone, self.base_class, mlp="plain", order="pre", norm="layer", theta=None, layer_scale=None)
        height, width = audio.tile
        return fields_of(made) | {
            "qkv_bias": "query" in made.biases,
            "patch_size": height,
            "frequency_stride": height,
            "time_stride": width,
            "max_length": audio.extent[1] + height - width,
            "num_mel_bins": audio.extent[0],
        }

    def outward(self, tensors: dict[str, Tensor], backbone: Backbone) -> None:
        height, width = backbone.modality.tile
        kernel = rearrange(tensors["embedding.projection.weight"], "d (h w) -> d 1 h w", h=height)
        tensors["embedding.projection.weight"] = nn.functional.pad(kernel, (0, height - width))

    def inward(self, state: dict[str, Tensor], start: Start, backbone: Backbone) -> None:
        state[KERNEL] = state[KERNEL][..., : backbone.modality.tile[1]]

    def start(self, path: str, **hub) -> Start:
        from transformers import ASTFeatureExtractor

        model = from_pretrained(self, path, **hub)
        config = model.config
        height, width = config.patch_size, config.time_stride
        beyond = model.get_parameter(
            ("audio_spectrogram_transformer." if hasattr(model, "classifier") else "") + KERNEL
        )
        if config.frequency_stride < height or beyond[..., width:].any():
            raise ValueError(
                f"init_from {path}: its patches of {height} overlap (strides {config.frequency_stride} and {width}), "
                "which tiles cannot; start from one whose strides are its patch size"
            )
        if config.frequency_stride > height or width > height:
            raise ValueError(
                f"init_from {path}: its patches of {height} leave gaps (strides {config.frequency_stride} and {width})"
            )
        settings = {
            "seconds": (config.max_length - height + width) // width * width / 100,
            "mel_bins": config.num_mel_bins,
            "tile": (height, width),
            "positions": "learned",
        }
        try:
            processor = ASTFeatureExtractor.from_pretrained(path, **hub)
        except (OSError, ValueError):
            processor = None  # some publish none; then the statistics come from the data
        if processor is not None:
            if processor.sampling_rate != 16_000:
                raise ValueError(f"init_from {path}: made for {processor.sampling_rate} Hz, sound here is at 16 kHz")
            normal = processor.do_normalize
            settings |= {"mean": processor.mean if normal else 0.0, "std": processor.std if normal else 0.5}
        return Start(self, settings, self.settings(config), native_of(model), model, processor=processor)
