"""The convolution of the block-wise scan, in block order without moving tokens: the first of a scan's two kernels."""

# A kernel is Python in form only; the type checker does not know Triton's launches, loops and tuples.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from wm_gym.ops.launch import ceil_div, next_power_of_two

LOG2_OF_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def token_rows(token, block, BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where the tokens of a block (time slowest, then rows, then columns), ``[n]``, lie among a dream's tokens."""
    per_block: tl.constexpr = BLOCK_SIZE * BLOCK_SIZE
    per_row: tl.constexpr = COLUMNS // BLOCK_SIZE
    inside = token % per_block
    row = block // per_row * BLOCK_SIZE + inside // BLOCK_SIZE
    column = block % per_row * BLOCK_SIZE + inside % BLOCK_SIZE
    # Triton 3.6 believes that all of a quotient's elements are as aligned as the first, and loads misaligned vectors.
    return tl.multiple_of(token // per_block * (ROWS * COLUMNS) + row * COLUMNS + column, [1])


@triton.jit
def silu(x):
    """x times its logistic function."""
    return x / (1.0 + tl.exp2(x * -LOG2_OF_E))


@triton.jit
def _conv_kernel(
    projected, conv_weight, conv_bias, conv_state, filtered,
    INNER: tl.constexpr, MIXED: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FRAMES: tl.constexpr, COMMITTED: tl.constexpr,
    TOKEN_TILE: tl.constexpr, CHANNEL_TILE: tl.constexpr,
):  # fmt: skip
    """Convolution and SiLU in block order; the convolution state is read and, with COMMITTED tokens, moved on."""
    BLOCKS: tl.constexpr = (ROWS // BLOCK_SIZE) * (COLUMNS // BLOCK_SIZE)
    LENGTH: tl.constexpr = FRAMES * BLOCK_SIZE * BLOCK_SIZE
    tiles: tl.constexpr = (LENGTH + TOKEN_TILE - 1) // TOKEN_TILE
    tile = tl.program_id(0) % tiles
    sequence = (tl.program_id(0) // tiles).to(tl.int64)
    block = (sequence % BLOCKS).to(tl.int32)
    dream_row = sequence // BLOCKS * (FRAMES * ROWS * COLUMNS)
    fresh = projected + dream_row * CHANNELS + INNER
    past = conv_state + sequence * (3 * MIXED)

    channel = tl.program_id(1) * CHANNEL_TILE + tl.arange(0, CHANNEL_TILE)[None, :]
    inside = channel < MIXED
    token = tile * TOKEN_TILE + tl.arange(0, TOKEN_TILE)
    mask = (token < LENGTH)[:, None] & inside
    total = tl.load(conv_bias + channel, inside, 0.0).to(tl.float32)
    for tap in tl.static_range(4):
        value = _conv_input(
            fresh, past, token + (tap - 3), channel, mask, block, CHANNELS, MIXED, BLOCK_SIZE, ROWS, COLUMNS
        )
        total += value * tl.load(conv_weight + tap * MIXED + channel, inside, 0.0).to(tl.float32)
    row = dream_row + token_rows(token, block, BLOCK_SIZE, ROWS, COLUMNS)[:, None]
    tl.store(filtered + row * MIXED + channel, silu(total).to(filtered.dtype.element_ty), mask)

    if COMMITTED > 0:
        tap = tl.arange(0, 4)
        # Only the first tile reads the state, so it may write it, once all its threads have read.
        kept = (tap + 4 * tile < 3)[:, None] & inside
        newest = _conv_input(
            fresh, past, COMMITTED - 3 + tap, channel, kept, block, CHANNELS, MIXED, BLOCK_SIZE, ROWS, COLUMNS
        )
        tl.debug_barrier()
        tl.store(past + tap[:, None] * MIXED + channel, newest.to(conv_state.dtype.element_ty), kept)


@triton.jit
def _conv_input(
    fresh, past, token, channel, mask, block, CHANNELS: tl.constexpr, MIXED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Inputs of the convolution, float32 [tokens, channels]; tokens -3 to -1 are in the convolution state."""
    row = token_rows(tl.maximum(token, 0), block, BLOCK_SIZE, ROWS, COLUMNS)[:, None]
    token = token[:, None]
    new = tl.load(fresh + row * CHANNELS + channel, mask & (token >= 0), 0.0).to(tl.float32)
    return new + tl.load(past + (token + 3) * MIXED + channel, mask & (token < 0), 0.0).to(tl.float32)


def scan_conv(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    conv_state: Tensor,
    inner: int,
    mixed: int,
    grid: dict[str, int],
) -> Tensor:
    """Filter and activate x, b and c; takes committed tokens into the convolution state.

    Args:
        projected: ``[B, F, rows, columns, inner + mixed + h]``, contiguous.
        conv_weight, conv_bias, conv_state: as in :func:`wm_gym.ops.step.scan_step`.
        inner, mixed: channels of the gate, and of x, b and c.
        grid: BLOCK_SIZE, ROWS, COLUMNS, FRAMES, and how many tokens of a block are COMMITTED.

    Returns:
        ``[B, F, rows, columns, mixed]``.
    """
    batch, frames, rows, columns, channels = projected.shape
    filtered = projected.new_empty(batch, frames, rows, columns, mixed)
    length = frames * grid["BLOCK_SIZE"] ** 2
    # A tile that is not a whole sequence has more than 3 tokens, so that only the first reads the convolution state.
    token_tile = min(32, next_power_of_two(length))
    channel_tile = min(64 if token_tile > 8 else 128, next_power_of_two(mixed))
    programs = conv_state.shape[0] * conv_state.shape[1] * ceil_div(length, token_tile)
    _conv_kernel[(programs, ceil_div(mixed, channel_tile))](
        projected, conv_weight.contiguous(), conv_bias.contiguous(), conv_state, filtered, inner, mixed, channels,
        **grid, TOKEN_TILE=token_tile, CHANNEL_TILE=channel_tile,
        num_warps=max(1, token_tile * channel_tile // 512),
    )  # fmt: skip
    return filtered
