"""AST: `ASTModel`, `ASTForAudioClassification`.

The native kernel is square. A tile that is taller than wide is a kernel as wide as the tile is tall, zero beyond the
tile's width, moved by that width; the spectrogram is longer by the difference, so that the last kernel fits.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from encoders.backbone import Backbone
from encoders.native.base import Family, Start, config_settings, from_pretrained, trunk_settings
from encoders.native.vit import ViT

PROJECTION = "embeddings.patch_embeddings.projection"


class AST(Family):
    modality = "audio"
    model_types = ("audio-spectrogram-transformer",)
    block = ViT.block  # the native classes name their trunks alike
    norm = ViT.norm
    auto_classes = "AutoModelForAudioClassification, AutoFeatureExtractor"

    def native(self, backbone: Backbone, head: nn.Module | None):
        """`ASTModel`; there is no native class for a head that predicts tiles, so `head` stays behind."""
        from transformers import ASTConfig, ASTModel

        audio = backbone.modality
        height, width = audio.tile
        config = ASTConfig(
            **config_settings(backbone),
            patch_size=height,
            frequency_stride=height,
            time_stride=width,
            max_length=audio.extent[1] + height - width,
            num_mel_bins=audio.extent[0],
        )
        return ASTModel(config)

    def state(self, backbone: Backbone, head: nn.Module | None) -> dict[str, Tensor]:
        audio = backbone.modality
        height, width = audio.tile
        place = torch.cat([audio.lead_place, audio.positions.table])
        kernel = rearrange(audio.projection.weight, "d (h w) -> d 1 h w", h=height)
        return self.trunk(backbone.encoder) | {
            "embeddings.cls_token": audio.lead_content[None, :1],
            "embeddings.distillation_token": audio.lead_content[None, 1:],
            "embeddings.position_embeddings": place[None],
            f"{PROJECTION}.weight": nn.functional.pad(kernel, (0, height - width)),
            f"{PROJECTION}.bias": audio.projection.bias,
        }

    def start(self, path: str, **hub) -> Start:
        from transformers import ASTFeatureExtractor, ASTModel

        model = from_pretrained(ASTModel, path, **hub)
        config = model.config
        height, width = config.patch_size, config.time_stride
        beyond = model.state_dict()[f"{PROJECTION}.weight"][..., width:]
        if config.frequency_stride < height or beyond.any():
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
        return Start(settings, trunk_settings(config), model)

    def load(self, start: Start, objective: nn.Module) -> list[str]:
        backbone = objective.backbone
        audio, state = backbone.modality, dict(start.model.state_dict())
        self.load_trunk(state, backbone.encoder)
        place = state.pop("embeddings.position_embeddings")[0]
        with torch.no_grad():
            audio.lead_content.copy_(
                torch.cat([state.pop(f"embeddings.{name}_token")[0] for name in ("cls", "distillation")])
            )
            audio.lead_place.copy_(place[: audio.leads])
            audio.positions.table.copy_(place[audio.leads :])
            kernel = state.pop(f"{PROJECTION}.weight")[..., : audio.tile[1]]
            audio.projection.weight.copy_(rearrange(kernel, "d 1 h w -> d (h w)"))
            audio.projection.bias.copy_(state.pop(f"{PROJECTION}.bias"))
        return list(state)
