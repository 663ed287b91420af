"""The shared encoder, and the native classes it is exported to and imported from (`encoders.native`)."""

from encoders.backbone import Backbone, Encoded, keep, pool_leads, pool_pieces, stack
from encoders.encoder import PRESETS, Encoder

__all__ = ["PRESETS", "Backbone", "Encoded", "Encoder", "keep", "pool_leads", "pool_pieces", "stack"]
