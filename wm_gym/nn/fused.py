"""The layers' training pass on fused kernels: the same mathematics as :class:`wm_gym.nn.layers.Layer` without a state.

What is left beside the kernels are matrix products, so nothing here needs to be compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wm_gym.array_typing import Condition, Tokens
from wm_gym.nn.block_scan import BlockScan
from wm_gym.nn.layers import FeedForward, Layer
from wm_gym.nn.local_attention import LocalAttention, Rotary
from wm_gym.ops import fused


class _Stream(NamedTuple):
    """Tokens, and a branch that is yet to be added: where the next norm reads the sum, in the same pass."""

    tokens: Tokens
    branch: Tokens | None
    gate: Tensor | None  # [B * T, D]


def run_layers(
    layers: Sequence[Layer],
    tokens: Tokens,
    condition: Condition,
    rotary: Rotary,
    checkpoint_layers: bool = False,
    before: Mapping[int, Callable[[Tokens], Tokens]] | None = None,
) -> Tokens:
    """Run T frames through all layers, from nothing.

    Args:
        tokens: ``[B, T, rows, columns, D]``.
        condition: ``[B, T, condition_width]``, already activated.
        rotary: angles of T frames.
        checkpoint_layers: keep only what passes between the layers, and compute the rest again in the backward pass.
        before: by the number of a layer, a function from the tokens that enter it to what is added to them.
    """
    stream = _Stream(tokens, None, None)
    for i, layer in enumerate(layers):
        if before is not None and i in before:
            tokens = _finished(stream)
            stream = _Stream(tokens + before[i](tokens), None, None)
        if checkpoint_layers and torch.is_grad_enabled():
            stream = checkpoint(
                _layer, layer, *stream, condition, rotary, use_reentrant=False, preserve_rng_state=False
            )
        else:
            stream = _layer(layer, *stream, condition, rotary)
    return _finished(stream)


def _finished(stream: _Stream) -> Tokens:
    tokens, branch, gate = stream
    if branch is None or gate is None:
        return tokens
    return tokens + (1 + _per_frame(gate, tokens)) * branch


def _layer(
    layer: Layer, tokens: Tokens, branch: Tokens | None, gate: Tensor | None, condition: Condition, rotary: Rotary
) -> _Stream:
    modulation = layer.modulation(condition).flatten(0, 1)
    shift1, scale1, gate1, shift2, scale2, gate2, shift3, scale3, gate3 = modulation.chunk(9, dim=-1)
    if branch is None or gate is None:
        normed = fused.modulated_norm(tokens, shift1, scale1)
    else:
        tokens, normed = fused.residual_norm(tokens, branch, gate, shift1, scale1)
    tokens, normed = fused.residual_norm(tokens, _scan(layer.block_scan, normed), gate1, shift2, scale2)
    attended = _attend(layer.local_attention, normed, rotary)
    tokens, normed = fused.residual_norm(tokens, attended, gate2, shift3, scale3)
    return _Stream(tokens, _feed_forward(layer.feed_forward, normed), gate3)


def _per_frame(rows: Tensor, tokens: Tokens) -> Tensor:
    return rows.unflatten(0, tokens.shape[:2])[:, :, None, None]


def _scan(scan: BlockScan, tokens: Tokens) -> Tokens:
    y = fused.block_mixer(
        scan.in_proj(tokens),
        scan.conv_weight,
        scan.conv_bias,
        scan.dt_bias,
        scan.log_decay,
        scan.skip,
        scan.norm_weight,
        scan.block_size,
        scan.num_groups,
    )
    return scan.out_proj(y)


def _attend(attention: LocalAttention, tokens: Tokens, rotary: Rotary) -> Tokens:
    batch, frames, rows, columns, _ = tokens.shape
    qkv = attention.qkv(tokens).reshape(batch, frames, rows * columns, 3, attention.num_heads, attention.head_dim)
    y = fused.frame_attention(qkv, attention.query_norm, attention.key_norm, rotary.cos, rotary.sin, attention.window)
    return attention.out_proj(y.reshape(tokens.shape))


def _feed_forward(feed_forward: FeedForward, tokens: Tokens) -> Tokens:
    hidden, _, out = feed_forward
    assert isinstance(hidden, nn.Linear)
    return out(fused.bias_gelu(F.linear(tokens, hidden.weight), hidden.bias))
