"""Counter-based randomness: every random choice of a view or an objective is a hash of (seed, counters).

A hash has no state, so a mask or a crop is the same on any number of ranks, in any packing, on any device, after any
resume, and when a forward is replayed. The same code serves Python integers and int64 tensors.
"""

import math

import numpy as np
import torch
from torch import Tensor

MASK = 0xFFFFFFFF


def scramble(x):
    """Two rounds of xorshift-multiply on 32 bits ("lowbias32", C. Wellons, 2018). `x`: int or int64 tensor."""
    x = x & MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK  # wraps in int64; the low 32 bits are right
    return x ^ (x >> 16)


def mix(seed, *counters):
    """Hash `seed` and `counters` (ints or broadcastable int64 tensors) to integers in [0, 2**32)."""
    for counter in counters:
        seed = scramble(seed ^ scramble(counter + 0x9E3779B9))
    return seed


def uniform(seed, *counters):
    """As `mix`, in [0, 1): a float for ints, float32 for tensors (24 random bits, so 1.0 is never rounded to)."""
    bits = mix(seed, *counters) >> 8
    return bits.to(torch.float32) * 2.0**-24 if isinstance(bits, Tensor) else bits * 2.0**-24


def normal(seed, *counters) -> Tensor:
    """As `mix`, for tensors alone, from the standard normal distribution, float32 (Box and Muller 1958)."""
    distance = torch.sqrt(-2 * torch.log1p(-uniform(seed, *counters, 0)))
    return distance * torch.cos(2 * math.pi * uniform(seed, *counters, 1))


def generator(seed: int, *counters: int) -> np.random.Generator:
    """A numpy generator keyed by the same integers, for augmentations that draw many numbers in a worker."""
    return np.random.Generator(np.random.PCG64(mix(seed, *counters)))
