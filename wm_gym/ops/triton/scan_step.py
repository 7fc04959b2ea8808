"""The block-wise scan of one or two frames: every SSM state is read once and written once.

A first kernel filters: the convolution's result is needed by every head, and it is small beside the states. Then one
program holds the state of one head of one block, or some of its rows. Blocks of one token run the recurrence itself, a
stream of states through registers; more tokens run the state-space dual form, as matrix products.
"""

# A kernel is Python in form only; the type checker does not know Triton's launches, loops and tuples.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from wm_gym.ops.triton.launch import ceil_div, matrix_operand, matrix_precision, next_power_of_two

_MAX_PIECE = 64  # tokens per matrix product
_CONV_TILE = 2048  # values that one program filters
_STATE_TILE = 4096  # values of a state that one program holds in the recurrence
_FILLS_A_GPU = 256  # programs
_MANY = 2048  # programs
_PREFETCH = 2  # heads of a group whose states are on their way or at work


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
def _tokens_in_and_out(
    filtered, row, valid, s, has_s, INNER: tl.constexpr, MIXED: tl.constexpr, STATE: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What tokens write to the state (b), read from it (c), and the products of both; no head has its own."""
    place = filtered + row[:, None] * MIXED + INNER + s[None, :]
    mask = valid[:, None] & has_s[None, :]
    b = tl.load(place, mask, 0.0).to(OPERAND)
    c = tl.load(place + STATE, mask, 0.0).to(OPERAND)
    return b, c, tl.dot(c, tl.trans(b), input_precision=PRECISION)


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
    group = tl.program_id(0) // TILES % GROUPS
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
        row = dream_row + _token_rows(index, block, BLOCK_SIZE, ROWS, COLUMNS)
        b, c, products = _tokens_in_and_out(filtered, row, valid, s, has_s, INNER, MIXED, STATE, OPERAND, PRECISION)
    for member in tl.range(0, GROUP, num_stages=PREFETCH):
        head = group * GROUP + member
        place = ssm_state + (sequence * HEADS + head) * (DIM * STATE) + d[:, None] * STATE + s[None, :]
        state = tl.load(place, held, 0.0).to(tl.float32)
        channel = head * DIM + d
        rate = tl.load(a + head).to(tl.float32)
        bias = tl.load(dt_bias + head).to(tl.float32)
        direct = tl.load(skip + head).to(tl.float32)
        for piece in tl.static_range(PIECES):
            token = piece * PIECE + index
            if PIECES > 1:
                row = dream_row + _token_rows(token, block, BLOCK_SIZE, ROWS, COLUMNS)
                b, c, products = _tokens_in_and_out(
                    filtered, row, valid, s, has_s, INNER, MIXED, STATE, OPERAND, PRECISION
                )
            x = tl.load(filtered + row[:, None] * MIXED + channel[None, :], x_mask, 0.0)
            gate = tl.load(projected + row[:, None] * CHANNELS + channel[None, :], x_mask, 0.0).to(tl.float32)
            step = tl.load(projected + row * CHANNELS + INNER + MIXED + head, valid, 0.0).to(tl.float32)
            # A padded token has dt = 0: it neither decays nor feeds the state.
            dt = tl.where(valid, _softplus(step + bias), 0.0)
            decay = tl.cumsum(dt * rate, 0)

            weight = tl.exp(tl.where(causal, decay[:, None] - decay[None, :], float("-inf"))) * dt[None, :]
            y = tl.dot(c, tl.trans(state.to(OPERAND)), input_precision=PRECISION) * tl.exp(decay)[:, None]
            y = tl.dot((products * weight).to(OPERAND), x.to(OPERAND), acc=y, input_precision=PRECISION)
            y += direct * x.to(tl.float32)
            y *= _silu(gate)
            tl.store(out + row[:, None] * INNER + channel[None, :], y.to(out.dtype.element_ty), x_mask)

            if piece * PIECE < COMMITTED or piece + 1 < PIECES:
                kept = token < COMMITTED if piece * PIECE < COMMITTED else valid
                total = tl.sum(tl.where(kept, dt * rate, 0.0), 0)
                share = tl.where(kept, dt * tl.exp(tl.where(kept, total - decay, 0.0)), 0.0)
                fed = (x.to(tl.float32) * share[:, None]).to(OPERAND)
                state = tl.dot(tl.trans(fed), b, acc=tl.exp(total) * state, input_precision=PRECISION)
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
    out = projected.new_empty(batch, frames, rows, columns, inner)
    grid = {"BLOCK_SIZE": block_size, "ROWS": rows, "COLUMNS": columns, "FRAMES": frames}
    filtered = projected.new_empty(batch, frames, rows, columns, mixed)
    committed = num_committed * tokens
    # A tile that is not a whole sequence has more than 3 tokens, so that only the first reads the convolution state.
    token_tile = min(16, next_power_of_two(frames * tokens))
    channel_tile = min(_CONV_TILE // token_tile, next_power_of_two(mixed))
    _conv_kernel[(sequences * ceil_div(frames * tokens, token_tile), ceil_div(mixed, channel_tile))](
        projected, conv_weight, conv_bias, conv_state, filtered, inner, mixed, channels, **grid,
        COMMITTED=committed, TOKEN_TILE=token_tile, CHANNEL_TILE=channel_tile, num_warps=4,
    )  # fmt: skip
    tensors = (projected, filtered, dt_bias, a, skip, ssm_state, out)
    # A matrix product takes no less than 16.
    whole, state_tile = max(16, next_power_of_two(dim)), max(16, next_power_of_two(state_dim))
    sizes = {"HEADS": heads, "DIM": dim, "STATE": state_dim, "STATE_TILE": state_tile, **grid, "COMMITTED": committed}
    if block_size == 1:
        row_tile = max(16, min(whole, _STATE_TILE // state_tile))
        programs = sequences * heads * ceil_div(dim, row_tile)
        _recurrent_kernel[(programs,)](*tensors, **sizes, ROW_TILE=row_tile, num_warps=4)
        return out
    piece, row_tile = _piece(tokens, frames), _row_tile(whole, sequences * heads)
    group = _group(heads, sequences * ceil_div(dim, row_tile))
    padded = max(16, next_power_of_two(piece))
    _chunk_kernel[(sequences * heads // group * ceil_div(dim, row_tile),)](
        *tensors, **sizes, ROW_TILE=row_tile, PIECE=piece, PADDED=padded, GROUP=group, PREFETCH=_PREFETCH,
        OPERAND=matrix_operand(projected.dtype), PRECISION=matrix_precision(projected.dtype),
        num_warps=8 if padded >= 64 else 4,
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


def _group(heads: int, programs_per_head: int) -> int:
    """Heads that one program takes in turn: more where there is work enough to fill the GPU without."""
    return next(
        group
        for group in (8, 4, 2, 1)
        if heads % group == 0 and (group == 1 or programs_per_head * heads >= _MANY * group)
    )
