"""Attention of the transformers: frame-causal over a growing or a sliding cache, or over all frames at once."""

from __future__ import annotations

from collections.abc import Callable
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
    """Keys (rotated) and values of one layer, ``[B, capacity, N, h, d]`` each, oldest frame first, then free space."""

    key: Heads
    value: Heads

    def appended(self, key: Heads, value: Heads, used: int, used_after: int, capacity: int) -> KVState:
        """The cache after further frames, which are written in place where there is room, else into a new buffer.

        So two states that go on from the same one share storage: ``clone()`` before following both.

        Args:
            used, used_after: frames in the cache before and after; old ones are dropped to make it so many.
            capacity: of a new buffer.
        """
        in_place = used_after == used + key.shape[1] <= self.key.shape[1]
        both = []
        for cache, fresh in ((self.key, key), (self.value, value)):
            grown = cache
            if not in_place:
                grown = cache.new_zeros(cache.shape[0], capacity, *cache.shape[2:])
                fresh = torch.cat([cache[:, :used], fresh], dim=1)[:, -used_after:]
            grown[:, used_after - fresh.shape[1] : used_after] = fresh
            both.append(grown)
        return KVState(*both)


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
        self.join: Callable[..., Heads] | None = None  # a compiled `join_attention`
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
            y = F.scaled_dot_product_attention(_heads_first(query), _heads_first(key), _heads_first(value))
            return y.transpose(1, 2).reshape(query.shape), None
        if state is None:
            if block_mask is not None:
                return flex_local_attention(query, key, value, block_mask), None
            return banded_local_attention(query, key, value, frames if self.window is None else self.window), None
        used = self.used(num_cached)
        seen = slice(0 if self.window is None else max(used - self.window, 0), used)
        y = cached_attention(query, key, value, state.key[:, seen], state.value[:, seen], self.window, self.join)
        if num_committed:
            fresh = key[:, :num_committed], value[:, :num_committed]
            after = num_cached + num_committed
            state = state.appended(*fresh, used, self.used(after), self.capacity(after))
        return y, state

    def capacity(self, num_cached: int) -> int:
        """Frames for which a cache is allocated that is to hold so many."""
        if self.window is not None:
            return self.window + self.cache_frames
        return max(-(-num_cached // self.cache_frames), 1) * self.cache_frames

    def used(self, num_cached: int) -> int:
        """Frames in the cache when so many were seen. A sliding one that is full drops all but its window."""
        if self.window is None or num_cached <= self.capacity(0):
            return num_cached
        return self.window + 1 + (num_cached - self.capacity(0) - 1) % self.cache_frames


def cached_attention(
    query: Heads,
    key: Heads,
    value: Heads,
    cached_key: Heads,
    cached_value: Heads,
    window: int | None,
    join: Callable[..., Heads] | None = None,
) -> Heads:
    """Frame-causal attention of T frames to themselves and to those before them, ``[B, frames, N, h, d]`` each.

    A step's two frames see the same cache but for its oldest frame: that part is one dense product without a mask, and
    :func:`join_attention` joins the rest to it.

    Args:
        cached_key, cached_value: the frames before, oldest first; at most ``window`` of them.
        window: previous frames that are seen; None: all.
        join: a compiled `join_attention`.
    """
    frames, cached = query.shape[1], cached_key.shape[1]
    if frames > FEW_FRAMES:
        keys, values = torch.cat([cached_key, key], dim=1), torch.cat([cached_value, value], dim=1)
        return banded_local_attention(query, keys, values, cached + frames if window is None else window)
    # Frame `first` is the oldest that the last query still sees, so all queries see those from it on.
    first = 0 if window is None else min(max(cached + frames - 1 - window, 0), cached)
    shared = None
    if first < cached:
        dense = (_heads_first(z) for z in (query, cached_key[:, first:], cached_value[:, first:]))
        shared = attention_with_log_sum(*dense)
    # Without old frames nothing of the cache goes in, whose strides a compiled function would be compiled for.
    old_key, old_value = (cached_key[:, :first], cached_value[:, :first]) if first else (key[:, :0], value[:, :0])
    return (join or join_attention)(query, key, value, old_key, old_value, shared)


def join_attention(
    query: Heads, key: Heads, value: Heads, old_key: Heads, old_value: Heads, shared: tuple[Tensor, Tensor] | None
) -> Heads:
    """Attention of T frames to themselves, to the ``first`` oldest frames of a full window, and to what all T see.

    Args:
        old_key, old_value: the frames that only some of the T still see: frame j is seen by frames 0 to j.
        shared: attention to the frames between and the logarithm of its denominator; None if there are none.
    """
    frames, tokens, first = query.shape[1], query.shape[2], old_key.shape[1]
    index = torch.arange(frames, device=query.device)
    visible = torch.cat([index[:, None] <= index[None, :first], index[:, None] >= index[None, :]], dim=1)
    mask = visible.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
    keys, values = torch.cat([old_key, key], dim=1), torch.cat([old_value, value], dim=1)
    y, log_sum = attention_with_log_sum(_heads_first(query), _heads_first(keys), _heads_first(values), mask)
    if shared is not None:
        share = torch.sigmoid(shared[1] - log_sum)[..., None]
        y = torch.lerp(y.float(), shared[0].float(), share).to(query.dtype)
    return y.transpose(1, 2).reshape(query.shape)


def _heads_first(z: Heads) -> Tensor:
    """``[B, frames, N, h, d]`` to ``[B, h, frames * N, d]``."""
    return z.flatten(1, 2).transpose(1, 2)


def attention_with_log_sum(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention ``[B, h, L, d]`` and the logarithm of the softmax's denominator ``[B, h, L]``, float32.

    FlashAttention on a GPU for half precision without a mask, else written out.
    """
    if query.is_cuda and mask is None and query.dtype in (torch.bfloat16, torch.float16):
        y, log_sum = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[:2]
        return y, log_sum
    with torch.autocast(query.device.type, enabled=False):  # which would round the scores
        scores = (query.float() @ key.float().transpose(-1, -2)) * query.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        log_sum = scores.logsumexp(-1)
        return ((scores - log_sum[..., None]).exp() @ value.float()).to(query.dtype), log_sum
