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

from wm_gym.ops.launch import ceil_div, matrix_operand, matrix_precision, next_power_of_two
from wm_gym.ops.scan.step_conv_kernel import LOG2_OF_E, scan_conv, silu, token_rows

_MAX_PIECE = 64  # tokens per matrix product
_FILLS_A_GPU = 256  # programs
_MANY = 512  # states: a program for each of them fills a GPU
_ONE_HEAD: dict[str, Any] = {"MEMBERS": 1, "PREFETCH": 1, "maxnreg": None}
# Of many states, by the tokens of a piece; measured on an H200.
_LAUNCHES: dict[int, dict[str, Any]] = {
    16: {"ROW_TILE": 16, "MEMBERS": 8, "PREFETCH": 3, "num_warps": 1, "maxnreg": None},
    32: {"ROW_TILE": 16, "MEMBERS": 8, "PREFETCH": 3, "num_warps": 1, "maxnreg": None},
    64: {"ROW_TILE": 64, "MEMBERS": 1, "PREFETCH": 1, "num_warps": 4, "maxnreg": 168},
}


@triton.jit
def _softplus(x):
    """log(1 + exp(x)) with a small relative error also where exp(x) is small."""
    e = tl.exp(tl.minimum(x, 20.0))
    u = 1.0 + e
    return tl.where(x > 20.0, x, tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0))))


@triton.jit
def _recurrent_kernel(
    projected, filtered, dt_bias, a, skip, ssm_state, out,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, DIM: tl.constexpr, STATE: tl.constexpr,
    ROW_TILE: tl.constexpr, STATE_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FRAMES: tl.constexpr, COMMITTED: tl.constexpr,
):  # fmt: skip
    """The recurrence of blocks of one token, frame by frame, on [ROW_TILE, STATE] of a state; formula: the twin's."""
    INNER: tl.constexpr = HEADS * DIM
    MIXED: tl.constexpr = INNER + 2 * GROUPS * STATE
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
    rate = tl.load(a + head).to(tl.float32) * LOG2_OF_E
    bias = tl.load(dt_bias + head).to(tl.float32)
    direct = tl.load(skip + head).to(tl.float32)
    # Both frames are loaded before anything is stored, so that they travel together with the state.
    row = dream_row + block
    dt, gate, x, b, c = _token_of_head(
        projected, filtered, row, head, channel, has_d, s, has_s, bias, INNER, MIXED, CHANNELS, HEADS, GROUPS, STATE
    )
    if FRAMES > 1:
        next_row = row + ROWS * COLUMNS
        next_dt, next_gate, next_x, next_b, next_c = _token_of_head(
            projected,
            filtered,
            next_row,
            head,
            channel,
            has_d,
            s,
            has_s,
            bias,
            INNER,
            MIXED,
            CHANNELS,
            HEADS,
            GROUPS,
            STATE,
        )
    state = tl.exp2(dt * rate) * state + (dt * x)[:, None] * b[None, :]
    y = tl.sum(state * c[None, :], axis=1) + direct * x
    if COMMITTED > 0:
        tl.store(place, state.to(ssm_state.dtype.element_ty), held)
    tl.store(out + row * INNER + channel, (y * silu(gate)).to(out.dtype.element_ty), has_d)
    if FRAMES > 1:
        state = tl.exp2(next_dt * rate) * state + (next_dt * next_x)[:, None] * next_b[None, :]
        y = tl.sum(state * next_c[None, :], axis=1) + direct * next_x
        tl.store(out + next_row * INNER + channel, (y * silu(next_gate)).to(out.dtype.element_ty), has_d)


