"""The block-wise scan of one or two frames: every SSM state is read once and written once.

A first kernel filters: the convolution's result is needed by every head, and it is small beside the states. Then one
program holds the state of one head of one block, or some of its rows. Blocks of one token run the recurrence itself, a
stream of states through registers; more tokens run the state-space dual form, as matrix products.
"""

# A kernel is Python in form only; the type checker does not know Triton's launches, loops and tuples.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportPossiblyUnboundVariable=false, reportUnboundVariable=false

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from wm_gym.ops.triton.launch import ceil_div, matrix_operand, matrix_precision, next_power_of_two

_MAX_PIECE = 64  # tokens per matrix product
_FILLS_A_GPU = 256  # programs
_LOG2_OF_E: tl.constexpr = tl.constexpr(1.4426950408889634)
_MANY = 512  # states: a program for each of them fills a GPU


@triton.jit
def _token_rows(token, block, BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where the tokens of a block (time slowest, then rows, then columns), ``[n]``, lie among a dream's tokens."""
    per_block: tl.constexpr = BLOCK_SIZE * BLOCK_SIZE
    per_row: tl.constexpr = COLUMNS // BLOCK_SIZE
    inside = token % per_block
    row = block // per_row * BLOCK_SIZE + inside // BLOCK_SIZE
    column = block % per_row * BLOCK_SIZE + inside % BLOCK_SIZE
    # Triton 3.6 believes that all of a quotient's elements are as aligned as the first, and loads misaligned vectors.
    return tl.multiple_of(token // per_block * (ROWS * COLUMNS) + row * COLUMNS + column, [1])


@triton.jit
def _softplus(x):
    """log(1 + exp(x)) with a small relative error also where exp(x) is small."""
    e = tl.exp(tl.minimum(x, 20.0))
    u = 1.0 + e
    return tl.where(x > 20.0, x, tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0))))


@triton.jit
def _silu(x):
    return x / (1.0 + tl.exp2(x * -_LOG2_OF_E))


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
    row = dream_row + _token_rows(token, block, BLOCK_SIZE, ROWS, COLUMNS)[:, None]
    tl.store(filtered + row * MIXED + channel, _silu(total).to(filtered.dtype.element_ty), mask)

    if COMMITTED > 0:
        tap = tl.arange(0, 4)
        # Only the first tile reads the state, so it may write it, once all its threads have read.
        kept = (tap < 3)[:, None] & inside & (tile == 0)
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
    row = _token_rows(tl.maximum(token, 0), block, BLOCK_SIZE, ROWS, COLUMNS)[:, None]
    token = token[:, None]
    new = tl.load(fresh + row * CHANNELS + channel, mask & (token >= 0), 0.0).to(tl.float32)
    return new + tl.load(past + (token + 3) * MIXED + channel, mask & (token < 0), 0.0).to(tl.float32)


