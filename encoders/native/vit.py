"""ViT: `ViTModel`, `ViTForImageClassification`, `ViTForMaskedImageModeling`; and `vit_mae`, which goes out as ViT."""

from collections.abc import Iterator

from einops import rearrange
from torch import Tensor, nn

from triptych.encoders.backbone import Backbone
from triptych.encoders.native.grid import ImageFamily, within
from triptych.encoders.native.names import Pair, copy_in, copy_out, leaves
from triptych.encoders.native.start import Start


class ViT(ImageFamily):
    name = "vit"
    pooling = "lead"
    config_class, base_class, classifier = "ViTConfig", "ViTModel", "ViTForImageClassification"
    masked_class = "ViTForMaskedImageModeling"
    trunk = within(
        "layers.{}.",
        {
            "norm1": "layernorm_before",
            "attention.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
            "attention.out": "attention.o_proj",
            "norm2": "layernorm_after",
            "mlp.up": "mlp.fc1",
            "mlp.down": "mlp.fc2",
        },
    )
    ends = {"encoder.norm": "layernorm"}


class ViTMAE(ViT):
    """The encoder of a masked autoencoder (He et al. 2022). It has no classifier, so it goes out as `vit`."""

    name = "vit_mae"
    config_class, base_class, classifier = "ViTMAEConfig", "ViTMAEModel", None
    whole = False

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
        if not self.same_decoder(start.model.config, decoder):
            print("init_from: the decoder there has another size, so the decoder starts fresh", flush=True)
            return
        image = objective.backbone.modality
        for kind in ("weight", "bias"):  # the native target lies (height, width, channel)
            name = f"decoder.decoder_pred.{kind}"
            state[name] = rearrange(state[name], "(h w c) ... -> (c h w) ...", h=image.tile[0], w=image.tile[1])
        state["decoder.decoder_pos_embed"] = state["decoder.decoder_pos_embed"][0, 1:]
        ours = dict(objective.named_parameters())
        for mine, theirs in self.decoder_pairs(decoder.encoder.depth):
            copy_in(ours, state, mine, theirs)

    def trained_heads(self, objective: nn.Module) -> dict[str, Tensor]:
        """The decoder, if the objective has the one that came."""
        decoder, image = getattr(objective, "decoder", None), objective.backbone.modality
        native = self.native(objective.backbone, keep_heads=True)
        if decoder is None or not self.same_decoder(native.config, decoder):
            return {}
        ours = {name: parameter.detach() for name, parameter in objective.named_parameters()}
        for name in ("predict.weight", "predict.bias"):
            ours[name] = rearrange(ours[name], "(c h w) ... -> (h w c) ...", h=image.tile[0], w=image.tile[1])
        table = "decoder.places.table"
        ours[table] = nn.functional.pad(ours[table], (0, 0, 1, 0))  # the CLS' row is zero
        wanted, made = native.state_dict(), {}
        for mine, theirs in self.decoder_pairs(decoder.encoder.depth):
            made |= copy_out(ours, wanted, mine, theirs)
        return made

    @staticmethod
    def same_decoder(config, decoder) -> bool:
        made = decoder.encoder.architecture
        return (made.width, made.depth, made.heads, made.hidden) == (
            config.decoder_hidden_size,
            config.decoder_num_hidden_layers,
            config.decoder_num_attention_heads,
            config.decoder_intermediate_size,
        )

    def decoder_pairs(self, depth: int) -> Iterator[Pair]:
        for number in range(depth):
            for ours, native in self.trunk.items():
                names = (native,) if isinstance(native, str) else native
                names = tuple(f"decoder.decoder_{name}" for name in names)
                yield from leaves(f"decoder.encoder.blocks.{number}.{ours}", names, number)
        yield from leaves("decoder.encoder.norm", "decoder.decoder_norm")
        yield from leaves("decoder.embed", "decoder.decoder_embed")
        yield from leaves("predict", "decoder.decoder_pred")
        yield ("decoder.hidden",), ("decoder.mask_token",)
        yield ("decoder.places.table",), ("decoder.decoder_pos_embed",)
