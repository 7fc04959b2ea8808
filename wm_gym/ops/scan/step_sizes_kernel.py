"""Step sizes and decays of the selective scan, in the scan's own order, and their gradients."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# (Triton's types do not describe launches.)

from __future__ import annotations

import triton
import triton.language as tl

from wm_gym.ops.scan.token_order_kernel import token_index


@triton.jit
def _softplus(x):
    return tl.where(x > 20, x, tl.log(1 + tl.exp(tl.minimum(x, 20.0))))


@triton.jit
def scan_steps_kernel(
    projected, dt_bias, log_decay, steps, decays, sources,
    length, frames, chunks,
    ROW: tl.constexpr, DT: tl.constexpr, HEADS: tl.constexpr, Q: tl.constexpr, CHUNKS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Step sizes; the logarithm to base 2 of the decay from the chunk's start up to each token; that minus log2(step).

    The step is 0 where there is no token, which then neither decays nor feeds the state.
    """
    head = tl.program_id(0) % HEADS
    chunk = tl.program_id(1) * CHUNKS + tl.arange(0, CHUNKS)[:, None]
    position = chunk * Q + tl.arange(0, Q)[None, :]
    token = token_index(tl.program_id(0) // HEADS, position, frames, ROWS, COLUMNS, SIZE)
    raw = tl.load(projected + token * ROW + DT + head, mask=position < length, other=0.0).to(tl.float32)
    dt = tl.where(position < length, _softplus(raw + tl.load(dt_bias + head)), 0.0)
    rate = -tl.exp(tl.load(log_decay + head)) * 1.4426950408889634
    at = tl.program_id(0).to(tl.int64) * chunks * Q + position
    tl.store(steps + at, dt, mask=chunk < chunks)
    decay = tl.cumsum(dt * rate, 1)
    tl.store(decays + at, decay, mask=chunk < chunks)
    tl.store(sources + at, decay - tl.log2(dt), mask=chunk < chunks)


@triton.jit
def scan_steps_backward_kernel(
    projected, dt_bias, log_decay, steps, grad_steps, grad_decays, grad_ends, grad_projected, partial,
    length, frames, chunks,
    ROW: tl.constexpr, DT: tl.constexpr, HEADS: tl.constexpr, Q: tl.constexpr, CHUNKS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """From gradients of the natural logarithm of decays, and of that at each chunk's end, to those before softplus."""
    head = tl.program_id(0) % HEADS
    chunk = tl.program_id(1) * CHUNKS + tl.arange(0, CHUNKS)[:, None]
    position = chunk * Q + tl.arange(0, Q)[None, :]
    inside = position < length
    token = token_index(tl.program_id(0) // HEADS, position, frames, ROWS, COLUMNS, SIZE)
    sequence = tl.program_id(0).to(tl.int64)
    at = sequence * chunks * Q + position
    dt = tl.load(steps + at, mask=inside, other=0.0)
    ddt = tl.load(grad_steps + at, mask=inside, other=0.0)
    decay = tl.load(grad_decays + at, mask=inside, other=0.0)
    end = tl.load(grad_ends + sequence * chunks + chunk, mask=chunk < chunks, other=0.0)
    # The logarithm is summed up along the chunk, so its gradient is summed up from the chunk's end.
    reverse = tl.sum(decay, 1)[:, None] - tl.cumsum(decay, 1) + decay + end
    a = -tl.exp(tl.load(log_decay + head))
    raw = tl.load(projected + token * ROW + DT + head, mask=inside, other=0.0).to(tl.float32)
    grad = tl.where(inside, (ddt + a * reverse) * tl.sigmoid(raw + tl.load(dt_bias + head)), 0.0)
    tl.store(grad_projected + token * ROW + DT + head, grad.to(grad_projected.dtype.element_ty), mask=inside)
    row = partial + (sequence * tl.num_programs(1) + tl.program_id(1)) * 2
    tl.store(row, a * tl.sum(reverse * dt))
    tl.store(row + 1, tl.sum(grad))
