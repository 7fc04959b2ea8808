"""Attention of the transformers: frame-causal over a growing or a sliding cache, or over all frames at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from training.baselines.config import BaselineConfig
from wm_gym.array_typing import Heads, Tokens
from wm_gym.nn.local_attention import Rotary
from wm_gym.ops import banded_local_attention, flex_local_attention

TIME_BASE = 10_000.0  # the longest wavelength of the rotation in time must exceed the context
FEW_FRAMES = 2  # a pass of at most so many frames (a step) reads the cache where it lies, without a mask


@dataclass(frozen=True)
class KVState:
    """Keys (rotated) and values of one layer, ``[B, frames, N, h, d]`` each.

    A full cache has frame t at t and free space behind the last one. A sliding one has the newest frame last.
    """

    key: Heads
    value: Heads

    def shifted(self, key: Heads, value: Heads) -> KVState:
        """A sliding cache after further frames."""
        frames = self.key.shape[1]
        return KVState(*(torch.cat(pair, dim=1)[:, -frames:] for pair in ((self.key, key), (self.value, value))))

    def appended(self, key: Heads, value: Heads, num_cached: int, grow_by: int) -> KVState:
        """A full cache after further frames, written in place where there is room.

        So two states that go on from the same one share storage: ``clone()`` before following both.
        """
        end = num_cached + key.shape[1]
        grown = self
        if end > self.key.shape[1]:
            capacity = -(-end // grow_by) * grow_by
            grown = KVState(*(z.new_zeros(z.shape[0], capacity, *z.shape[2:]) for z in (self.key, self.value)))
            grown.key[:, :num_cached] = self.key[:, :num_cached]
            grown.value[:, :num_cached] = self.value[:, :num_cached]
        grown.key[:, num_cached:end] = key
        grown.value[:, num_cached:end] = value
        return grown


def rotary_angles(first: int, frames: int, config: BaselineConfig, device: torch.device) -> Rotary:
    """Axial rotary angles like ours, of frames ``first`` to ``first + frames``, for contexts of thousands of frames."""
    pairs = config.width // config.num_attention_heads // 2
    time_pairs = pairs // 4
    row_pairs = (pairs - time_pairs) // 2
    sizes = (time_pairs, row_pairs, pairs - time_pairs - row_pairs)
    shape = (frames, config.token_rows, config.token_columns)
    angles = []
    for axis, (size, base) in enumerate(zip(sizes, (TIME_BASE, 100.0, 100.0), strict=True)):
        frequency = base ** (-torch.arange(size, device=device) / max(size, 1))
        start = first if axis == 0 else 0
        angle = torch.arange(start, start + shape[axis], device=device)[:, None] * frequency
        view = [1, 1, 1, size]
        view[axis] = shape[axis]
        angles.append(angle.reshape(view).expand(*shape, size))
    angle = torch.cat(angles, dim=-1).reshape(frames, config.num_tokens, 1, pairs)
    return Rotary(angle.cos(), angle.sin())


class FrameAttention(nn.Module):
    """Multi-head attention with normalised queries and keys, as our local one, over more frames."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.architecture = config.architecture
        self.window = config.window if config.architecture == "sliding_transformer" else None
        self.cache_frames = config.cache_frames
        self.num_heads = config.num_attention_heads
        self.head_dim = config.width // config.num_attention_heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.query_norm = nn.Parameter(torch.ones(self.head_dim))
        self.key_norm = nn.Parameter(torch.ones(self.head_dim))
        self.out_proj = nn.Linear(config.width, config.width, bias=False)

    def project(self, tokens: Tokens, rotary: Rotary) -> tuple[Heads, Heads, Heads]:
        """Rotated queries and keys, and values."""
        grid = tokens.shape
        qkv = self.qkv(tokens).reshape(grid[0], grid[1], grid[2] * grid[3], 3, self.num_heads, self.head_dim)
        query, key, value = qkv.unbind(3)
        query = F.rms_norm(query.float(), (self.head_dim,), self.query_norm.float(), 1e-6).to(value.dtype)
        key = F.rms_norm(key.float(), (self.head_dim,), self.key_norm.float(), 1e-6).to(value.dtype)
        return rotary(query), rotary(key), value

    def attend(
        self,
        query: Heads,
        key: Heads,
        value: Heads,
        state: KVState | None,
        num_cached: int,
        num_committed: int,
        block_mask: BlockMask | None,
    ) -> tuple[Heads, KVState | None]:
        """Attention output, and the cache after ``num_committed`` of the frames (None without a state)."""
        frames = query.shape[1]
        if self.architecture == "bidirectional":
            q, k, v = (z.flatten(1, 2).transpose(1, 2) for z in (query, key, value))
            y = F.scaled_dot_product_attention(q, k, v)
            return y.transpose(1, 2).reshape(query.shape), None
        if state is None:
            if block_mask is not None:
                return flex_local_attention(query, key, value, block_mask), None
            return banded_local_attention(query, key, value, frames if self.window is None else self.window), None
        if self.window is None:
            seen = slice(0, num_cached)
        else:
            seen = slice(self.window - min(num_cached, self.window), self.window)
        y = cached_attention(query, key, value, state.key[:, seen], state.value[:, seen], self.window)
        if num_committed:
            fresh = key[:, :num_committed], value[:, :num_committed]
            if self.window is None:
                state = state.appended(*fresh, num_cached, self.cache_frames)
            else:
                state = state.shifted(*fresh)
        return y, state


