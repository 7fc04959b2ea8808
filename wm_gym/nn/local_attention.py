"""Frame-local attention: every token sees its own frame and the ``window`` frames before it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from wm_gym.array_typing import KVCache, RowCount, Tokens
from wm_gym.nn.config import WorldModelConfig
from wm_gym.nn.state import LayerState
from wm_gym.ops import banded_local_attention, flex_local_attention


@dataclass(frozen=True)
class Rotary:
    """Rotation angles of (frame, token) positions, ``[frames, N, 1, d / 2]`` each."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def create(cls, frames: int, rows: int, columns: int, head_dim: int, device: torch.device) -> Rotary:
        """Axial rotary embedding (arXiv 2104.09864): a quarter of the pairs for time, the rest for rows and columns."""
        pairs = head_dim // 2
        time_pairs = pairs // 4
        row_pairs = (pairs - time_pairs) // 2
        sizes = (time_pairs, row_pairs, pairs - time_pairs - row_pairs)
        angles = []
        for axis, (length, size) in enumerate(zip((frames, rows, columns), sizes, strict=True)):
            frequency = 100.0 ** (-torch.arange(size, device=device) / max(size, 1))
            angle = torch.arange(length, device=device)[:, None] * frequency
            shape = [1, 1, 1, size]
            shape[axis] = length
            angles.append(angle.reshape(shape).expand(frames, rows, columns, size))
        angle = torch.cat(angles, dim=-1).reshape(frames, rows * columns, 1, pairs)
        return cls(angle.cos(), angle.sin())

    def __call__(self, x: Tensor, start: int = 0) -> Tensor:
        """Rotate ``[B, T, N, h, d]`` as frames ``start`` to ``start + T``."""
        cos, sin = self.cos[start : start + x.shape[1]], self.sin[start : start + x.shape[1]]
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


class LocalAttention(nn.Module):
    """Multi-head attention with normalised queries and keys, over a window of frames."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.window = config.window
        self.num_heads = config.num_attention_heads
        self.head_dim = config.width // config.num_attention_heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.query_norm = nn.Parameter(torch.ones(self.head_dim))
        self.key_norm = nn.Parameter(torch.ones(self.head_dim))
        self.out_proj = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self,
        tokens: Tokens,
        rotary: Rotary,
        state: LayerState | None,
        num_cached: RowCount | None,
        num_committed: int,
        block_mask: BlockMask | None,
    ) -> tuple[Tokens, KVCache | None]:
        """Attend.

        Args:
            tokens: ``[B, T, rows, columns, D]``.
            rotary: angles for ``window + T`` frames with a state, for T without.
            state: the layer's memory; None sees only the T frames and returns no cache.
            num_cached: frames in memory per row; those of the cache beyond it are ignored.
            num_committed: leading frames that enter the cache that is returned.
            block_mask: use FlexAttention with this mask (training on a GPU); only without a state.
        """
        grid = tokens.shape
        qkv = self.qkv(tokens).reshape(grid[0], grid[1], grid[2] * grid[3], 3, self.num_heads, self.head_dim)
        query, key, value = qkv.unbind(3)
        query = F.rms_norm(query.float(), (self.head_dim,), self.query_norm.float(), 1e-6).to(value.dtype)
        key = F.rms_norm(key.float(), (self.head_dim,), self.key_norm.float(), 1e-6).to(value.dtype)
        cache = None
        if state is None:
            query, key = rotary(query), rotary(key)
            if block_mask is not None:
                y = flex_local_attention(query, key, value, block_mask)
            else:
                y = banded_local_attention(query, key, value, self.window)
        else:
            fresh = torch.stack([key, value], dim=3)
            stored = torch.cat([state.kv_cache.to(fresh.dtype), fresh], dim=1)
            cache = stored[:, num_committed : num_committed + self.window]
            key, value = stored.unbind(3)
            valid = None if num_cached is None else num_cached.clamp(max=self.window)
            y = banded_local_attention(rotary(query, self.window), rotary(key), value, self.window, valid)
        return self.out_proj(y.reshape(grid)), cache
