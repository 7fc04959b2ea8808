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

from wm_gym.ops.scan.token_order_kernel import token_index

_FORWARD_TOKENS = 32
_SEGMENT = 64  # tokens that a backward program walks through
_SEGMENTS = 4  # of them side by side in a program


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
def _load(
    projected, grad, sequence, position, exists, first, length, frames, channel, grad_channel,
    ROW: tl.constexpr, OFFSET: tl.constexpr, GRAD_ROW: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """A token's input, and from token ``first`` on the gradient of its output; zeros where there is no token."""
    inside = exists & (position >= 0) & (position < length)
    token = token_index(sequence, position, frames, ROWS, COLUMNS, SIZE)[:, None]
    x = tl.load(projected + token * ROW + OFFSET + channel[None, :], mask=inside[:, None], other=0.0)
    inside = inside & (position >= first)
    g = tl.load(grad + token * GRAD_ROW + grad_channel[None, :], mask=inside[:, None], other=0.0)
    return x.to(tl.float32), g.to(tl.float32)


@triton.jit
def _through_silu(grad, y):
    s = tl.sigmoid(y)
    return grad * s * (1 + y * (1 - s))


@triton.jit
def _store(
    grad_projected, dx, sequence, position, exists, start, end, frames, channel,
    ROW: tl.constexpr, OFFSET: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    inside = exists & (position >= start) & (position < end)
    token = token_index(sequence, position, frames, ROWS, COLUMNS, SIZE)[:, None]
    target = grad_projected + token * ROW + OFFSET + channel[None, :]
    tl.store(target, dx.to(grad_projected.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _conv_backward(
    projected, weight, bias, grad, grad_projected, partial,
    num_segments, segments_per_sequence, segment, length, frames,
    ROW: tl.constexpr, OFFSET: tl.constexpr, CHANNELS: tl.constexpr, FIRST: tl.constexpr, GRAD_ROW: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr,
    SEGMENTS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Walks along the tokens, four at a time, with the last three inputs and gradients in registers: a load for each.

    Four also so that no carried value is handed on unchanged: Triton 3.6 then compiles it as its initial value.
    """
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
    b = tl.load(bias + channel)[None, :]
    zeros = tl.zeros((SEGMENTS, BLOCK_C), tl.float32)
    x1, x2, x3 = zeros, zeros, zeros
    g1, g2, g3 = zeros, zeros, zeros
    dw0, dw1, dw2, dw3, db = zeros, zeros, zeros, zeros, zeros
    for step in range(-3, segment + 3, 4):
        at = start + step
        xa, ga = _load(
            projected, grad, sequence, at, exists, start, length, frames, channel, grad_channel,
            ROW, OFFSET, GRAD_ROW, ROWS, COLUMNS, SIZE,
        )  # fmt: skip
        xb, gb = _load(
            projected, grad, sequence, at + 1, exists, start, length, frames, channel, grad_channel,
            ROW, OFFSET, GRAD_ROW, ROWS, COLUMNS, SIZE,
        )  # fmt: skip
        xc, gc = _load(
            projected, grad, sequence, at + 2, exists, start, length, frames, channel, grad_channel,
            ROW, OFFSET, GRAD_ROW, ROWS, COLUMNS, SIZE,
        )  # fmt: skip
        xd, gd = _load(
            projected, grad, sequence, at + 3, exists, start, length, frames, channel, grad_channel,
            ROW, OFFSET, GRAD_ROW, ROWS, COLUMNS, SIZE,
        )  # fmt: skip
        ga = _through_silu(ga, b + w0 * x3 + w1 * x2 + w2 * x1 + w3 * xa)
        gb = _through_silu(gb, b + w0 * x2 + w1 * x1 + w2 * xa + w3 * xb)
        gc = _through_silu(gc, b + w0 * x1 + w1 * xa + w2 * xb + w3 * xc)
        gd = _through_silu(gd, b + w0 * xa + w1 * xb + w2 * xc + w3 * xd)
        # A token has met the gradients of all four outputs that it feeds three tokens later.
        _store(
            grad_projected, w3 * g3 + w2 * g2 + w1 * g1 + w0 * ga, sequence, at - 3, exists, start, end,
            frames, channel, ROW, OFFSET, ROWS, COLUMNS, SIZE,
        )  # fmt: skip
        _store(
            grad_projected, w3 * g2 + w2 * g1 + w1 * ga + w0 * gb, sequence, at - 2, exists, start, end,
            frames, channel, ROW, OFFSET, ROWS, COLUMNS, SIZE,
        )  # fmt: skip
        _store(
            grad_projected, w3 * g1 + w2 * ga + w1 * gb + w0 * gc, sequence, at - 1, exists, start, end,
            frames, channel, ROW, OFFSET, ROWS, COLUMNS, SIZE,
        )  # fmt: skip
        _store(
            grad_projected, w3 * ga + w2 * gb + w1 * gc + w0 * gd, sequence, at, exists, start, end,
            frames, channel, ROW, OFFSET, ROWS, COLUMNS, SIZE,
        )  # fmt: skip
        g3, g2, g1 = gb, gc, gd
        # The parameters' gradients: outputs of the next segment are left to it.
        ga = tl.where((at < end)[:, None], ga, 0.0)
        gb = tl.where((at + 1 < end)[:, None], gb, 0.0)
        gc = tl.where((at + 2 < end)[:, None], gc, 0.0)
        gd = tl.where((at + 3 < end)[:, None], gd, 0.0)
        dw0 += ga * x3 + gb * x2 + gc * x1 + gd * xa
        dw1 += ga * x2 + gb * x1 + gc * xa + gd * xb
        dw2 += ga * x1 + gb * xa + gc * xb + gd * xc
        dw3 += ga * xa + gb * xb + gc * xc + gd * xd
        db += ga + gb + gc + gd
        x3, x2, x1 = xb, xc, xd
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
