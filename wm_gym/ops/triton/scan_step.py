"""The block-wise scan of one or two frames: every SSM state is read once and written once.

One program holds the state of one head of one block (or of some of its rows). Few tokens per block run the recurrence
itself, which is a stream of states through registers; more tokens run the state-space dual form, as matrix products.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from wm_gym.ops.triton.launch import matrix_operand, matrix_precision

_MAX_RECURRENT_TOKENS = 2
_MAX_PIECE = 64  # tokens per matrix product
_FILLS_A_GPU = 256  # programs


@triton.jit
def _token_row(token, block, BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where a block's token (time slowest, then rows, then columns) lies among a dream's tokens."""
    per_block: tl.constexpr = BLOCK_SIZE * BLOCK_SIZE
    per_row: tl.constexpr = COLUMNS // BLOCK_SIZE
    inside = token % per_block
    row = block // per_row * BLOCK_SIZE + inside // BLOCK_SIZE
    column = block % per_row * BLOCK_SIZE + inside % BLOCK_SIZE
    return token // per_block * (ROWS * COLUMNS) + row * COLUMNS + column


@triton.jit
def _softplus(x):
    """log(1 + exp(x)) with a small relative error also where exp(x) is small."""
    e = tl.exp(tl.minimum(x, 20.0))
    u = 1.0 + e
    return tl.where(x > 20.0, x, tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0))))


