"""Slow and plain versions of the operations that the network is made of: the truth for every faster one.

Each follows its definition token by token or with one dense mask, and is differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wm_gym.array_typing import ScanInput, ScanProjection, ScanState, ScanStep


def ssd_scan(
    x: ScanInput,
    dt: ScanStep,
    a: Tensor,
    b: ScanProjection,
    c: ScanProjection,
    skip: Tensor,
    initial_state: ScanState | None = None,
) -> tuple[ScanInput, ScanState]:
    """Selective state-space recurrence with a scalar decay per head (Mamba2; Dao & Gu 2024, arXiv 2405.21060).

    ``state[t] = exp(dt[t] * a) * state[t-1] + dt[t] * x[t] b[t]^T`` and ``y[t] = state[t] c[t] + skip * x[t]``.

    Args:
        x: inputs, ``[sequences, L, h, d]``.
        dt: positive step sizes, ``[sequences, L, h]``.
        a: negative decay rates, ``[h]``.
        b: input projections, ``[sequences, L, g, s]``; the g groups of h / g consecutive heads share one each.
        c: output projections, likewise.
        skip: weight of the direct path, ``[h]``.
        initial_state: state before the first token, ``[sequences, h, d, s]``; zeros if None.

    Returns:
        Outputs like ``x``, and the state after the last token.
    """
    sequences, length, heads, dim = x.shape
    b, c = (z.repeat_interleave(heads // z.shape[2], dim=2) for z in (b, c))
    state = x.new_zeros(sequences, heads, dim, b.shape[-1]) if initial_state is None else initial_state
    outputs = []
    for t in range(length):
        decay = torch.exp(dt[:, t] * a)[..., None, None]
        update = (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None, :]
        state = decay * state + update
        outputs.append((state * c[:, t, :, None, :]).sum(-1) + skip[:, None] * x[:, t])
    return torch.stack(outputs, dim=1), state


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, conv_state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Depth-wise causal convolution over tokens.

    Args:
        x: ``[sequences, L, channels]``.
        weight: ``[taps, channels]``; the last tap meets the current token.
        bias: ``[channels]``.
        conv_state: the ``taps - 1`` inputs before the first token, ``[sequences, taps - 1, channels]``; zeros if None.

    Returns:
        Outputs like ``x``, and the last ``taps - 1`` inputs.
    """
    taps = weight.shape[0]
    past = x.new_zeros(x.shape[0], taps - 1, x.shape[2]) if conv_state is None else conv_state
    padded = torch.cat([past, x], dim=1)
    outputs = [(padded[:, t : t + taps] * weight).sum(1) + bias for t in range(x.shape[1])]
    return torch.stack(outputs, dim=1), padded[:, x.shape[1] :]


def local_attention(
    query: Tensor, key: Tensor, value: Tensor, window: int, num_valid_cached: Tensor | None = None
) -> Tensor:
    """Attention of every token to all tokens of its own frame and of the ``window`` previous frames.

    Args:
        query: ``[B, T, N, h, d]``.
        key, value: ``[B, cached + T, N, h, d]``: cached frames, then the frames of the queries.
        window: number of previous frames that are seen.
        num_valid_cached: how many cached frames, counted from the newest, exist in each row, ``[B]``; all if None.

    Returns:
        ``[B, T, N, h, d]``.
    """
    batch, frames, tokens, _, dim = query.shape
    cached = key.shape[1] - frames
    query_frame = cached + torch.arange(frames, device=query.device)
    key_frame = torch.arange(cached + frames, device=query.device)
    distance = query_frame[:, None] - key_frame[None, :]
    visible = ((distance >= 0) & (distance <= window)).expand(batch, -1, -1)
    if num_valid_cached is not None:
        visible = visible & (key_frame[None, None, :] >= cached - num_valid_cached[:, None, None])
    mask = visible.repeat_interleave(tokens, 1).repeat_interleave(tokens, 2)[:, None]
    q, k, v = (z.flatten(1, 2).transpose(1, 2) for z in (query, key, value))
    scores = (q @ k.transpose(-1, -2)) * dim**-0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return (weights @ v).transpose(1, 2).unflatten(1, (frames, tokens))
