"""Frame-local attention: a banded version that runs everywhere, and FlexAttention for training on a GPU."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

_FLEX_BLOCK = 128  # tokens, FlexAttention's default


def banded_local_attention(
    query: Tensor, key: Tensor, value: Tensor, window: int, num_valid_cached: Tensor | None = None
) -> Tensor:
    """Same contract as :func:`wm_gym.ops.reference.local_attention`.

    Queries are taken in groups of at most ``window`` frames, so the cost is linear in the number of frames.
    """
    batch, frames, tokens, _heads, _dim = query.shape
    cached = key.shape[1] - frames
    group = max(1, min(frames, window))
    num_groups = -(-frames // group)
    padding = num_groups * group - frames
    # Key frame j of a group is `window - j` frames before the group's first query frame.
    front = window - cached
    if front or padding:
        key, value = (F.pad(z, (0, 0, 0, 0, 0, 0, front, padding)) for z in (key, value))
        query = F.pad(query, (0, 0, 0, 0, 0, 0, 0, padding))

    def windows(z: Tensor) -> Tensor:
        if num_groups == 1:
            return z.flatten(1, 2).transpose(1, 2)
        z = z.unfold(1, group + window, group)  # [B, groups, N, h, d, group + window]
        return z.permute(0, 1, 3, 5, 2, 4).flatten(3, 4).flatten(0, 1)

    q = query.unflatten(1, (num_groups, group)).flatten(2, 3).transpose(2, 3).flatten(0, 1)
    device = query.device
    query_frame = torch.arange(group, device=device)
    key_frame = torch.arange(group + window, device=device)
    distance = query_frame[:, None] + window - key_frame[None, :]
    band = (distance >= 0) & (distance <= window)
    position = torch.arange(num_groups, device=device)[:, None] * group + key_frame  # in padded key frames
    valid = torch.full((batch,), cached, device=device) if num_valid_cached is None else num_valid_cached
    exists = position[None] >= (window - valid)[:, None, None]
    mask = (band[None, None] & exists[:, :, None, :]).flatten(0, 1)
    mask = mask.repeat_interleave(tokens, 1).repeat_interleave(tokens, 2)[:, None]
    y = F.scaled_dot_product_attention(q, windows(key), windows(value), attn_mask=mask)
    y = y.transpose(1, 2).unflatten(0, (batch, num_groups)).flatten(1, 2).unflatten(1, (num_groups * group, tokens))
    return y[:, :frames]


@lru_cache(maxsize=8)
def frame_block_mask(frames: int, tokens: int, window: int, device: torch.device) -> BlockMask:
    """FlexAttention's mask for ``frames`` frames of ``tokens`` tokens, each seeing itself and ``window`` before it."""

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = query // tokens - key // tokens
        return (distance >= 0) & (distance <= window)

    length, size = frames * tokens, _FLEX_BLOCK
    # From the first and last frame of each block of tokens; create_block_mask would fill length x length.
    start = torch.arange(0, length, size, device=device)
    end = (start + size).clamp(max=length) - 1
    nearest = (start // tokens)[:, None] - end // tokens  # between a query and a key of two blocks, in frames
    farthest = (end // tokens)[:, None] - start // tokens
    some = (farthest >= 0) & (nearest <= window)
    complete = end - start + 1 == size
    every = (nearest >= 0) & (farthest <= window) & complete[:, None] & complete

    def listed(mask: Tensor) -> tuple[Tensor, Tensor]:
        order = mask.int().argsort(dim=-1, descending=True, stable=True)
        return mask.sum(-1, dtype=torch.int32)[None, None], order.int()[None, None]

    return BlockMask.from_kv_blocks(
        *listed(some & ~every), *listed(every), BLOCK_SIZE=size, mask_mod=visible, seq_lengths=(length, length)
    )


def flex_local_attention(query: Tensor, key: Tensor, value: Tensor, block_mask: BlockMask) -> Tensor:
    """Attention without a cache, ``[B, T, N, h, d]`` each; to be called from inside a compiled function."""
    frames, tokens = query.shape[1:3]
    q, k, v = (z.flatten(1, 2).transpose(1, 2) for z in (query, key, value))
    y = flex_attention(q, k, v, block_mask=block_mask)
    assert isinstance(y, Tensor)
    return y.transpose(1, 2).unflatten(1, (frames, tokens))
