"""Frame-local attention for training: normalised, rotated queries and keys, softmax over a window of frames, backward.

A query sees whole frames, so nothing is masked: the keys of a program are one run of tokens.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# (Triton's types do not describe launches.)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

EPS = 1e-6
_TILE = 64  # tokens of a query or key tile; frames with fewer use their own size
_ROTATED_ROWS = 64
_FORWARD_LAUNCH = {"num_warps": 4, "num_stages": 3}
_QUERY_LAUNCH = {"num_warps": 4, "num_stages": 3}
_KEY_LAUNCH = {"num_warps": 4, "num_stages": 3}


@triton.jit
def _rotate_forward(
    qkv, query_norm, key_norm, cos, sin, out, num_rows, positions,
    HEADS: tl.constexpr, HALF: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(1)  # 0: queries, 1: keys
    row = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    column = tl.arange(0, HALF)
    mask = (row < num_rows)[:, None] & (column < HALF)[None, :]
    token, head = row // HEADS, row % HEADS
    source = qkv + ((token * 3 + which) * HEADS + head)[:, None] * (2 * HALF) + column[None, :]
    first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=mask, other=0.0).to(tl.float32)
    weight = query_norm if which == 0 else key_norm
    scale = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / (2 * HALF) + EPS)[:, None]
    first = first * scale * tl.load(weight + column)[None, :]
    second = second * scale * tl.load(weight + HALF + column)[None, :]
    angle = (token % positions)[:, None] * HALF + column[None, :]
    c, s = tl.load(cos + angle), tl.load(sin + angle)
    target = out + ((token * 2 + which) * HEADS + head)[:, None] * (2 * HALF) + column[None, :]
    tl.store(target, (first * c - second * s).to(out.dtype.element_ty), mask=mask)
    tl.store(target + HALF, (first * s + second * c).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _rotate_backward(
    grad, qkv, query_norm, key_norm, cos, sin, grad_qkv, partial, num_rows, positions,
    HEADS: tl.constexpr, HALF: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(1)
    column = tl.arange(0, HALF)
    weight = query_norm if which == 0 else key_norm
    w1, w2 = tl.load(weight + column)[None, :], tl.load(weight + HALF + column)[None, :]
    dw1 = tl.zeros((BLOCK, HALF), tl.float32)
    dw2 = tl.zeros((BLOCK, HALF), tl.float32)
    for step in range(STEPS):
        row = ((tl.program_id(0) * STEPS + step) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
        mask = (row < num_rows)[:, None] & (column < HALF)[None, :]
        token, head = row // HEADS, row % HEADS
        at = ((token * 3 + which) * HEADS + head)[:, None] * (2 * HALF) + column[None, :]
        first = tl.load(qkv + at, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(qkv + at + HALF, mask=mask, other=0.0).to(tl.float32)
        scale = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / (2 * HALF) + EPS)[:, None]
        first, second = first * scale, second * scale
        source = grad + ((token * 2 + which) * HEADS + head)[:, None] * (2 * HALF) + column[None, :]
        g1 = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        g2 = tl.load(source + HALF, mask=mask, other=0.0).to(tl.float32)
        angle = (token % positions)[:, None] * HALF + column[None, :]
        c, s = tl.load(cos + angle), tl.load(sin + angle)
        d1, d2 = g1 * c + g2 * s, g2 * c - g1 * s
        dw1 += d1 * first
        dw2 += d2 * second
        d1, d2 = d1 * w1, d2 * w2
        overlap = ((tl.sum(d1 * first, 1) + tl.sum(d2 * second, 1)) / (2 * HALF))[:, None]
        tl.store(grad_qkv + at, (scale * (d1 - first * overlap)).to(grad_qkv.dtype.element_ty), mask=mask)
        tl.store(grad_qkv + at + HALF, (scale * (d2 - second * overlap)).to(grad_qkv.dtype.element_ty), mask=mask)
    target = partial + (tl.program_id(0) * 2 + which) * (2 * HALF) + column
    tl.store(target, tl.sum(dw1, 0))
    tl.store(target + HALF, tl.sum(dw2, 0))


@triton.jit
def _attention_forward(
    rotated, qkv, out, log_sums, frames, window, tokens, scale,
    HEADS: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Scores are kept in units of log 2; ``scale`` includes the factor."""
    head = tl.program_id(0) % HEADS
    tile = tl.program_id(0) // HEADS
    frame = tile * TILE // tokens  # counted over the batch
    first_frame = frame - tl.minimum(frame % frames, window)
    d, t = tl.arange(0, D), tl.arange(0, TILE)
    query_token = (tile * TILE + t).to(tl.int64)
    q = tl.load(rotated + (query_token * 2 * HEADS + head)[:, None] * D + d[None, :])
    top = tl.full((TILE,), float("-inf"), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    y = tl.zeros((TILE, D), tl.float32)
    for start in range(first_frame * tokens, (frame + 1) * tokens, TILE):
        token = (start + t).to(tl.int64)
        k = tl.load(rotated + ((token * 2 + 1) * HEADS + head)[:, None] * D + d[None, :])
        v = tl.load(qkv + ((token * 3 + 2) * HEADS + head)[:, None] * D + d[None, :])
        scores = tl.dot(q, tl.trans(k), input_precision="tf32") * scale
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weights, 1)
        y = tl.dot(weights.to(v.dtype), v, acc=y * shrink[:, None], input_precision="tf32")
        top = new_top
    target = out + (query_token * HEADS + head)[:, None] * D + d[None, :]
    tl.store(target, (y / total[:, None]).to(out.dtype.element_ty))
    tl.store(log_sums + query_token * HEADS + head, top + tl.log2(total))