@triton.jit
def _recurrent_kernel(
    projected, filtered, dt_bias, a, skip, ssm_state, out,
    HEADS: tl.constexpr, DIM: tl.constexpr, STATE: tl.constexpr, ROW_TILE: tl.constexpr, STATE_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FRAMES: tl.constexpr, COMMITTED: tl.constexpr,
):  # fmt: skip
    """The recurrence of blocks of one token, frame by frame, on [ROW_TILE, STATE] of a state; formula: the twin's."""
    INNER: tl.constexpr = HEADS * DIM
    MIXED: tl.constexpr = INNER + 2 * STATE
    CHANNELS: tl.constexpr = INNER + MIXED + HEADS
    BLOCKS: tl.constexpr = ROWS * COLUMNS
    TILES: tl.constexpr = (DIM + ROW_TILE - 1) // ROW_TILE
    tile = tl.program_id(0) % TILES
    head = tl.program_id(0) // TILES % HEADS
    sequence = (tl.program_id(0) // (TILES * HEADS)).to(tl.int64)
    block = (sequence % BLOCKS).to(tl.int32)
    dream_row = sequence // BLOCKS * (FRAMES * ROWS * COLUMNS)

    d = tile * ROW_TILE + tl.arange(0, ROW_TILE)
    s = tl.arange(0, STATE_TILE)
    has_d, has_s = d < DIM, s < STATE
    place = ssm_state + (sequence * HEADS + head) * (DIM * STATE) + d[:, None] * STATE + s[None, :]
    held = has_d[:, None] & has_s[None, :]
    state = tl.load(place, held, 0.0).to(tl.float32)
    channel = head * DIM + d
    rate = tl.load(a + head).to(tl.float32)
    bias = tl.load(dt_bias + head).to(tl.float32)
    direct = tl.load(skip + head).to(tl.float32)
    for token in tl.static_range(FRAMES):
        row = dream_row + token * (ROWS * COLUMNS) + block
        dt = _softplus(tl.load(projected + row * CHANNELS + INNER + MIXED + head).to(tl.float32) + bias)
        gate = tl.load(projected + row * CHANNELS + channel, has_d, 0.0).to(tl.float32)
        x = tl.load(filtered + row * MIXED + channel, has_d, 0.0).to(tl.float32)
        b = tl.load(filtered + row * MIXED + INNER + s, has_s, 0.0).to(tl.float32)
        c = tl.load(filtered + row * MIXED + INNER + STATE + s, has_s, 0.0).to(tl.float32)
        state = tl.exp(dt * rate) * state + (dt * x)[:, None] * b[None, :]
        y = tl.sum(state * c[None, :], axis=1) + direct * x
        tl.store(out + row * INNER + channel, (y * _silu(gate)).to(out.dtype.element_ty), has_d)
        if token + 1 == COMMITTED:
            tl.store(place, state.to(ssm_state.dtype.element_ty), held)


@triton.jit
def _piece_of_tokens(
    projected, filtered, dt_bias, a, dream_row, token, valid, block, head, s, has_s,
    INNER: tl.constexpr, MIXED: tl.constexpr, CHANNELS: tl.constexpr, STATE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What heads share of some tokens, and the small part that each has of its own.

    Returns the tokens' places; what they write to a state (b), read from it (c), and the products of both; of GROUP
    heads from ``head`` on the steps dt and the logarithms to base 2 of the decay at each token and from the first on,
    ``[tokens, GROUP]`` or, of one head, ``[tokens]``.
    """
    row = dream_row + _token_rows(token, block, BLOCK_SIZE, ROWS, COLUMNS)
    place = filtered + row[:, None] * MIXED + INNER + s[None, :]
    mask = valid[:, None] & has_s[None, :]
    b = tl.load(place, mask, 0.0).to(OPERAND)
    c = tl.load(place + STATE, mask, 0.0).to(OPERAND)
    # Triton 3.6 cannot sum along a single column.
    if GROUP == 1:
        step = tl.load(projected + row * CHANNELS + INNER + MIXED + head, valid, 0.0).to(tl.float32)
        bias, rate = tl.load(dt_bias + head).to(tl.float32), tl.load(a + head).to(tl.float32)
        # A padded token has dt = 0: it neither decays nor feeds the state.
        dt = tl.where(valid, _softplus(step + bias), 0.0)
    else:
        own = head + tl.arange(0, GROUP)[None, :]
        step = tl.load(projected + row[:, None] * CHANNELS + INNER + MIXED + own, valid[:, None], 0.0).to(tl.float32)
        bias, rate = tl.load(dt_bias + own).to(tl.float32), tl.load(a + own).to(tl.float32)
        dt = tl.where(valid[:, None], _softplus(step + bias), 0.0)
    log_decay = dt * (rate * _LOG2_OF_E)
    return row, b, c, tl.dot(c, tl.trans(b), input_precision=PRECISION), dt, log_decay, tl.cumsum(log_decay, 0)


@triton.jit
def _of_member(values, member, GROUP: tl.constexpr):
    """A column of ``[tokens, GROUP]``, or all of ``[tokens]``."""
    if GROUP > 1:
        values = tl.sum(tl.where(tl.arange(0, GROUP)[None, :] == member, values, 0.0), 1)
    return values


@triton.jit
def _chunk_kernel(
    projected, filtered, dt_bias, a, skip, ssm_state, out,
    HEADS: tl.constexpr, DIM: tl.constexpr, STATE: tl.constexpr, ROW_TILE: tl.constexpr, STATE_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FRAMES: tl.constexpr, COMMITTED: tl.constexpr,
    PIECE: tl.constexpr, PADDED: tl.constexpr, GROUP: tl.constexpr, PREFETCH: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The dual form (arXiv 2405.21060, section 6), PIECE tokens at a time, for GROUP heads' [ROW_TILE, STATE].

    States are kept and summed in float32; what multiplies matrices is rounded to OPERAND.
    """
    INNER: tl.constexpr = HEADS * DIM
    MIXED: tl.constexpr = INNER + 2 * STATE
    CHANNELS: tl.constexpr = INNER + MIXED + HEADS
    BLOCKS: tl.constexpr = (ROWS // BLOCK_SIZE) * (COLUMNS // BLOCK_SIZE)
    PIECES: tl.constexpr = FRAMES * BLOCK_SIZE * BLOCK_SIZE // PIECE
    TILES: tl.constexpr = (DIM + ROW_TILE - 1) // ROW_TILE
    GROUPS: tl.constexpr = HEADS // GROUP
    tile = tl.program_id(0) % TILES
    first_head = tl.program_id(0) // TILES % GROUPS * GROUP
    sequence = (tl.program_id(0) // (TILES * GROUPS)).to(tl.int64)
    block = (sequence % BLOCKS).to(tl.int32)
    dream_row = sequence // BLOCKS * (FRAMES * ROWS * COLUMNS)

    d = tile * ROW_TILE + tl.arange(0, ROW_TILE)
    s = tl.arange(0, STATE_TILE)
    has_d, has_s = d < DIM, s < STATE
    held = has_d[:, None] & has_s[None, :]
    index = tl.arange(0, PADDED)
    valid = index < PIECE
    x_mask = valid[:, None] & has_d[None, :]
    causal = index[:, None] >= index[None, :]
    if PIECES == 1:
        row, b, c, products, all_dt, all_log_decay, all_decay = _piece_of_tokens(
            projected, filtered, dt_bias, a, dream_row, index, valid, block, first_head, s, has_s,
            INNER, MIXED, CHANNELS, STATE, BLOCK_SIZE, ROWS, COLUMNS, GROUP, OPERAND, PRECISION,
        )  # fmt: skip
    for member in tl.range(0, GROUP, num_stages=PREFETCH):
        head = first_head + member
        place = ssm_state + (sequence * HEADS + head) * (DIM * STATE) + d[:, None] * STATE + s[None, :]
        state = tl.load(place, held, 0.0).to(tl.float32)
        channel = head * DIM + d
        direct = tl.load(skip + head).to(tl.float32)
        for piece in tl.static_range(PIECES):
            token = piece * PIECE + index
            if PIECES > 1:
                row, b, c, products, all_dt, all_log_decay, all_decay = _piece_of_tokens(
                    projected, filtered, dt_bias, a, dream_row, token, valid, block, first_head, s, has_s,
                    INNER, MIXED, CHANNELS, STATE, BLOCK_SIZE, ROWS, COLUMNS, GROUP, OPERAND, PRECISION,
                )  # fmt: skip
            x = tl.load(filtered + row[:, None] * MIXED + channel[None, :], x_mask, 0.0)
            gate = tl.load(projected + row[:, None] * CHANNELS + channel[None, :], x_mask, 0.0).to(tl.float32)
            dt, decay = _of_member(all_dt, member, GROUP), _of_member(all_decay, member, GROUP)

            weight = tl.exp2(tl.where(causal, decay[:, None] - decay[None, :], float("-inf"))) * dt[None, :]
            y = tl.dot(c, tl.trans(state.to(OPERAND)), input_precision=PRECISION) * tl.exp2(decay)[:, None]
            y = tl.dot((products * weight).to(OPERAND), x.to(OPERAND), acc=y, input_precision=PRECISION)
            y += direct * x.to(tl.float32)
            y *= _silu(gate)
            tl.store(out + row[:, None] * INNER + channel[None, :], y.to(out.dtype.element_ty), x_mask)

            if piece * PIECE < COMMITTED or piece + 1 < PIECES:
                kept = token < COMMITTED if piece * PIECE < COMMITTED else valid
                total = tl.sum(tl.where(kept, _of_member(all_log_decay, member, GROUP), 0.0), 0)
                share = tl.where(kept, dt * tl.exp2(tl.where(kept, total - decay, 0.0)), 0.0)
                fed = (x.to(tl.float32) * share[:, None]).to(OPERAND)
                state = tl.dot(tl.trans(fed), b, acc=tl.exp2(total) * state, input_precision=PRECISION)
                if piece * PIECE < COMMITTED and (piece + 1) * PIECE >= COMMITTED:
                    tl.store(place, state.to(ssm_state.dtype.element_ty), held)


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
    """Kernel of :func:`wm_gym.ops.step.scan_step`.

    Raises:
        ValueError: if the states are not contiguous.
    """
    batch, frames, rows, columns, channels = projected.shape
    blocks, heads, dim, state_dim = ssm_state.shape[1:]
    if not (ssm_state.is_contiguous() and conv_state.is_contiguous()):
        raise ValueError("ssm_state and conv_state are changed in place and must be contiguous; pass them so.")
    inner, mixed, tokens = heads * dim, heads * dim + 2 * state_dim, block_size**2
    sequences = batch * blocks
    projected, conv_weight, conv_bias = projected.contiguous(), conv_weight.contiguous(), conv_bias.contiguous()
    dt_bias, a, skip = dt_bias.contiguous(), a.contiguous(), skip.contiguous()
    grid = {"BLOCK_SIZE": block_size, "ROWS": rows, "COLUMNS": columns, "FRAMES": frames}
    grid["COMMITTED"] = num_committed * tokens

    filtered = projected.new_empty(batch, frames, rows, columns, mixed)
    conv = _conv_launch(frames * tokens, mixed)
    _conv_kernel[(sequences * ceil_div(frames * tokens, conv["TOKEN_TILE"]), ceil_div(mixed, conv["CHANNEL_TILE"]))](
        projected, conv_weight, conv_bias, conv_state, filtered, inner, mixed, channels, **grid, **conv
    )
    out = projected.new_empty(batch, frames, rows, columns, inner)
    tensors = (projected, filtered, dt_bias, a, skip, ssm_state, out)
    sizes = {"HEADS": heads, "DIM": dim, "STATE": state_dim, "STATE_TILE": _tile(state_dim), **grid}
    if block_size == 1:
        _recurrent_kernel[(sequences * heads * ceil_div(dim, 16),)](*tensors, **sizes, ROW_TILE=16, num_warps=1)
        return out
    piece = _piece(tokens, frames)
    launch = _chunk_launch(_tile(piece), _tile(dim), heads, sequences)
    programs = sequences * heads // launch["GROUP"] * ceil_div(dim, launch["ROW_TILE"])
    _chunk_kernel[(programs,)](
        *tensors, **sizes, **launch, PIECE=piece, PADDED=_tile(piece), OPERAND=matrix_operand(projected.dtype),
        PRECISION=matrix_precision(projected.dtype),
    )  # fmt: skip
    return out


def _tile(size: int) -> int:
    """A matrix product takes powers of two from 16 on."""
    return max(16, next_power_of_two(size))


def _piece(tokens: int, frames: int) -> int:
    """Tokens that one matrix product takes: all of them, or a part that divides a frame's."""
    if tokens * frames <= _MAX_PIECE:
        return tokens * frames
    return max(size for size in range(1, _MAX_PIECE + 1) if tokens % size == 0)


def _conv_launch(length: int, mixed: int) -> dict[str, int]:
    """Tiles of the convolution, as measured on an H200.

    A tile that is not a whole sequence has more than 3 tokens, so that only the first reads the convolution state.
    """
    token_tile = min(32, next_power_of_two(length))
    channel_tile = min(64 if token_tile > 8 else 128, next_power_of_two(mixed))
    num_warps = max(1, token_tile * channel_tile // 512)
    return {"TOKEN_TILE": token_tile, "CHANNEL_TILE": channel_tile, "num_warps": num_warps}


def _chunk_launch(padded: int, dim: int, heads: int, sequences: int) -> dict[str, Any]:
    """Tiles of the dual form, as measured on an H200, for pieces of ``padded`` tokens.

    Triton 3.6 miscompiles 64 tokens by fewer than 64 rows in 4 warps for it; 2 or 8 are right.
    """
    launch = {"ROW_TILE": dim, "GROUP": 1, "PREFETCH": 1, "num_warps": 4, "maxnreg": None}
    states = sequences * heads
    if states < _MANY:
        # Fewer rows per program, so that more of the GPU works.
        row_tile = dim
        while row_tile > 16 and states * (dim // row_tile) < _FILLS_A_GPU:
            row_tile //= 2
        return launch | {"ROW_TILE": row_tile, "num_warps": 8 if padded >= 64 else 4}
    if padded == 16:
        return launch | {"ROW_TILE": min(dim, 32), "num_warps": 2}
    if padded == 32:
        group = next(size for size in (4, 2, 1) if heads % size == 0 and states >= size * _MANY)
        return launch | {"GROUP": group, "PREFETCH": 3}
    return launch | ({"ROW_TILE": 64, "maxnreg": 168} if dim >= 64 else {"num_warps": 8})
