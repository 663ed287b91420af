"""RoBERTa (Liu et al. 2019) and XLM-RoBERTa (Conneau et al. 2020): BERT's trunk, places from after the padding's.

`RobertaModel`, `RobertaForMaskedLM`, `RobertaForSequenceClassification`, and the same of `XLMRoberta...`.
"""

from triptych.encoders.embeddings import TokenVariant
from triptych.encoders.native.bert import Bert
from triptych.encoders.native.text import RobertaHead, TextFamily


class Roberta(RobertaHead, TextFamily):
    name = "roberta"
    config_class, base_class = "RobertaConfig", "RobertaModel"
    classifier, masked_class = "RobertaForSequenceClassification", "RobertaForMaskedLM"
    variant = TokenVariant(head_activation="gelu")
    defaults = {"order": "post", "eps": 1e-5}  # of the published ones
    trunk, ends = Bert.trunk, Bert.ends


class XLMRoberta(Roberta):
    name = "xlm-roberta"
    config_class, base_class = "XLMRobertaConfig", "XLMRobertaModel"
    classifier, masked_class = "XLMRobertaForSequenceClassification", "XLMRobertaForMaskedLM"
