"""Attention of samples that share a row, on a GPU: torch's kernel for sequences of many lengths, without a mask.

With a mask every token is compared with its whole row, and most of that is thrown away. The kernel (FlashAttention 2,
Dao 2023) computes no more than each sample's own pairs, but wants a sample's tokens side by side, while rows have the
leads of all their samples in front. So rows are sorted by sample before the first block, and put back after the last.
No shape depends on values: the host does not wait.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Sequences(NamedTuple):
    """Where the samples lie in rows that are sorted by sample. The holes of a row are one more sequence.

    `order` `[r m]` says where in its row each sorted token was; `starts` where each sequence starts when all rows lie
    one after another, and where the last one ends. Sequences that a row does not have are empty, at the end.
    """

    order: Int[Tensor, "r m"]
    starts: Int[Tensor, " s"]

    def sort(self, values: Float[Tensor, "r m d"]) -> Float[Tensor, "r m d"]:
        return values.expand(len(self.order), -1, -1).gather(1, self._index(values))

    def put_back(self, values: Float[Tensor, "r m d"]) -> Float[Tensor, "r m d"]:
        return torch.empty_like(values).scatter(1, self._index(values), values)

    def attend(
        self, q: Float[Tensor, "r h m e"], k: Float[Tensor, "r h m e"], v: Float[Tensor, "r h m e"]
    ) -> Float[Tensor, "r h m e"]:
        from torch.nn.attention.varlen import varlen_attn  # it imports the compiler, which takes seconds

        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        # The longest sequence is not known to the host, but none is longer than a row. A window as wide as that hides
        # nothing, and keeps torch from cuDNN's kernel, which takes empty sequences from 9.25 on only (before, it gives
        # NaN: NVIDIA/cudnn-frontend issue 943).
        longest = self.order.shape[1]
        x = varlen_attn(q, k, v, self.starts, self.starts, longest, longest, window_size=(longest, longest))
        return x.unflatten(0, self.order.shape).transpose(1, 2)

    def _index(self, values: Tensor) -> Tensor:
        return self.order[..., None].expand(-1, -1, values.shape[-1])


def sequences(segment: Int[Tensor, "r m"], samples: int) -> Sequences:
    """Sort rows of at most `samples` samples by their segments."""
    rows, tokens = segment.shape
    segment, order = segment.sort(dim=1, stable=True)
    first = torch.ones_like(segment, dtype=torch.bool)
    first[:, 1:] = segment[:, 1:] != segment[:, :-1]
    number = first.flatten().cumsum(0) - 1  # of the sequence of each token
    most = rows * min(samples + 1, tokens)
    starts = torch.searchsorted(number, torch.arange(most + 1, device=segment.device), out_int32=True)
    return Sequences(order, starts)


def usable(tokens: Float[Tensor, "r m d"], head_width: int) -> bool:
    """Whether the kernel can take these tokens: in half precision, on a GPU from NVIDIA's Ampere on."""
    if not tokens.is_cuda or torch.cuda.get_device_properties(tokens.device).major < 8:
        return False
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else tokens.dtype
    return dtype in (torch.bfloat16, torch.float16) and head_width % 8 == 0 and head_width <= 128