@triton.jit
def _token_of_head(
    projected, filtered, row, head, channel, has_d, s, has_s, bias,
    INNER: tl.constexpr, MIXED: tl.constexpr, CHANNELS: tl.constexpr,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    """A token's step dt, gate and x for some rows of a head, and b and c."""
    step = tl.load(projected + row * CHANNELS + INNER + MIXED + head).to(tl.float32)
    gate = tl.load(projected + row * CHANNELS + channel, has_d, 0.0).to(tl.float32)
    x = tl.load(filtered + row * MIXED + channel, has_d, 0.0).to(tl.float32)
    place = filtered + row * MIXED + INNER + head // (HEADS // GROUPS) * STATE + s
    b = tl.load(place, has_s, 0.0).to(tl.float32)
    c = tl.load(place + GROUPS * STATE, has_s, 0.0).to(tl.float32)
    return _softplus(step + bias), gate, x, b, c


@triton.jit
def _piece_of_tokens(
    projected, filtered, dt_bias, a, row, valid, head, s, has_s,
    INNER: tl.constexpr, MIXED: tl.constexpr, CHANNELS: tl.constexpr,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, STATE: tl.constexpr, MEMBERS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What heads of one group share of some tokens, and the small part that each has of its own.

    Returns what they write to a state (b), read from it (c), and the products of both; of MEMBERS heads from ``head``
    on the steps dt and the logarithms to base 2 of the decay at each token and from the first on,
    ``[tokens, MEMBERS]`` or, of one head, ``[tokens]``.
    """
    place = filtered + row[:, None] * MIXED + INNER + head // (HEADS // GROUPS) * STATE + s[None, :]
    mask = valid[:, None] & has_s[None, :]
    b = tl.load(place, mask, 0.0).to(OPERAND)
    c = tl.load(place + GROUPS * STATE, mask, 0.0).to(OPERAND)
    # Triton 3.6 cannot sum along a single column.
    if MEMBERS == 1:
        step = tl.load(projected + row * CHANNELS + INNER + MIXED + head, valid, 0.0).to(tl.float32)
        bias, rate = tl.load(dt_bias + head).to(tl.float32), tl.load(a + head).to(tl.float32)
        # A padded token has dt = 0: it neither decays nor feeds the state.
        dt = tl.where(valid, _softplus(step + bias), 0.0)
    else:
        own = head + tl.arange(0, MEMBERS)[None, :]
        step = tl.load(projected + row[:, None] * CHANNELS + INNER + MIXED + own, valid[:, None], 0.0).to(tl.float32)
        bias, rate = tl.load(dt_bias + own).to(tl.float32), tl.load(a + own).to(tl.float32)
        dt = tl.where(valid[:, None], _softplus(step + bias), 0.0)
    log_decay = dt * (rate * LOG2_OF_E)
    return b, c, tl.dot(c, tl.trans(b), input_precision=PRECISION), dt, log_decay, tl.cumsum(log_decay, 0)


@triton.jit
def _of_member(values, member, MEMBERS: tl.constexpr):
    """A column of ``[tokens, MEMBERS]``, or all of ``[tokens]``."""
    if MEMBERS > 1:
        values = tl.sum(tl.where(tl.arange(0, MEMBERS)[None, :] == member, values, 0.0), 1)
    return values


@triton.jit
def _chunk_kernel(
    projected, filtered, dt_bias, a, skip, ssm_state, out,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, DIM: tl.constexpr, STATE: tl.constexpr,
    ROW_TILE: tl.constexpr, STATE_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FRAMES: tl.constexpr, COMMITTED: tl.constexpr,
    PIECE: tl.constexpr, PADDED: tl.constexpr, MEMBERS: tl.constexpr, PREFETCH: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The dual form (arXiv 2405.21060, section 6), PIECE tokens at a time, for [ROW_TILE, STATE] of MEMBERS heads.

    The members are of one group. States are kept and summed in float32; what multiplies matrices is rounded to OPERAND.
    """
    INNER: tl.constexpr = HEADS * DIM
    MIXED: tl.constexpr = INNER + 2 * GROUPS * STATE
    CHANNELS: tl.constexpr = INNER + MIXED + HEADS
    BLOCKS: tl.constexpr = (ROWS // BLOCK_SIZE) * (COLUMNS // BLOCK_SIZE)
    PIECES: tl.constexpr = FRAMES * BLOCK_SIZE * BLOCK_SIZE // PIECE
    TILES: tl.constexpr = (DIM + ROW_TILE - 1) // ROW_TILE
    SETS: tl.constexpr = HEADS // MEMBERS
    tile = tl.program_id(0) % TILES
    first_head = tl.program_id(0) // TILES % SETS * MEMBERS
    sequence = (tl.program_id(0) // (TILES * SETS)).to(tl.int64)
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
    if MEMBERS > 1:
        tl.static_assert(PIECES == 1, "heads share a single piece")
        tl.static_assert(HEADS // GROUPS % MEMBERS == 0, "heads of several groups share nothing")
        row = dream_row + token_rows(index, block, BLOCK_SIZE, ROWS, COLUMNS)
        b, c, products, all_dt, all_log_decay, all_decay = _piece_of_tokens(
            projected, filtered, dt_bias, a, row, valid, first_head, s, has_s,
            INNER, MIXED, CHANNELS, HEADS, GROUPS, STATE, MEMBERS, OPERAND, PRECISION,
        )  # fmt: skip
    for member in tl.range(0, MEMBERS, num_stages=PREFETCH):
        head = first_head + member
        place = ssm_state + (sequence * HEADS + head) * (DIM * STATE) + d[:, None] * STATE + s[None, :]
        state = tl.load(place, held, 0.0).to(tl.float32)
        channel = head * DIM + d
        direct = tl.load(skip + head).to(tl.float32)
        for piece in tl.static_range(PIECES):
            token = piece * PIECE + index
            if MEMBERS == 1:
                row = dream_row + token_rows(token, block, BLOCK_SIZE, ROWS, COLUMNS)
            x = tl.load(filtered + row[:, None] * MIXED + channel[None, :], x_mask, 0.0)
            gate = tl.load(projected + row[:, None] * CHANNELS + channel[None, :], x_mask, 0.0).to(tl.float32)
            if MEMBERS == 1:  # after all loads have been issued, for it waits
                b, c, products, all_dt, all_log_decay, all_decay = _piece_of_tokens(
                    projected, filtered, dt_bias, a, row, valid, head, s, has_s,
                    INNER, MIXED, CHANNELS, HEADS, GROUPS, STATE, MEMBERS, OPERAND, PRECISION,
                )  # fmt: skip
            dt, decay = _of_member(all_dt, member, MEMBERS), _of_member(all_decay, member, MEMBERS)

            weight = tl.exp2(tl.where(causal, decay[:, None] - decay[None, :], float("-inf"))) * dt[None, :]
            y = tl.dot(c, tl.trans(state.to(OPERAND)), input_precision=PRECISION) * tl.exp2(decay)[:, None]
            y = tl.dot((products * weight).to(OPERAND), x.to(OPERAND), acc=y, input_precision=PRECISION)
            y += direct * x.to(tl.float32)
            y *= silu(gate)
            tl.store(out + row[:, None] * INNER + channel[None, :], y.to(out.dtype.element_ty), x_mask)

            if piece * PIECE < COMMITTED or piece + 1 < PIECES:
                kept = token < COMMITTED if piece * PIECE < COMMITTED else valid
                total = tl.sum(tl.where(kept, _of_member(all_log_decay, member, MEMBERS), 0.0), 0)
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
    batch, frames, rows, columns, _channels = projected.shape
    blocks, heads, dim, state_dim = ssm_state.shape[1:]
    if not (ssm_state.is_contiguous() and conv_state.is_contiguous()):
        raise ValueError("ssm_state and conv_state are changed in place and must be contiguous; pass them so.")
    inner, mixed, tokens = heads * dim, conv_weight.shape[1], block_size**2
    groups = (mixed - inner) // (2 * state_dim)
    sequences = batch * blocks
    projected = projected.contiguous()
    dt_bias, a, skip = dt_bias.contiguous(), a.contiguous(), skip.contiguous()
    grid = {"BLOCK_SIZE": block_size, "ROWS": rows, "COLUMNS": columns, "FRAMES": frames}
    grid["COMMITTED"] = num_committed * tokens

    filtered = scan_conv(projected, conv_weight, conv_bias, conv_state, inner, mixed, grid)
    out = projected.new_empty(batch, frames, rows, columns, inner)
    tensors = (projected, filtered, dt_bias, a, skip, ssm_state, out)
    sizes = {"HEADS": heads, "GROUPS": groups, "DIM": dim, "STATE": state_dim, "STATE_TILE": _tile(state_dim), **grid}
    if block_size == 1:
        _recurrent_kernel[(sequences * heads * ceil_div(dim, 16),)](*tensors, **sizes, ROW_TILE=16, num_warps=1)
        return out
    piece = _piece(tokens, frames)
    launch = _chunk_launch(piece, frames * tokens // piece, _tile(dim), heads, groups, sequences)
    programs = sequences * heads // launch["MEMBERS"] * ceil_div(dim, launch["ROW_TILE"])
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


def _chunk_launch(piece: int, num_pieces: int, dim: int, heads: int, groups: int, sequences: int) -> dict[str, Any]:
    """Tiles of the dual form, as measured on an H200, for pieces of so many tokens.

    Triton 3.6 miscompiles 64 tokens by fewer than 64 rows in 4 warps for it; 2 or 8 are right.
    """
    states, padded = sequences * heads, _tile(piece)
    if states < _MANY:
        # Fewer rows per program, so that more of the GPU works.
        row_tile = dim
        while row_tile > 16 and states * (dim // row_tile) < _FILLS_A_GPU:
            row_tile //= 2
        return _ONE_HEAD | {"ROW_TILE": row_tile, "num_warps": 8 if padded >= 64 else 4}
    if padded == 64 and dim < 64:
        return _ONE_HEAD | {"ROW_TILE": dim, "num_warps": 8}
    launch = _LAUNCHES[padded]
    members = launch["MEMBERS"]
    while members > 1 and (num_pieces > 1 or heads // groups % members or states < members * _MANY):
        members //= 2
    return launch | {"ROW_TILE": min(dim, launch["ROW_TILE"]), "MEMBERS": members}
