"""BERT (Devlin et al. 2019), most sentence encoders too: `BertModel`, `BertForMaskedLM`, `BertForSequence...`."""

from triptych.encoders.embeddings import TokenVariant
from triptych.encoders.native.text import TextFamily


class Bert(TextFamily):
    name = "bert"
    config_class, base_class = "BertConfig", "BertModel"
    classifier, masked_class = "BertForSequenceClassification", "BertForMaskedLM"
    variant = TokenVariant(after_padding=False, types=2)
    defaults = {"order": "post"}
    pooler = True
    trunk = {
        "attention.qkv": (
            "encoder.layer.{}.attention.self.query",
            "encoder.layer.{}.attention.self.key",
            "encoder.layer.{}.attention.self.value",
        ),
        "attention.out": "encoder.layer.{}.attention.output.dense",
        "norm1": "encoder.layer.{}.attention.output.LayerNorm",
        "mlp.up": "encoder.layer.{}.intermediate.dense",
        "mlp.down": "encoder.layer.{}.output.dense",
        "norm2": "encoder.layer.{}.output.LayerNorm",
    }
    ends = TextFamily.tables
    head_names = {
        "dense": "cls.predictions.transform.dense",
        "norm": "cls.predictions.transform.LayerNorm",
        "bias": "cls.predictions.bias",
    }