@triton.jit
def _attention_backward_query(
    grad, rotated, qkv, out, log_sums, deltas, grad_rotated, frames, window, tokens, scale, grad_scale,
    HEADS: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % HEADS
    tile = tl.program_id(0) // HEADS
    frame = tile * TILE // tokens
    first_frame = frame - tl.minimum(frame % frames, window)
    d, t = tl.arange(0, D), tl.arange(0, TILE)
    query_token = (tile * TILE + t).to(tl.int64)
    at = (query_token * HEADS + head)[:, None] * D + d[None, :]
    q = tl.load(rotated + (query_token * 2 * HEADS + head)[:, None] * D + d[None, :])
    dy = tl.load(grad + at)
    delta = tl.sum(dy.to(tl.float32) * tl.load(out + at).to(tl.float32), 1)
    tl.store(deltas + query_token * HEADS + head, delta)
    log_sum = tl.load(log_sums + query_token * HEADS + head)
    dq = tl.zeros((TILE, D), tl.float32)
    for start in range(first_frame * tokens, (frame + 1) * tokens, TILE):
        token = (start + t).to(tl.int64)
        k = tl.load(rotated + ((token * 2 + 1) * HEADS + head)[:, None] * D + d[None, :])
        v = tl.load(qkv + ((token * 3 + 2) * HEADS + head)[:, None] * D + d[None, :])
        scores = tl.dot(q, tl.trans(k), input_precision="tf32") * scale
        weights = tl.exp2(scores - log_sum[:, None])
        dweights = tl.dot(dy, tl.trans(v), input_precision="tf32")
        dscores = (weights * (dweights - delta[:, None])).to(k.dtype)
        dq = tl.dot(dscores, k, acc=dq, input_precision="tf32")
    target = grad_rotated + (query_token * 2 * HEADS + head)[:, None] * D + d[None, :]
    tl.store(target, (dq * grad_scale).to(grad_rotated.dtype.element_ty))


@triton.jit
def _attention_backward_key(
    grad, rotated, qkv, log_sums, deltas, grad_rotated, grad_qkv, frames, window, tokens, scale, grad_scale,
    HEADS: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % HEADS
    tile = tl.program_id(0) // HEADS
    frame = tile * TILE // tokens
    last_frame = frame + tl.minimum(frames - 1 - frame % frames, window)
    d, t = tl.arange(0, D), tl.arange(0, TILE)
    key_token = (tile * TILE + t).to(tl.int64)
    k = tl.load(rotated + ((key_token * 2 + 1) * HEADS + head)[:, None] * D + d[None, :])
    v = tl.load(qkv + ((key_token * 3 + 2) * HEADS + head)[:, None] * D + d[None, :])
    dk = tl.zeros((TILE, D), tl.float32)
    dv = tl.zeros((TILE, D), tl.float32)
    for start in range(frame * tokens, (last_frame + 1) * tokens, TILE):
        token = (start + t).to(tl.int64)
        q = tl.load(rotated + (token * 2 * HEADS + head)[:, None] * D + d[None, :])
        dy = tl.load(grad + (token * HEADS + head)[:, None] * D + d[None, :])
        log_sum = tl.load(log_sums + token * HEADS + head)
        delta = tl.load(deltas + token * HEADS + head)
        scores = tl.dot(k, tl.trans(q), input_precision="tf32") * scale  # keys by queries
        weights = tl.exp2(scores - log_sum[None, :])
        dv = tl.dot(weights.to(dy.dtype), dy, acc=dv, input_precision="tf32")
        dweights = tl.dot(v, tl.trans(dy), input_precision="tf32")
        dscores = (weights * (dweights - delta[None, :])).to(q.dtype)
        dk = tl.dot(dscores, q, acc=dk, input_precision="tf32")
    target = grad_rotated + ((key_token * 2 + 1) * HEADS + head)[:, None] * D + d[None, :]
    tl.store(target, (dk * grad_scale).to(grad_rotated.dtype.element_ty))
    target = grad_qkv + ((key_token * 3 + 2) * HEADS + head)[:, None] * D + d[None, :]
    tl.store(target, dv.to(grad_qkv.dtype.element_ty))


_LOG2_E = 1.4426950408889634
_STEPS = 8  # of a backward rotation program, which sums the gradients of the norms' weights


def _tile(tokens: int) -> int:
    return min(tokens & -tokens, _TILE)


def frame_attention(
    qkv: Tensor, query_norm: Tensor, key_norm: Tensor, cos: Tensor, sin: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of every token to its own frame and the ``window`` frames before it.

    Args:
        qkv: ``[B, T, N, 3, h, d]``, contiguous.
        query_norm, key_norm: weights of the RMS norms, ``[d]``, float32.
        cos, sin: rotation angles, ``[T, N, 1, d / 2]``, float32.

    Returns:
        Outputs ``[B, T, N, h, d]``; rotated queries and keys and the logarithms of the softmax sums, for the backward.
    """
    batch, frames, tokens, _, heads, dim = qkv.shape
    num_tokens = batch * frames * tokens
    rotated = qkv.new_empty(batch, frames, tokens, 2, heads, dim)
    rows = num_tokens * heads
    _rotate_forward[(triton.cdiv(rows, _ROTATED_ROWS), 2)](
        qkv, query_norm, key_norm, cos, sin, rotated, rows, frames * tokens,
        heads, dim // 2, EPS, _ROTATED_ROWS, num_warps=4,
    )  # fmt: skip
    out = qkv.new_empty(batch, frames, tokens, heads, dim)
    log_sums = torch.empty(batch, frames, tokens, heads, device=qkv.device)
    tile = _tile(tokens)
    _attention_forward[(num_tokens // tile * heads,)](
        rotated, qkv, out, log_sums, frames, window, tokens, _LOG2_E * dim**-0.5, heads, dim, tile, **_FORWARD_LAUNCH
    )
    return out, rotated, log_sums


def frame_attention_backward(
    grad: Tensor,
    qkv: Tensor,
    query_norm: Tensor,
    key_norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    window: int,
    out: Tensor,
    rotated: Tensor,
    log_sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv and of the two norms' weights; ``grad`` is contiguous."""
    batch, frames, tokens, _, heads, dim = qkv.shape
    num_tokens = batch * frames * tokens
    grad_rotated, grad_qkv, deltas = torch.empty_like(rotated), torch.empty_like(qkv), torch.empty_like(log_sums)
    tile = _tile(tokens)
    grid, scale = (num_tokens // tile * heads,), dim**-0.5
    sizes = (frames, window, tokens, _LOG2_E * scale, scale, heads, dim, tile)
    _attention_backward_query[grid](grad, rotated, qkv, out, log_sums, deltas, grad_rotated, *sizes, **_QUERY_LAUNCH)
    _attention_backward_key[grid](grad, rotated, qkv, log_sums, deltas, grad_rotated, grad_qkv, *sizes, **_KEY_LAUNCH)
    rows = num_tokens * heads
    programs = triton.cdiv(rows, _ROTATED_ROWS * _STEPS)
    partial = torch.empty(programs, 2, dim, device=qkv.device)
    _rotate_backward[(programs, 2)](
        grad_rotated, qkv, query_norm, key_norm, cos, sin, grad_qkv, partial, rows, frames * tokens,
        heads, dim // 2, EPS, _ROTATED_ROWS, _STEPS, num_warps=4,
    )  # fmt: skip
    grad_norms = partial.sum(0)
    return grad_qkv, grad_norms[0], grad_norms[1]
