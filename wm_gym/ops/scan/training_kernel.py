"""The selective scan over the tokens of each block, forward and backward, without reordering tokens.

The state-space dual form (arXiv 2405.21060, section 6) with the chunks of a sequence taken one after the other by the
same program: the state stays in registers, and an input is read once. Long sequences are cut into segments that run
side by side; what each adds to the state is summed up first (`_scan_segments`) and handed on (`_scan_pass_on`).
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# (Triton's types do not describe launches.)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wm_gym.ops.scan.gradients_kernel import scan_backward_bc, scan_backward_x
from wm_gym.ops.scan.step_sizes_kernel import scan_steps_backward_kernel, scan_steps_kernel
from wm_gym.ops.scan.token_order_kernel import token_index

_CHUNK = 64
_STEP_CHUNKS = 16  # chunks whose step sizes a program computes
# Registers are what limits how many programs share a multiprocessor.
_FORWARD_LAUNCH = {"num_warps": 4, "num_stages": 2, "maxnreg": 168}
_X_LAUNCH = {"num_warps": 4, "num_stages": 2}
_BC_LAUNCH = {"num_warps": 4, "num_stages": 2}
_PROGRAMS = 1024  # that keep a GPU busy; fewer sequences than that are cut into segments


@triton.jit
def _decay_between(decays, sources, at, Q: tl.constexpr):
    """Step size of each earlier token times the decay from there to each later one."""
    q = tl.arange(0, Q)
    between = tl.load(decays + at + q)[:, None] - tl.load(sources + at + q)[None, :]
    return tl.exp2(tl.where(q[:, None] >= q[None, :], between, float("-inf")))


@triton.jit
def _scan_segments(
    values, keys, steps, decays, sums, totals,
    length, frames, chunks, total_chunks,
    VALUE_ROW: tl.constexpr, KEY_ROW: tl.constexpr, KEY: tl.constexpr,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """What a segment adds to the state at its end (or, reversed, to the state's gradient at its start)."""
    sequence = tl.program_id(0).to(tl.int64)
    piece, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    group = head // (HEADS // GROUPS)
    first = tl.program_id(1) * chunks
    count = tl.minimum(chunks, total_chunks - first)
    p, n, q = tl.arange(0, P), tl.arange(0, N), tl.arange(0, Q)
    state = tl.zeros((N, P), tl.float32)
    total = 0.0
    for step in range(count):
        chunk = first + (count - 1 - step if REVERSE else step)
        position = chunk * Q + q
        inside = position < length
        token = token_index(piece, position, frames, ROWS, COLUMNS, SIZE)
        at = (sequence * total_chunks + chunk) * Q
        last = tl.load(decays + at + Q - 1)
        cumulative = tl.load(decays + at + q)
        weight = tl.exp2(cumulative) if REVERSE else tl.exp2(last - cumulative) * tl.load(steps + at + q)
        value = tl.load(values + token[:, None] * VALUE_ROW + head * P + p[None, :], mask=inside[:, None], other=0.0)
        key = tl.load(keys + token[:, None] * KEY_ROW + KEY + group * N + n[None, :], mask=inside[:, None], other=0.0)
        key = (key.to(tl.float32) * weight[:, None]).to(value.dtype)
        state = tl.dot(tl.trans(key), value, acc=state * tl.exp2(last), input_precision="tf32")
        total += last
    where = sequence * tl.num_programs(1) + tl.program_id(1)
    tl.store(sums + where * N * P + n[:, None] * P + p[None, :], state)
    tl.store(totals + where, tl.exp2(total))


@triton.jit
def _scan_pass_on(sums, totals, segments, SIZE: tl.constexpr, BLOCK: tl.constexpr, REVERSE: tl.constexpr):
    """Replaces what each segment adds by the state with which it begins (reversed: by the gradient at its end)."""
    sequence = tl.program_id(0).to(tl.int64)
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    state = tl.zeros((BLOCK,), tl.float32)
    for step in range(segments):
        where = sequence * segments + (segments - 1 - step if REVERSE else step)
        added = tl.load(sums + where * SIZE + element)
        tl.store(sums + where * SIZE + element, state)
        state = state * tl.load(totals + where) + added


@triton.jit
def _scan_forward(
    mixed, steps, decays, sources, skip, initial, out, states,
    length, frames, chunks, total_chunks,
    MIXED: tl.constexpr, INNER: tl.constexpr,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr, HAS_INITIAL: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0).to(tl.int64)
    piece, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    group = head // (HEADS // GROUPS)
    first = tl.program_id(1) * chunks
    p, n, q = tl.arange(0, P), tl.arange(0, N), tl.arange(0, Q)
    tile = n[:, None] * P + p[None, :]
    direct = tl.load(skip + head)
    state = tl.zeros((N, P), tl.float32)
    if HAS_INITIAL:
        state = tl.load(initial + (sequence * tl.num_programs(1) + tl.program_id(1)) * N * P + tile)
    for chunk in range(first, tl.minimum(first + chunks, total_chunks)):
        position = chunk * Q + q
        inside = position < length
        token = token_index(piece, position, frames, ROWS, COLUMNS, SIZE)
        row = mixed + token[:, None] * MIXED
        x = tl.load(row + head * P + p[None, :], mask=inside[:, None], other=0.0)
        b = tl.load(row + INNER + group * N + n[None, :], mask=inside[:, None], other=0.0)
        c = tl.load(row + INNER + (GROUPS + group) * N + n[None, :], mask=inside[:, None], other=0.0)
        rounded = state.to(x.dtype)
        tl.store(states + (sequence * total_chunks + chunk) * N * P + tile, rounded)
        at = (sequence * total_chunks + chunk) * Q
        last = tl.load(decays + at + Q - 1)
        scores = tl.dot(c, tl.trans(b), input_precision="tf32") * _decay_between(decays, sources, at, Q)
        y = tl.dot(c, rounded, input_precision="tf32") * tl.exp2(tl.load(decays + at + q))[:, None]
        y = tl.dot(scores.to(x.dtype), x, acc=y, input_precision="tf32") + direct * x.to(tl.float32)
        tl.store(out + token[:, None] * INNER + head * P + p[None, :], y.to(out.dtype.element_ty), mask=inside[:, None])
        to_end = tl.exp2(last - tl.load(decays + at + q)) * tl.load(steps + at + q)
        b = (b.to(tl.float32) * to_end[:, None]).to(x.dtype)
        state = tl.dot(tl.trans(b), x, acc=state * tl.exp2(last), input_precision="tf32")


def _segments(sequences: int, chunks: int) -> tuple[int, int]:
    """Number of segments of a sequence, and chunks in each."""
    wanted = min(chunks, -(-_PROGRAMS // sequences))
    each = -(-chunks // wanted)
    return -(-chunks // each), each


class _Shape:
    """What all kernels of a scan are told about the tensors."""

    def __init__(self, projected: Tensor, mixed: Tensor, heads: int, groups: int, inner: int, block_size: int) -> None:
        batch, frames, rows, columns, channels = mixed.shape
        self.heads, self.groups, self.frames = heads, groups, frames
        self.head_dim, self.state_dim = inner // heads, (channels - inner) // (2 * groups)
        self.sizes = (heads, groups, self.head_dim, self.state_dim, _CHUNK)
        self.grid = (rows, columns, block_size)
        self.num_tokens = batch * frames * rows * columns
        self.length = frames * block_size**2
        self.sequences = batch * rows * columns // block_size**2 * heads
        self.chunks = triton.cdiv(self.length, _CHUNK)
        self.segments, self.segment_chunks = _segments(self.sequences, self.chunks)
        self.step_row = (projected.shape[-1], projected.shape[-1] - heads)
        self.step_grid = (self.sequences, triton.cdiv(self.chunks, _STEP_CHUNKS))

    def step_sizes(self) -> tuple[int, ...]:
        return (*self.step_row, self.heads, _CHUNK, _STEP_CHUNKS, *self.grid)

    def boundary_states(self, values: Tensor, keys: Tensor, key: int, steps: Tensor, reverse: bool) -> Tensor | None:
        """The state before each segment, or the gradient of that after it: ``[sequences, segments, s, d]``, float32."""
        if self.segments == 1:
            return None
        sums = torch.empty(self.sequences, self.segments, self.state_dim, self.head_dim, device=values.device)
        totals = torch.empty(self.sequences, self.segments, device=values.device)
        _scan_segments[(self.sequences, self.segments)](
            values, keys, steps[0], steps[1], sums, totals, self.length, self.frames, self.segment_chunks, self.chunks,
            values.shape[-1], keys.shape[-1], key, *self.sizes, *self.grid, reverse, num_warps=4,
        )  # fmt: skip
        size = self.state_dim * self.head_dim
        block = min(size & -size, 1024)
        _scan_pass_on[(self.sequences, size // block)](sums, totals, self.segments, size, block, reverse)
        return sums


def chunk_scan(
    mixed: Tensor,
    projected: Tensor,
    dt_bias: Tensor,
    log_decay: Tensor,
    skip: Tensor,
    inner: int,
    block_size: int,
    num_groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The scan over every block, from an empty state; contract of :func:`wm_gym.ops.reference.ssd_scan` per block.

    Args:
        mixed: x, B and C side by side, ``[B, T, rows, columns, inner + 2 * g * s]``, contiguous.
        projected: ``[B, T, rows, columns, width]``, contiguous; its last h channels are the step sizes before
            ``softplus(. + dt_bias)``.
        dt_bias, log_decay, skip: ``[h]``, float32; the decay rate is ``-exp(log_decay)``.
        num_groups: g, groups of consecutive heads that share a B and a C.

    Returns:
        Outputs ``[B, T, rows, columns, inner]``; and for the backward pass the states before each chunk, and the step
        sizes and decays of all tokens.
    """
    s = _Shape(projected, mixed, dt_bias.shape[0], num_groups, inner, block_size)
    steps = torch.empty(3, s.sequences, s.chunks * _CHUNK, device=mixed.device)
    scan_steps_kernel[s.step_grid](
        projected, dt_bias, log_decay, *steps, s.length, s.frames, s.chunks, *s.step_sizes(), num_warps=4
    )
    initial = s.boundary_states(mixed, mixed, inner, steps, reverse=False)
    out = mixed.new_empty(*mixed.shape[:-1], inner)
    states = mixed.new_empty(s.sequences, s.chunks, s.state_dim, s.head_dim)
    _scan_forward[(s.sequences, s.segments)](
        mixed, *steps, skip, steps if initial is None else initial, out, states,
        s.length, s.frames, s.segment_chunks, s.chunks,
        mixed.shape[-1], inner, *s.sizes, *s.grid, initial is not None,
        **_FORWARD_LAUNCH,
    )  # fmt: skip
    return out, states, steps


def chunk_scan_backward(
    grad: Tensor,
    mixed: Tensor,
    projected: Tensor,
    dt_bias: Tensor,
    log_decay: Tensor,
    skip: Tensor,
    states: Tensor,
    steps: Tensor,
    block_size: int,
    num_groups: int,
    grad_projected: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Writes the last h channels of ``grad_projected``.

    Returns:
        The gradients of x ``[..., inner]``, of B and C ``[..., 2 * g * s]``, of dt_bias, log_decay and skip.
    """
    inner = grad.shape[-1]
    s = _Shape(projected, mixed, dt_bias.shape[0], num_groups, inner, block_size)
    final = s.boundary_states(grad, mixed, inner + num_groups * s.state_dim, steps, reverse=True)
    grad_x = torch.empty_like(grad)
    grad_steps, grad_decays = torch.empty_like(steps[0]), torch.empty_like(steps[1])
    grad_ends = torch.empty(s.sequences, s.chunks, device=grad.device)
    grad_states = torch.empty_like(states)
    scan_backward_x[(s.sequences, s.segments)](
        grad, mixed, *steps, skip, steps if final is None else final, grad_x, grad_states,
        s.length, s.frames, s.segment_chunks, s.chunks,
        mixed.shape[-1], inner, *s.sizes, *s.grid, final is not None,
        **_X_LAUNCH,
    )  # fmt: skip
    grad_bc = grad.new_empty(*mixed.shape[:-1], mixed.shape[-1] - inner)
    grad_skip = torch.empty(s.sequences // s.heads, s.heads, s.chunks, device=grad.device)
    scan_backward_bc[(s.sequences // s.heads * num_groups, s.chunks)](
        grad, mixed, *steps, states, grad_states, grad_bc, grad_steps, grad_decays, grad_ends, grad_skip,
        s.length, s.frames, s.chunks, mixed.shape[-1], inner, *s.sizes, *s.grid,
        **_BC_LAUNCH,
    )  # fmt: skip
    partial = torch.empty(s.sequences // s.heads, s.heads, s.step_grid[1], 2, device=grad.device)
    scan_steps_backward_kernel[s.step_grid](
        projected, dt_bias, log_decay, steps[0], grad_steps, grad_decays, grad_ends, grad_projected, partial,
        s.length, s.frames, s.chunks, *s.step_sizes(), num_warps=4,
    )  # fmt: skip
    grad_decay, grad_bias = partial.sum((0, 2)).unbind(1)
    return grad_x, grad_bc, grad_bias, grad_decay, grad_skip.sum((0, 2))
