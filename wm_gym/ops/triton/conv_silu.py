"""Depth-wise causal convolution and SiLU over the scan blocks, forward and backward, without reordering tokens.

Reads its channels straight out of the input projection and writes their gradient straight back into that of the
projection, so neither is ever split, padded, permuted or concatenated.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# (Triton's types do not describe launches.)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wm_gym.ops.triton.token_order import token_index

_FORWARD_TOKENS = 32
_SEGMENT = 64  # tokens that a backward program walks through
_SEGMENTS = 8  # of them side by side in a program


@triton.jit
def _conv_forward(
    projected, weight, bias, out,
    length, frames,
    ROW: tl.constexpr, OFFSET: tl.constexpr, CHANNELS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(length, BLOCK_L)
    sequence = tl.program_id(0) // tiles
    position = (tl.program_id(0) % tiles) * BLOCK_L + tl.arange(0, BLOCK_L)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    y = tl.zeros((BLOCK_L, BLOCK_C), tl.float32) + tl.load(bias + channel)[None, :]
    for tap in tl.static_range(4):
        source = position + (tap - 3)
        token = token_index(sequence, source, frames, ROWS, COLUMNS, SIZE)
        inside = (source >= 0) & (source < length)
        x = tl.load(projected + token[:, None] * ROW + OFFSET + channel[None, :], mask=inside[:, None], other=0.0)
        y += x.to(tl.float32) * tl.load(weight + tap * CHANNELS + channel)[None, :]
    y = y * tl.sigmoid(y)
    token = token_index(sequence, position, frames, ROWS, COLUMNS, SIZE)
    tl.store(
        out + token[:, None] * CHANNELS + channel[None, :],
        y.to(out.dtype.element_ty),
        mask=(position < length)[:, None],
    )


@triton.jit
def _conv_backward(
    projected, weight, bias, grad, grad_projected, partial,
    num_segments, segments_per_sequence, segment, length, frames,
    ROW: tl.constexpr, OFFSET: tl.constexpr, CHANNELS: tl.constexpr, FIRST: tl.constexpr, GRAD_ROW: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr,
    SEGMENTS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Walks along the tokens with the last three inputs and gradients in registers: each is loaded once."""
    index = tl.program_id(0) * SEGMENTS + tl.arange(0, SEGMENTS)
    exists = index < num_segments
    sequence = index // segments_per_sequence
    start = (index % segments_per_sequence) * segment
    end = tl.minimum(start + segment, length)
    grad_channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel = FIRST + grad_channel
    w0 = tl.load(weight + channel)[None, :]
    w1 = tl.load(weight + CHANNELS + channel)[None, :]
    w2 = tl.load(weight + 2 * CHANNELS + channel)[None, :]
    w3 = tl.load(weight + 3 * CHANNELS + channel)[None, :]
    offset = tl.load(bias + channel)[None, :]
    zeros = tl.zeros((SEGMENTS, BLOCK_C), tl.float32)
    x1, x2, x3 = zeros, zeros, zeros
    g1, g2, g3 = zeros, zeros, zeros
    dw0, dw1, dw2, dw3, db = zeros, zeros, zeros, zeros, zeros
    for step in range(-3, segment + 3):
        position = start + step
        inside = exists & (position >= 0) & (position < length)
        token = token_index(sequence, position, frames, ROWS, COLUMNS, SIZE)
        x0 = tl.load(projected + token[:, None] * ROW + OFFSET + channel[None, :], mask=inside[:, None], other=0.0).to(
            tl.float32
        )
        inside = inside & (step >= 0)
        g0 = tl.load(grad + token[:, None] * GRAD_ROW + grad_channel[None, :], mask=inside[:, None], other=0.0)
        y = offset + w0 * x3 + w1 * x2 + w2 * x1 + w3 * x0
        s = tl.sigmoid(y)
        g0 = g0.to(tl.float32) * s * (1 + y * (1 - s))
        own = tl.where((position < end)[:, None], g0, 0.0)
        dw0 += own * x3
        dw1 += own * x2
        dw2 += own * x1
        dw3 += own * x0
        db += own
        # Token `position - 3` has now met the gradients of all four outputs that it feeds.
        target = position - 3
        write = exists & (step >= 3) & (target < end)
        dx = w3 * g3 + w2 * g2 + w1 * g1 + w0 * g0
        token = token_index(sequence, target, frames, ROWS, COLUMNS, SIZE)
        tl.store(
            grad_projected + token[:, None] * ROW + OFFSET + channel[None, :],
            dx.to(grad_projected.dtype.element_ty),
            mask=write[:, None],
        )
        x3, x2, x1 = x2, x1, x0
        g3, g2, g1 = g2, g1, g0
    row = partial + tl.program_id(0) * 5 * CHANNELS + channel
    tl.store(row, tl.sum(dw0, 0))
    tl.store(row + CHANNELS, tl.sum(dw1, 0))
    tl.store(row + 2 * CHANNELS, tl.sum(dw2, 0))
    tl.store(row + 3 * CHANNELS, tl.sum(dw3, 0))
    tl.store(row + 4 * CHANNELS, tl.sum(db, 0))


def _block_channels(*sizes: int) -> int:
    """The widest tile, at most 128, that no boundary of channels cuts."""
    block = 128
    while any(size % block for size in sizes):
        block //= 2
    return block


def conv_silu(projected: Tensor, weight: Tensor, bias: Tensor, offset: int, block_size: int) -> Tensor:
    """SiLU of the convolution along each block's tokens.

    Args:
        projected: ``[B, T, rows, columns, width]``, contiguous; the channels from ``offset`` on are convolved.
        weight, bias: ``[4, channels]`` and ``[channels]``, float32.

    Returns:
        ``[B, T, rows, columns, channels]``.
    """
    batch, frames, rows, columns, width = projected.shape
    channels = weight.shape[1]
    length = frames * block_size**2
    sequences = batch * rows * columns // block_size**2
    out = projected.new_empty(batch, frames, rows, columns, channels)
    block = _block_channels(channels)
    grid = (sequences * triton.cdiv(length, _FORWARD_TOKENS), channels // block)
    _conv_forward[grid](
        projected, weight, bias, out, length, frames,
        width, offset, channels, rows, columns, block_size, _FORWARD_TOKENS, block,
        num_warps=4,
    )  # fmt: skip
    return out


def conv_silu_backward(
    grads: tuple[Tensor, ...],
    projected: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset: int,
    block_size: int,
    grad_projected: Tensor,
) -> tuple[Tensor, Tensor]:
    """Writes the convolved channels of ``grad_projected`` and returns the gradients of weight and bias.

    Args:
        grads: gradient of the output, cut along the channels into contiguous tensors.
    """
    batch, frames, rows, columns, width = projected.shape
    channels = weight.shape[1]
    length = frames * block_size**2
    sequences = batch * rows * columns // block_size**2
    pieces = triton.cdiv(length, _SEGMENT)
    segment = triton.cdiv(length, pieces)
    programs = triton.cdiv(sequences * pieces, _SEGMENTS)
    partial = torch.empty(programs, 5, channels, device=projected.device)
    first = 0
    for grad in grads:
        size = grad.shape[-1]
        block = _block_channels(size)
        _conv_backward[(programs, size // block)](
            projected, weight, bias, grad, grad_projected, partial,
            sequences * pieces, pieces, segment, length, frames,
            width, offset, channels, first, size, rows, columns, block_size, _SEGMENTS, block,
            num_warps=4,
        )  # fmt: skip
        first += size
    total = partial.sum(0)
    return total[:4], total[4]
