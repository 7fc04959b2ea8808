"""The gradients of the selective scan: the state's and x's along the tokens, then those of all else chunk by chunk.

With W the scores C B^T times the decay between tokens and the earlier one's step, and S the state before the chunk:
y = W x + from_start * C S + skip x, and the next state is decay S + (to_end * step * B)^T x.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# (Triton's types do not describe launches.)

from __future__ import annotations

import triton
import triton.language as tl

from wm_gym.ops.scan.token_order_kernel import token_index


@triton.jit
def scan_backward_x(
    grad, mixed, steps, decays, sources, skip, final_grad, grad_x, grad_states,
    length, frames, chunks, total_chunks,
    MIXED: tl.constexpr, INNER: tl.constexpr,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr, HAS_FINAL: tl.constexpr,
):  # fmt: skip
    """Chunks from the last to the first: the gradient of the state after each of them, and of x."""
    sequence = tl.program_id(0).to(tl.int64)
    piece, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    group = head // (HEADS // GROUPS)
    first = tl.program_id(1) * chunks
    count = tl.minimum(chunks, total_chunks - first)
    p, n, q = tl.arange(0, P), tl.arange(0, N), tl.arange(0, Q)
    tile = n[:, None] * P + p[None, :]
    direct = tl.load(skip + head)
    dstate = tl.zeros((N, P), tl.float32)
    if HAS_FINAL:
        dstate = tl.load(final_grad + (sequence * tl.num_programs(1) + tl.program_id(1)) * N * P + tile)
    for step in range(count):
        chunk = first + count - 1 - step
        position = chunk * Q + q
        rows = (position < length)[:, None]
        token = token_index(piece, position, frames, ROWS, COLUMNS, SIZE)
        row = mixed + token[:, None] * MIXED
        b = tl.load(row + INNER + group * N + n[None, :], mask=rows, other=0.0)
        c = tl.load(row + INNER + (GROUPS + group) * N + n[None, :], mask=rows, other=0.0)
        dy = tl.load(grad + token[:, None] * INNER + head * P + p[None, :], mask=rows, other=0.0)
        rounded = dstate.to(dy.dtype)
        tl.store(grad_states + (sequence * total_chunks + chunk) * N * P + tile, rounded)
        at = (sequence * total_chunks + chunk) * Q
        last = tl.load(decays + at + Q - 1)
        # Earlier tokens by later ones.
        between = tl.load(decays + at + q)[None, :] - tl.load(sources + at + q)[:, None]
        decay = tl.exp2(tl.where(q[None, :] >= q[:, None], between, float("-inf")))
        scores = tl.dot(b, tl.trans(c), input_precision="tf32") * decay
        to_end = tl.exp2(last - tl.load(decays + at + q)) * tl.load(steps + at + q)
        dx = tl.dot(b, rounded, input_precision="tf32") * to_end[:, None] + direct * dy.to(tl.float32)
        dx = tl.dot(scores.to(dy.dtype), dy, acc=dx, input_precision="tf32")
        tl.store(grad_x + token[:, None] * INNER + head * P + p[None, :], dx.to(grad_x.dtype.element_ty), mask=rows)
        c = (c.to(tl.float32) * tl.exp2(tl.load(decays + at + q))[:, None]).to(dy.dtype)
        dstate = tl.dot(tl.trans(c), dy, acc=dstate * tl.exp2(last), input_precision="tf32")


@triton.jit
def scan_backward_bc(
    grad, mixed, steps, decays, sources, states, grad_states,
    grad_bc, grad_steps, grad_decays, grad_ends, grad_skip,
    length, frames, total_chunks,
    MIXED: tl.constexpr, INNER: tl.constexpr,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """One chunk, head by head of a group: the gradients of its B and C, and of steps, decays and skip."""
    piece, group, chunk = tl.program_id(0) // GROUPS, tl.program_id(0) % GROUPS, tl.program_id(1)
    p, n, q = tl.arange(0, P), tl.arange(0, N), tl.arange(0, Q)
    tile = n[:, None] * P + p[None, :]
    position = chunk * Q + q
    rows = (position < length)[:, None]
    token = token_index(piece, position, frames, ROWS, COLUMNS, SIZE)
    row = mixed + token[:, None] * MIXED
    b = tl.load(row + INNER + group * N + n[None, :], mask=rows, other=0.0)
    c = tl.load(row + INNER + (GROUPS + group) * N + n[None, :], mask=rows, other=0.0)
    cb = tl.dot(c, tl.trans(b), input_precision="tf32")
    dcb = tl.zeros((Q, Q), tl.float32)
    db = tl.zeros((Q, N), tl.float32)
    dc = tl.zeros((Q, N), tl.float32)
    for member in range(HEADS // GROUPS):
        head = group * (HEADS // GROUPS) + member
        sequence = (piece * HEADS + head).to(tl.int64)
        x = tl.load(row + head * P + p[None, :], mask=rows, other=0.0)
        dy = tl.load(grad + token[:, None] * INNER + head * P + p[None, :], mask=rows, other=0.0)
        state = tl.load(states + (sequence * total_chunks + chunk) * N * P + tile)
        dstate = tl.load(grad_states + (sequence * total_chunks + chunk) * N * P + tile)
        at = (sequence * total_chunks + chunk) * Q
        last = tl.load(decays + at + Q - 1)
        cumulative = tl.load(decays + at + q)
        dt = tl.load(steps + at + q)

        # Through the scores: dW = dy x^T.
        product = tl.dot(dy, tl.trans(x), input_precision="tf32")
        tl.store(grad_skip + sequence * total_chunks + chunk, tl.sum(tl.where(q[:, None] == q[None, :], product, 0.0)))
        between = cumulative[:, None] - tl.load(sources + at + q)[None, :]
        product *= tl.exp2(tl.where(q[:, None] >= q[None, :], between, float("-inf")))
        dcb += product
        product *= cb
        through_later = tl.sum(product, 1)
        through_earlier = tl.sum(product, 0)

        # Through the state after the chunk, and from that before it.
        part = tl.dot(x, tl.trans(dstate), input_precision="tf32") * (tl.exp2(last - cumulative) * dt)[:, None]
        db += part
        overlap = tl.sum(part * b.to(tl.float32), 1)
        through_earlier += overlap
        part = tl.dot(dy, tl.trans(state), input_precision="tf32") * tl.exp2(cumulative)[:, None]
        dc += part
        through_later += tl.sum(part * c.to(tl.float32), 1)
        end = tl.sum(overlap, 0) + tl.exp2(last) * tl.sum(dstate.to(tl.float32) * state.to(tl.float32))
        tl.store(grad_ends + sequence * total_chunks + chunk, end)
        tl.store(grad_steps + at + q, tl.where(dt > 0, through_earlier / dt, 0.0))
        tl.store(grad_decays + at + q, through_later - through_earlier)
    dcb = dcb.to(b.dtype)
    db = tl.dot(tl.trans(dcb), c, acc=db, input_precision="tf32")
    dc = tl.dot(dcb, b, acc=dc, input_precision="tf32")
    target = grad_bc + token[:, None] * (2 * GROUPS * N) + group * N + n[None, :]
    tl.store(target, db.to(grad_bc.dtype.element_ty), mask=rows)
    tl.store(target + GROUPS * N, dc.to(grad_bc.dtype.element_ty), mask=rows)
