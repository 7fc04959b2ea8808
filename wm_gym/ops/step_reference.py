"""Plain PyTorch versions of the operations of one inference step: the truth for the kernels in ``wm_gym.ops``.

The contracts stand in :mod:`wm_gym.ops.step`. Everything is computed in float32 whatever the inputs, and rounded once.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from wm_gym.ops import causal_conv, reference
from wm_gym.ops.scan import chunked

_WORD = 0xFFFFFFFF
# Multipliers and key increments of Philox-4x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_PHILOX_ROUNDS = 10


def block_order(rows: int, columns: int, block_size: int, device: torch.device) -> Tensor:
    """Tokens of each block, ``[K, block_size**2]``, as indices into a frame's tokens in row-major order."""
    index = torch.arange(rows * columns, device=device).reshape(
        rows // block_size, block_size, columns // block_size, block_size
    )
    return index.transpose(1, 2).reshape(-1, block_size**2)


def scan_step(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    a: Tensor,
    skip: Tensor,
    ssm_state: Tensor,
    conv_state: Tensor,
    block_size: int,
    num_committed: int,
) -> Tensor:
    """Twin of :func:`wm_gym.ops.step.scan_step`."""
    batch, frames, rows, columns, _ = projected.shape
    blocks, heads, dim, state_dim = ssm_state.shape[1:]
    inner, mixed = heads * dim, conv_weight.shape[1]
    order = block_order(rows, columns, block_size, projected.device)
    # [B, F, K, tokens of a block, C] to sequences [B * K, L, C]
    sequences = projected.flatten(2, 3)[:, :, order].transpose(1, 2).reshape(batch * blocks, -1, projected.shape[-1])
    gate, inputs, dt = sequences.float().split([inner, mixed, heads], dim=-1)

    past = conv_state.flatten(0, 1).float()
    filtered, padded = causal_conv(inputs, conv_weight.float(), conv_bias.float(), past)
    x, b, c = F.silu(filtered).split([inner, (mixed - inner) // 2, (mixed - inner) // 2], dim=-1)
    b, c = b.unflatten(-1, (-1, state_dim)), c.unflatten(-1, (-1, state_dim))
    x, dt = x.unflatten(-1, (heads, dim)), F.softplus(dt + dt_bias.float())
    committed = num_committed * block_size**2
    state = ssm_state.flatten(0, 1).float()
    y, new_state = chunked.ssd_chunk(x, dt, a, b, c, skip, state, committed)
    y = (y.flatten(-2) * F.silu(gate)).to(projected.dtype)
    if committed:
        ssm_state.copy_(new_state.view_as(ssm_state))
        conv_state.copy_(padded[:, committed : committed + past.shape[1]].view_as(conv_state))

    by_frame = y.reshape(batch, blocks, frames, -1, inner).transpose(1, 2).flatten(2, 3)
    out = torch.empty_like(by_frame)
    out[:, :, order.flatten()] = by_frame
    return out.unflatten(2, (rows, columns))


def gated_norm(y: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Twin of :func:`wm_gym.ops.step.gated_norm`."""
    return F.rms_norm(y.float(), (y.shape[-1],), weight.float(), eps).to(y.dtype)


def ring_attention(
    qkv: Tensor,
    query_norm: Tensor,
    key_norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    kv_ring: Tensor,
    num_cached: Tensor,
    num_committed: int,
) -> Tensor:
    """Twin of :func:`wm_gym.ops.step.ring_attention`."""
    window, (batch, frames), dim = kv_ring.shape[1], qkv.shape[:2], qkv.shape[-1]
    cos, sin = cos[: window + frames].float(), sin[: window + frames].float()
    query, key, value = qkv.float().unbind(3)
    query = F.rms_norm(query, (dim,), query_norm.float(), 1e-6)
    key = F.rms_norm(key, (dim,), key_norm.float(), 1e-6)

    rows = torch.arange(batch, device=qkv.device)
    # Oldest first, as the angles are; a slot that holds no frame yet is masked below.
    age = torch.arange(window - 1, -1, -1, device=qkv.device)
    slot = (num_cached[:, None] - 1 - age) % window
    old_key, old_value = kv_ring[rows[:, None], slot].float().unbind(3)
    keys = rotate(torch.cat([old_key, key], dim=1), cos, sin)
    values = torch.cat([old_value, value], dim=1)
    y = reference.local_attention(
        rotate(query, cos[window:], sin[window:]), keys, values, window, num_cached.clamp(max=window)
    )
    if num_committed:
        fresh = torch.stack([key[:, 0], value[:, 0]], dim=2)
        kv_ring[rows, num_cached % window] = fresh.to(kv_ring.dtype)
    return y.flatten(3).to(qkv.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of ``[B, T, N, h, d]`` by angles ``[T, N, 1, d / 2]``; pairs are (i, i + d / 2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def residual_adaln(
    tokens: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Twin of :func:`wm_gym.ops.step.residual_adaln`."""
    residual = tokens.float()
    if branch is not None and gate is not None:
        residual = residual + (1 + gate.float()[:, None]) * branch.float()
        tokens.copy_(residual)
    normalised = F.layer_norm(residual, residual.shape[-1:], eps=1e-6)
    modulated = normalised * (1 + scale.float()[:, None]) + shift.float()[:, None]
    return modulated.to(tokens.dtype if out_dtype is None else out_dtype)


def philox(keys: Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-10 (Salmon et al. 2011): four random 32-bit words per counter, as int64 in [0, 2**32).

    Args:
        keys: 64-bit keys, int64.
        counter: four words in [0, 2**32), int64, that broadcast against ``keys``.
    """
    key0, key1 = keys & _WORD, (keys >> 32) & _WORD
    c0, c1, c2, c3 = counter
    for _ in range(_PHILOX_ROUNDS):
        high0, low0 = _multiply_words(c0, _PHILOX_MULTIPLIERS[0])
        high1, low1 = _multiply_words(c2, _PHILOX_MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + _PHILOX_INCREMENTS[0]) & _WORD, (key1 + _PHILOX_INCREMENTS[1]) & _WORD
    return c0, c1, c2, c3


def _multiply_words(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the product, in halves because int64 has a sign."""
    lower = (word & 0xFFFF) * factor
    upper = (word >> 16) * factor + (lower >> 16)
    return upper >> 16, ((upper & 0xFFFF) << 16) | (lower & 0xFFFF)


def frame_noise(keys: Tensor, counters: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Twin of :func:`wm_gym.ops.step.frame_noise`."""
    size = math.prod(shape)
    index = torch.arange(-(-size // 4), device=keys.device)
    low, high = (counters & _WORD)[:, None], ((counters >> 32) & _WORD)[:, None]
    words = philox(keys[:, None], (index[None], low, high, torch.zeros_like(low)))
    normals = torch.stack([*_box_muller(words[0], words[1]), *_box_muller(words[2], words[3])], dim=-1)
    return normals.flatten(1)[:, :size].reshape(-1, *shape)


def _box_muller(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    """Two standard normals from two words, each by its upper 24 bits, which float32 holds exactly."""
    uniform = ((radius_word >> 8) + 1).float() * 2.0**-24  # in (0, 1]
    angle = (angle_word >> 8).float() * (2.0**-24 * 2 * math.pi)
    radius = torch.sqrt(-2 * torch.log(uniform))
    return radius * torch.cos(angle), radius * torch.sin(angle)