@triton.jit
def _silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def _token_input(
    fresh, past, channel, mask, block, TOKEN: tl.constexpr, CHANNELS: tl.constexpr, MIXED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Input of the convolution at one token, which is in the convolution state if its number is negative."""
    if TOKEN < 0:
        value = tl.load(past + (TOKEN + 3) * MIXED + channel, mask, 0.0)
    else:
        row = _token_row(TOKEN, block, BLOCK_SIZE, ROWS, COLUMNS)
        value = tl.load(fresh + row * CHANNELS + channel, mask, 0.0)
    return value


@triton.jit
def _filtered_token(
    fresh, past, conv_weight, conv_bias, channel, mask, block,
    TOKEN: tl.constexpr, CHANNELS: tl.constexpr, MIXED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Convolution and SiLU of one token, float32 [channels]."""
    total = tl.load(conv_bias + channel, mask, 0.0).to(tl.float32)
    for tap in tl.static_range(4):
        value = _token_input(
            fresh, past, channel, mask, block, TOKEN + tap - 3, CHANNELS, MIXED, BLOCK_SIZE, ROWS, COLUMNS
        )
        total += value.to(tl.float32) * tl.load(conv_weight + tap * MIXED + channel, mask, 0.0).to(tl.float32)
    return _silu(total)


@triton.jit
def _filtered_tokens(
    fresh, past, conv_weight, conv_bias, token, channel, token_mask, channel_mask, block,
    CHANNELS: tl.constexpr, MIXED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Convolution and SiLU of many tokens, float32 [tokens, channels]; zero where the masks are."""
    mask = token_mask[:, None] & channel_mask[None, :]
    total = tl.load(conv_bias + channel, channel_mask, 0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(4):
        source = token + (tap - 3)
        row = _token_row(tl.maximum(source, 0), block, BLOCK_SIZE, ROWS, COLUMNS)
        exists = (source >= 0)[:, None]
        value = tl.load(fresh + row[:, None] * CHANNELS + channel[None, :], mask & exists, 0.0).to(tl.float32)
        if tap < 3:
            place = past + (source + 3)[:, None] * MIXED + channel[None, :]
            value += tl.load(place, mask & (source < 0)[:, None], 0.0).to(tl.float32)
        total += value * tl.load(conv_weight + tap * MIXED + channel, channel_mask, 0.0).to(tl.float32)[None, :]
    return tl.where(mask, _silu(total), 0.0)


@triton.jit
def _recurrent_kernel(
    projected, conv_weight, conv_bias, dt_bias, a, skip, ssm_state, conv_state, out,
    HEADS: tl.constexpr, DIM: tl.constexpr, STATE: tl.constexpr, ROW_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FRAMES: tl.constexpr, COMMITTED: tl.constexpr,
):  # fmt: skip
    """The recurrence, token by token, on [ROW_TILE, STATE] of a state; see the twin for the formula."""
    INNER: tl.constexpr = HEADS * DIM
    MIXED: tl.constexpr = INNER + 2 * STATE
    CHANNELS: tl.constexpr = INNER + MIXED + HEADS
    BLOCKS: tl.constexpr = (ROWS // BLOCK_SIZE) * (COLUMNS // BLOCK_SIZE)
    TILES: tl.constexpr = DIM // ROW_TILE
    tile = tl.program_id(0) % TILES
    head = tl.program_id(0) // TILES % HEADS
    sequence = (tl.program_id(0) // (TILES * HEADS)).to(tl.int64)
    block = (sequence % BLOCKS).to(tl.int32)
    fresh = projected + sequence // BLOCKS * (FRAMES * ROWS * COLUMNS * CHANNELS)
    written = out + sequence // BLOCKS * (FRAMES * ROWS * COLUMNS * INNER)
    past = conv_state + sequence * (3 * MIXED)

    d = tile * ROW_TILE + tl.arange(0, ROW_TILE)
    s = tl.arange(0, STATE)
    place = ssm_state + (sequence * HEADS + head) * (DIM * STATE) + d[:, None] * STATE + s[None, :]
    state = tl.load(place).to(tl.float32)
    channel = head * DIM + d
    rate = tl.load(a + head).to(tl.float32)
    bias = tl.load(dt_bias + head).to(tl.float32)
    direct = tl.load(skip + head).to(tl.float32)
    for token in tl.static_range(FRAMES * BLOCK_SIZE * BLOCK_SIZE):
        row = _token_row(token, block, BLOCK_SIZE, ROWS, COLUMNS)
        dt = _softplus(tl.load(fresh + row * CHANNELS + INNER + MIXED + head).to(tl.float32) + bias)
        gate = tl.load(fresh + row * CHANNELS + channel).to(tl.float32)
        x = _filtered_token(
            fresh + INNER, past, conv_weight, conv_bias, channel, d < DIM, block,
            token, CHANNELS, MIXED, BLOCK_SIZE, ROWS, COLUMNS,
        )  # fmt: skip
        b = _filtered_token(
            fresh + INNER, past, conv_weight, conv_bias, INNER + s, s < STATE, block,
            token, CHANNELS, MIXED, BLOCK_SIZE, ROWS, COLUMNS,
        )  # fmt: skip
        c = _filtered_token(
            fresh + INNER, past, conv_weight, conv_bias, INNER + STATE + s, s < STATE, block,
            token, CHANNELS, MIXED, BLOCK_SIZE, ROWS, COLUMNS,
        )  # fmt: skip
        state = tl.exp(dt * rate) * state + (dt * x)[:, None] * b[None, :]
        y = tl.sum(state * c[None, :], axis=1) + direct * x
        tl.store(written + row * INNER + channel, (y * _silu(gate)).to(out.dtype.element_ty))
        if token + 1 == COMMITTED:
            tl.store(place, state.to(ssm_state.dtype.element_ty))


@triton.jit
def _chunk_kernel(
    projected, conv_weight, conv_bias, dt_bias, a, skip, ssm_state, conv_state, out,
    HEADS: tl.constexpr, DIM: tl.constexpr, STATE: tl.constexpr, ROW_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FRAMES: tl.constexpr, COMMITTED: tl.constexpr,
    PIECE: tl.constexpr, PADDED: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The dual form (arXiv 2405.21060, section 6), PIECE tokens at a time, on [ROW_TILE, STATE] of a state."""
    INNER: tl.constexpr = HEADS * DIM
    MIXED: tl.constexpr = INNER + 2 * STATE
    CHANNELS: tl.constexpr = INNER + MIXED + HEADS
    BLOCKS: tl.constexpr = (ROWS // BLOCK_SIZE) * (COLUMNS // BLOCK_SIZE)
    LENGTH: tl.constexpr = FRAMES * BLOCK_SIZE * BLOCK_SIZE
    TILES: tl.constexpr = DIM // ROW_TILE
    tile = tl.program_id(0) % TILES
    head = tl.program_id(0) // TILES % HEADS
    sequence = (tl.program_id(0) // (TILES * HEADS)).to(tl.int64)
    block = (sequence % BLOCKS).to(tl.int32)
    fresh = projected + sequence // BLOCKS * (FRAMES * ROWS * COLUMNS * CHANNELS)
    written = out + sequence // BLOCKS * (FRAMES * ROWS * COLUMNS * INNER)
    past = conv_state + sequence * (3 * MIXED)

    d = tile * ROW_TILE + tl.arange(0, ROW_TILE)
    s = tl.arange(0, STATE)
    place = ssm_state + (sequence * HEADS + head) * (DIM * STATE) + d[:, None] * STATE + s[None, :]
    state = tl.load(place).to(tl.float32)
    channel = head * DIM + d
    rate = tl.load(a + head).to(tl.float32)
    bias = tl.load(dt_bias + head).to(tl.float32)
    direct = tl.load(skip + head).to(tl.float32)
    index = tl.arange(0, PADDED)
    for piece in tl.static_range(LENGTH // PIECE):
        token = piece * PIECE + index
        valid = index < PIECE
        row = _token_row(token, block, BLOCK_SIZE, ROWS, COLUMNS)
        x = _filtered_tokens(
            fresh + INNER, past, conv_weight, conv_bias, token, channel, valid, d < DIM, block,
            CHANNELS, MIXED, BLOCK_SIZE, ROWS, COLUMNS,
        )  # fmt: skip
        b = _filtered_tokens(
            fresh + INNER, past, conv_weight, conv_bias, token, INNER + s, valid, s < STATE, block,
            CHANNELS, MIXED, BLOCK_SIZE, ROWS, COLUMNS,
        )  # fmt: skip
        c = _filtered_tokens(
            fresh + INNER, past, conv_weight, conv_bias, token, INNER + STATE + s, valid, s < STATE, block,
            CHANNELS, MIXED, BLOCK_SIZE, ROWS, COLUMNS,
        )  # fmt: skip
        step = tl.load(fresh + row * CHANNELS + INNER + MIXED + head, valid, 0.0).to(tl.float32)
        # A padded token has dt = 0: it neither decays nor feeds the state.
        dt = tl.where(valid, _softplus(step + bias), 0.0)
        decay = tl.cumsum(dt * rate, 0)

        causal = index[:, None] >= index[None, :]
        weight = tl.exp(tl.where(causal, decay[:, None] - decay[None, :], float("-inf"))) * dt[None, :]
        scores = tl.dot(c.to(OPERAND), tl.trans(b.to(OPERAND)), input_precision=PRECISION) * weight
        y = tl.dot(scores.to(OPERAND), x.to(OPERAND), input_precision=PRECISION)
        # What the state adds and takes is not rounded to the operands' bfloat16.
        y += tl.dot(c, tl.trans(state), input_precision=PRECISION) * tl.exp(decay)[:, None]
        y += direct * x
        cell = row[:, None]
        tile_mask = valid[:, None] & (d < DIM)[None, :]
        gate = tl.load(fresh + cell * CHANNELS + channel[None, :], tile_mask, 0.0).to(tl.float32)
        tl.store(written + cell * INNER + channel[None, :], (y * _silu(gate)).to(out.dtype.element_ty), tile_mask)

        if piece * PIECE < COMMITTED or piece + 1 < LENGTH // PIECE:
            kept = token < COMMITTED if piece * PIECE < COMMITTED else valid
            total = tl.sum(tl.where(kept, dt * rate, 0.0), 0)
            share = tl.where(kept, dt * tl.exp(tl.where(kept, total - decay, 0.0)), 0.0)
            update = tl.dot(tl.trans(x * share[:, None]), b, input_precision=PRECISION)
            state = tl.exp(total) * state + update
            if (piece + 1) * PIECE >= COMMITTED and piece * PIECE < COMMITTED:
                tl.store(place, state.to(ssm_state.dtype.element_ty))


@triton.jit
def _conv_state_kernel(
    projected, conv_state,
    INNER: tl.constexpr, MIXED: tl.constexpr, MIXED_TILE: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FRAMES: tl.constexpr,
):  # fmt: skip
    """The last three inputs of the convolution after frame 0. Runs after all heads have read the ones before."""
    BLOCKS: tl.constexpr = (ROWS // BLOCK_SIZE) * (COLUMNS // BLOCK_SIZE)
    TOKENS: tl.constexpr = BLOCK_SIZE * BLOCK_SIZE
    sequence = tl.program_id(0).to(tl.int64)
    block = (sequence % BLOCKS).to(tl.int32)
    fresh = projected + sequence // BLOCKS * (FRAMES * ROWS * COLUMNS * CHANNELS) + INNER
    past = conv_state + sequence * (3 * MIXED)
    channel = tl.arange(0, MIXED_TILE)
    mask = channel < MIXED
    value0 = _token_input(fresh, past, channel, mask, block, TOKENS - 3, CHANNELS, MIXED, BLOCK_SIZE, ROWS, COLUMNS)
    value1 = _token_input(fresh, past, channel, mask, block, TOKENS - 2, CHANNELS, MIXED, BLOCK_SIZE, ROWS, COLUMNS)
    value2 = _token_input(fresh, past, channel, mask, block, TOKENS - 1, CHANNELS, MIXED, BLOCK_SIZE, ROWS, COLUMNS)
    tl.debug_barrier()  # with few tokens a place is read for one tap and written for another
    stored: tl.constexpr = conv_state.dtype.element_ty
    tl.store(past + channel, value0.to(stored), mask)
    tl.store(past + MIXED + channel, value1.to(stored), mask)
    tl.store(past + 2 * MIXED + channel, value2.to(stored), mask)


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
        ValueError: if the head or state dimension is not a power of two from 16 on, or memory is not contiguous.
    """
    batch, frames, rows, columns, channels = projected.shape
    blocks, heads, dim, state_dim = ssm_state.shape[1:]
    for name, size in (("head_dim", dim), ("state_dim", state_dim)):
        if size < 16 or size & (size - 1):
            raise ValueError(f"{name} is {size}; the Triton scan takes powers of two from 16 on. Use backend='plain'.")
    if not (ssm_state.is_contiguous() and conv_state.is_contiguous()):
        raise ValueError("ssm_state and conv_state are changed in place and must be contiguous; pass them so.")
    inner, tokens = heads * dim, block_size**2
    sequences = batch * blocks
    projected = projected.contiguous()
    out = projected.new_empty(batch, frames, rows, columns, inner)
    grid = {"BLOCK_SIZE": block_size, "ROWS": rows, "COLUMNS": columns, "FRAMES": frames}
    tensors = (projected, conv_weight, conv_bias, dt_bias, a, skip, ssm_state, conv_state, out)
    if frames * tokens <= _MAX_RECURRENT_TOKENS:
        kernel, special, warps = _recurrent_kernel, {}, 4
        row_tile = dim
    else:
        piece = _piece(tokens, frames)
        padded = max(16, triton.next_power_of_2(piece))
        dtype = projected.dtype
        special = {
            "PIECE": piece,
            "PADDED": padded,
            "OPERAND": matrix_operand(dtype),
            "PRECISION": matrix_precision(dtype),
        }
        kernel = _chunk_kernel
        row_tile, warps = _row_tile(dim, sequences * heads), 4
    kernel[(sequences * heads * (dim // row_tile),)](
        *tensors, HEADS=heads, DIM=dim, STATE=state_dim, ROW_TILE=row_tile, **grid,
        COMMITTED=num_committed * tokens, **special, num_warps=warps,
    )  # fmt: skip
    if num_committed:
        mixed = inner + 2 * state_dim
        _conv_state_kernel[(sequences,)](
            projected, conv_state, inner, mixed, triton.next_power_of_2(mixed), channels, **grid, num_warps=4
        )
    return out


def _piece(tokens: int, frames: int) -> int:
    """Tokens that one matrix product takes: all of them, or a part that divides a frame's."""
    if tokens * frames <= _MAX_PIECE:
        return tokens * frames
    return max(size for size in range(1, _MAX_PIECE + 1) if tokens % size == 0)


def _row_tile(dim: int, num_states: int) -> int:
    """Rows of a state per program: fewer where there are few states, so that more of the GPU works."""
    tile = dim
    while tile > 16 and num_states * (dim // tile) < _FILLS_A_GPU:
        tile //= 2
    return tile