def cached_attention(
    query: Heads, key: Heads, value: Heads, cached_key: Heads, cached_value: Heads, window: int | None
) -> Heads:
    """Frame-causal attention of T frames to themselves and to those before them, ``[B, frames, N, h, d]`` each.

    A step's two frames see the same cache but for its oldest frame: that part is one dense product without a mask, and
    the rest is joined to it by the two softmax normalisers.

    Args:
        cached_key, cached_value: the frames before, oldest first; at most ``window`` of them.
        window: previous frames that are seen; None: all.
    """
    frames, tokens = query.shape[1:3]
    cached = cached_key.shape[1]
    if frames > FEW_FRAMES:
        keys, values = torch.cat([cached_key, key], dim=1), torch.cat([cached_value, value], dim=1)
        return banded_local_attention(query, keys, values, cached + frames if window is None else window)
    first = 0 if window is None else max(0, min(cached + frames - 1 - window, cached))
    q, k, v = (z.flatten(1, 2).transpose(1, 2) for z in (query, key, value))
    old_k, old_v = (z[:, :first].flatten(1, 2).transpose(1, 2) for z in (cached_key, cached_value))
    position = torch.arange(cached + frames, device=query.device)
    position = torch.cat([position[:first], position[cached:]])
    distance = position[-frames:, None] - position[None, :]
    visible = (distance >= 0) & (distance <= (cached + frames if window is None else window))
    mask = visible.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
    y, log_sum = attention_with_log_sum(q, torch.cat([old_k, k], dim=2), torch.cat([old_v, v], dim=2), mask)
    if first < cached:
        shared = (z[:, first:].flatten(1, 2).transpose(1, 2) for z in (cached_key, cached_value))
        y_shared, log_sum_shared = attention_with_log_sum(q, *shared)
        share = torch.sigmoid(log_sum_shared - log_sum)[..., None]
        y = torch.lerp(y.float(), y_shared.float(), share).to(query.dtype)
    return y.transpose(1, 2).reshape(query.shape)


def attention_with_log_sum(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention ``[B, h, L, d]`` and the logarithm of the softmax's denominator ``[B, h, L]``, float32.

    FlashAttention on a GPU for half precision without a mask, else written out.
    """
    if query.is_cuda and mask is None and query.dtype in (torch.bfloat16, torch.float16):
        y, log_sum = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[:2]
        return y, log_sum
    scores = (query.float() @ key.float().transpose(-1, -2)) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    log_sum = scores.logsumexp(-1)
    return ((scores - log_sum[..., None]).exp() @ value.float()).to(query.dtype), log_sum
