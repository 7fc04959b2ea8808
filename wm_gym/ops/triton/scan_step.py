"""The block-wise scan of one or two frames: every SSM state is read once and written once.

A first kernel filters: the convolution's result is needed by every head, and it is small beside the states. Then one
program holds the state of one head of one block, or some of its rows. Few tokens per block run the recurrence itself,
a stream of states through registers; more tokens run the state-space dual form, as matrix products.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from wm_gym.ops.triton.launch import matrix_operand, matrix_precision

_MAX_RECURRENT_TOKENS = 2
_MAX_PIECE = 64  # tokens per matrix product
_CONV_TILE = 2048  # values that one program filters
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
    token = tile * TOKEN_TILE + tl.arange(0, TOKEN_TILE)[:, None]
    mask = (token < LENGTH) & inside
    total = tl.load(conv_bias + channel, inside, 0.0).to(tl.float32)
    for tap in tl.static_range(4):
        value = _conv_input(
            fresh, past, token + (tap - 3), channel, mask, block, CHANNELS, MIXED, BLOCK_SIZE, ROWS, COLUMNS
        )
        total += value * tl.load(conv_weight + tap * MIXED + channel, inside, 0.0).to(tl.float32)
    row = dream_row + _token_row(token, block, BLOCK_SIZE, ROWS, COLUMNS)
    tl.store(filtered + row * MIXED + channel, _silu(total).to(filtered.dtype.element_ty), mask)

    if COMMITTED > 0:
        tap = tl.arange(0, 4)[:, None]
        # Only the first tile reads the state, so it may write it, once all its threads have read.
        kept = (tap < 3) & inside & (tile == 0)
        newest = _conv_input(
            fresh, past, COMMITTED - 3 + tap, channel, kept, block, CHANNELS, MIXED, BLOCK_SIZE, ROWS, COLUMNS
        )
        tl.debug_barrier()
        tl.store(past + tap * MIXED + channel, newest.to(conv_state.dtype.element_ty), kept)


@triton.jit
def _conv_input(
    fresh, past, token, channel, mask, block, CHANNELS: tl.constexpr, MIXED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Inputs of the convolution, float32 [tokens, channels]; tokens -3 to -1 are in the convolution state."""
    row = _token_row(tl.maximum(token, 0), block, BLOCK_SIZE, ROWS, COLUMNS)
    new = tl.load(fresh + row * CHANNELS + channel, mask & (token >= 0), 0.0).to(tl.float32)
    return new + tl.load(past + (token + 3) * MIXED + channel, mask & (token < 0), 0.0).to(tl.float32)


