"""ViT: `ViTModel`, `ViTForImageClassification`, `ViTForMaskedImageModeling`; also starts from `vit_mae`."""

import torch
from einops import rearrange
from torch import Tensor, nn

from encoders.backbone import Backbone
from encoders.native.base import Family, Start, config_settings, from_pretrained, trunk_settings


class ViT(Family):
    modality = "image"
    model_types = ("vit", "vit_mae")
    block = {
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
    norm = "layernorm"
    auto_classes = "AutoModelForImageClassification, AutoImageProcessor"

    def pipeline_tag(self, model) -> str:
        return "image-feature-extraction"

    def native(self, backbone: Backbone, head: nn.Module | None):
        from transformers import ViTConfig, ViTForMaskedImageModeling, ViTModel

        image = backbone.modality
        config = ViTConfig(
            **config_settings(backbone),
            image_size=image.extent[0] if image.extent[0] == image.extent[1] else list(image.extent),
            patch_size=image.tile[0],
            num_channels=image.channels,
            encoder_stride=image.tile[0],
            pooler_act="linear",
        )
        if head is None:
            return ViTModel(config)
        model = ViTForMaskedImageModeling(config)
        model.vit = ViTModel(config, use_mask_token=True)  # with a pooler, see `state`
        return model

    def export(self, backbone: Backbone, head: nn.Module | None):
        """The native model with our weights; of a grid that is not square without the head, whose class wants one."""
        height, width = backbone.modality.grid
        return super().export(backbone, head if height == width else None)

    def state(self, backbone: Backbone, head: nn.Module | None) -> dict[str, Tensor]:
        image, width = backbone.modality, backbone.width
        prefix = "" if head is None else "vit."
        place = torch.cat([image.lead_place, image.positions.table])
        state = self.trunk(backbone.encoder, prefix) | {
            f"{prefix}embeddings.cls_token": image.lead_content[None],
            f"{prefix}embeddings.position_embeddings": place[None],
            f"{prefix}embeddings.patch_embeddings.projection.weight": rearrange(
                image.projection.weight, "d (c h w) -> d c h w", c=image.channels, h=image.tile[0]
            ),
            f"{prefix}embeddings.patch_embeddings.projection.bias": image.projection.bias,
            # An identity, so that AutoModel's pooler_output is the CLS, and not a random projection of it.
            f"{prefix}pooler.dense.weight": torch.eye(width),
            f"{prefix}pooler.dense.bias": torch.zeros(width),
        }
        if head is None:
            return state
        return state | {
            "vit.embeddings.mask_token": image.hidden[None, None],
            # A piece's values lie (channel, height, width), as PixelShuffle takes them.
            "decoder.0.weight": head.weight[..., None, None],
            "decoder.0.bias": head.bias,
        }

    def start(self, path: str, **hub) -> Start:
        import transformers

        config = transformers.AutoConfig.from_pretrained(path, **hub)
        usual = "ViTMAEForPreTraining" if config.model_type == "vit_mae" else "ViTModel"
        other = {"ViTMAEModel", "ViTForMaskedImageModeling"} & set(config.architectures or ())
        model = from_pretrained(getattr(transformers, other.pop() if other else usual), path, **hub)
        size = config.image_size
        settings = {
            "image_size": size if isinstance(size, int) else tuple(size),
            "patch_size": config.patch_size,
            "channels": config.num_channels,
            "positions": "fixed" if config.model_type == "vit_mae" else "learned",
        }
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(path, **hub)
        except (OSError, ValueError):  # some publish none
            print(f"init_from {path}: no processor there; modality.mean and modality.std stay as they are", flush=True)
        else:
            normal = processor.do_normalize
            settings["mean"] = list(processor.image_mean) if normal else 0.0
            settings["std"] = list(processor.image_std) if normal else 1.0
        decoder = {}
        if config.model_type == "vit_mae":
            decoder = {
                "decoder_width": config.decoder_hidden_size,
                "decoder_depth": config.decoder_num_hidden_layers,
                "decoder_heads": config.decoder_num_attention_heads,
            }
        return Start(settings, trunk_settings(config), model, decoder)

    def load(self, start: Start, objective: nn.Module) -> list[str]:
        backbone = objective.backbone
        image, state = backbone.modality, dict(start.model.state_dict())
        prefix = "vit." if any(k.startswith("vit.") for k in state) else ""
        self.load_trunk(state, backbone.encoder, prefix)
        embeddings = f"{prefix}embeddings."
        place = state.pop(embeddings + "position_embeddings")[0]
        with torch.no_grad():
            image.lead_content.copy_(state.pop(embeddings + "cls_token")[0])
            image.lead_place.copy_(place[: image.leads])
            image.positions.table.copy_(place[image.leads :])
            image.projection.weight.copy_(state.pop(embeddings + "patch_embeddings.projection.weight").flatten(1))
            image.projection.bias.copy_(state.pop(embeddings + "patch_embeddings.projection.bias"))
            if embeddings + "mask_token" in state:
                image.hidden.copy_(state.pop(embeddings + "mask_token")[0, 0])
            if "decoder.0.weight" in state and objective.head is not None:
                objective.head.weight.copy_(state.pop("decoder.0.weight")[..., 0, 0])
                objective.head.bias.copy_(state.pop("decoder.0.bias"))
            decoder = getattr(objective, "decoder", None)
            if "decoder.mask_token" in state and decoder is not None:
                if self._decoder_size(start.model.config) == self._size(decoder):
                    self._load_decoder(state, objective)
                else:
                    print("init_from: the decoder there has another size, so the decoder starts fresh", flush=True)
        return [k for k in state if "pooler" not in k]

    @staticmethod
    def _decoder_size(config) -> tuple[int, ...]:
        return (
            config.decoder_hidden_size,
            config.decoder_num_hidden_layers,
            config.decoder_num_attention_heads,
            config.decoder_intermediate_size,
        )

    @staticmethod
    def _size(decoder: nn.Module) -> tuple[int, ...]:
        return decoder.width, decoder.depth, decoder.heads, decoder.blocks[0].mlp.up.out_features

    def _load_decoder(self, state: dict[str, Tensor], objective: nn.Module) -> None:
        decoder = {
            k.replace("decoder.decoder_layers.", "layers.").replace("decoder.decoder_norm.", "layernorm."): k
            for k in list(state)
            if k.startswith(("decoder.decoder_layers.", "decoder.decoder_norm."))
        }
        self.load_trunk({name: state.pop(k) for name, k in decoder.items()}, objective.decoder)
        for ours, native in ((objective.embed, "decoder_embed"), (objective.predict, "decoder_pred")):
            weight, bias = state.pop(f"decoder.{native}.weight"), state.pop(f"decoder.{native}.bias")
            if native == "decoder_pred":  # the native target lies (height, width, channel)
                image = objective.backbone.modality
                weight, bias = (
                    rearrange(t, "(h w c) ... -> (c h w) ...", h=image.tile[0], w=image.tile[1]) for t in (weight, bias)
                )
            ours.weight.copy_(weight)
            ours.bias.copy_(bias)
        objective.hidden.copy_(state.pop("decoder.mask_token")[0, 0])
        objective.places.table.copy_(state.pop("decoder.decoder_pos_embed")[0, 1:])
