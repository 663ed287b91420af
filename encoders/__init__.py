"""The shared encoder, its embeddings, and the native classes that it goes to and comes from (`encoders.native`)."""

from triptych.encoders.backbone import POOLINGS, Backbone, Encoded, Pooling, pool, pool_pieces, pooled
from triptych.encoders.embeddings import Embedding, GridEmbedding, GridVariant, TokenEmbedding, TokenVariant
from triptych.encoders.encoder import PRESETS, Architecture, Encoder, EncoderSettings

__all__ = [
    "POOLINGS",
    "PRESETS",
    "Architecture",
    "Backbone",
    "Embedding",
    "Encoded",
    "Encoder",
    "EncoderSettings",
    "GridEmbedding",
    "GridVariant",
    "Pooling",
    "TokenEmbedding",
    "TokenVariant",
    "pool",
    "pool_pieces",
    "pooled",
]