@triton.jit
def _recurrent_kernel(
    projected, filtered, dt_bias, a, skip, ssm_state, out,
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
    dream_row = sequence // BLOCKS * (FRAMES * ROWS * COLUMNS)

    d = tile * ROW_TILE + tl.arange(0, ROW_TILE)
    s = tl.arange(0, STATE)
    place = ssm_state + (sequence * HEADS + head) * (DIM * STATE) + d[:, None] * STATE + s[None, :]
    state = tl.load(place).to(tl.float32)
    channel = head * DIM + d
    rate = tl.load(a + head).to(tl.float32)
    bias = tl.load(dt_bias + head).to(tl.float32)
    direct = tl.load(skip + head).to(tl.float32)
    for token in tl.static_range(FRAMES * BLOCK_SIZE * BLOCK_SIZE):
        row = dream_row + _token_row(token, block, BLOCK_SIZE, ROWS, COLUMNS)
        dt = _softplus(tl.load(projected + row * CHANNELS + INNER + MIXED + head).to(tl.float32) + bias)
        gate = tl.load(projected + row * CHANNELS + channel).to(tl.float32)
        x = tl.load(filtered + row * MIXED + channel).to(tl.float32)
        b = tl.load(filtered + row * MIXED + INNER + s).to(tl.float32)
        c = tl.load(filtered + row * MIXED + INNER + STATE + s).to(tl.float32)
        state = tl.exp(dt * rate) * state + (dt * x)[:, None] * b[None, :]
        y = tl.sum(state * c[None, :], axis=1) + direct * x
        tl.store(out + row * INNER + channel, (y * _silu(gate)).to(out.dtype.element_ty))
        if token + 1 == COMMITTED:
            tl.store(place, state.to(ssm_state.dtype.element_ty))


@triton.jit
def _chunk_kernel(
    projected, filtered, dt_bias, a, skip, ssm_state, out,
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
    dream_row = sequence // BLOCKS * (FRAMES * ROWS * COLUMNS)

    d = tile * ROW_TILE + tl.arange(0, ROW_TILE)
    s = tl.arange(0, STATE)
    place = ssm_state + (sequence * HEADS + head) * (DIM * STATE) + d[:, None] * STATE + s[None, :]
    state = tl.load(place).to(tl.float32)
    channel = head * DIM + d
    rate = tl.load(a + head).to(tl.float32)
    bias = tl.load(dt_bias + head).to(tl.float32)
    direct = tl.load(skip + head).to(tl.float32)
    index = tl.arange(0, PADDED)
    valid = index < PIECE
    mask = valid[:, None]
    for piece in tl.static_range(LENGTH // PIECE):
        token = piece * PIECE + index
        row = dream_row + _token_row(token, block, BLOCK_SIZE, ROWS, COLUMNS)
        mixed = filtered + row[:, None] * MIXED
        x = tl.load(mixed + channel[None, :], mask, 0.0)
        b = tl.load(mixed + INNER + s[None, :], mask, 0.0)
        c = tl.load(mixed + INNER + STATE + s[None, :], mask, 0.0)
        step = tl.load(projected + row * CHANNELS + INNER + MIXED + head, valid, 0.0).to(tl.float32)
        # A padded token has dt = 0: it neither decays nor feeds the state.
        dt = tl.where(valid, _softplus(step + bias), 0.0)
        decay = tl.cumsum(dt * rate, 0)

        causal = index[:, None] >= index[None, :]
        weight = tl.exp(tl.where(causal, decay[:, None] - decay[None, :], float("-inf"))) * dt[None, :]
        scores = tl.dot(c.to(OPERAND), tl.trans(b.to(OPERAND)), input_precision=PRECISION) * weight
        y = tl.dot(scores.to(OPERAND), x.to(OPERAND), input_precision=PRECISION)
        # What the state adds and takes is not rounded to the operands' bfloat16.
        y += tl.dot(c.to(tl.float32), tl.trans(state), input_precision=PRECISION) * tl.exp(decay)[:, None]
        y += direct * x.to(tl.float32)
        gate = tl.load(projected + row[:, None] * CHANNELS + channel[None, :], mask, 0.0).to(tl.float32)
        tl.store(out + row[:, None] * INNER + channel[None, :], (y * _silu(gate)).to(out.dtype.element_ty), mask)

        if piece * PIECE < COMMITTED or piece + 1 < LENGTH // PIECE:
            kept = token < COMMITTED if piece * PIECE < COMMITTED else valid
            total = tl.sum(tl.where(kept, dt * rate, 0.0), 0)
            share = tl.where(kept, dt * tl.exp(tl.where(kept, total - decay, 0.0)), 0.0)
            fed = x.to(tl.float32) * share[:, None]
            update = tl.dot(tl.trans(fed), b.to(tl.float32), input_precision=PRECISION)
            state = tl.exp(total) * state + update
            if piece * PIECE < COMMITTED and (piece + 1) * PIECE >= COMMITTED:
                tl.store(place, state.to(ssm_state.dtype.element_ty))


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
    inner, mixed, tokens = heads * dim, heads * dim + 2 * state_dim, block_size**2
    sequences = batch * blocks
    projected = projected.contiguous()
    out = projected.new_empty(batch, frames, rows, columns, inner)
    grid = {"BLOCK_SIZE": block_size, "ROWS": rows, "COLUMNS": columns, "FRAMES": frames}
    filtered = projected.new_empty(batch, frames, rows, columns, mixed)
    committed = num_committed * tokens
    token_tile = min(16, triton.next_power_of_2(frames * tokens))
    channel_tile = min(_CONV_TILE // token_tile, triton.next_power_of_2(mixed))
    _conv_kernel[(sequences * triton.cdiv(frames * tokens, token_tile), triton.cdiv(mixed, channel_tile))](
        projected, conv_weight, conv_bias, conv_state, filtered, inner, mixed, channels, **grid,
        COMMITTED=committed, TOKEN_TILE=token_tile, CHANNEL_TILE=channel_tile, num_warps=4,
    )  # fmt: skip
    tensors = (projected, filtered, dt_bias, a, skip, ssm_state, out)
    sizes = {"HEADS": heads, "DIM": dim, "STATE": state_dim, **grid, "COMMITTED": committed}
    if frames * tokens <= _MAX_RECURRENT_TOKENS:
        _recurrent_kernel[(sequences * heads,)](*tensors, **sizes, ROW_TILE=dim, num_warps=4)
        return out
    piece, row_tile = _piece(tokens, frames), _row_tile(dim, sequences * heads)
    padded = max(16, triton.next_power_of_2(piece))
    _chunk_kernel[(sequences * heads * (dim // row_tile),)](
        *tensors, **sizes, ROW_TILE=row_tile, PIECE=piece, PADDED=padded, OPERAND=matrix_operand(projected.dtype),
        PRECISION=matrix_precision(projected.dtype), num_warps=8 if padded >= 64 else 4,
    )  # fmt: skip
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
