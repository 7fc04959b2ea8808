"""``tokens + (1 + gate) * branch``, then adaptive layer norm, in one pass forward and one pass backward."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# (Triton's types do not describe launches.)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

EPS = 1e-6
_TOKENS = 16  # of a forward program
_BACKWARD_TOKENS = 4  # of one step of a program
_STAGES = 3  # steps whose loads are under way


@triton.jit
def _residual_forward(
    tokens, branch, gate, shift, scale, out, modulated,
    num_tokens, gate_row, shift_row, scale_row,
    HAS_BRANCH: tl.constexpr, WIDTH: tl.constexpr, EPS: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.arange(0, BLOCK)
    inside = channel < WIDTH
    mask = (token < num_tokens)[:, None] & inside[None, :]
    at = (frame * num_tokens + token)[:, None] * WIDTH + channel[None, :]
    a = tl.load(shift + frame * shift_row + channel, mask=inside, other=0.0).to(tl.float32)
    m = tl.load(scale + frame * scale_row + channel, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(tokens + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_BRANCH:
        g = tl.load(gate + frame * gate_row + channel, mask=inside, other=0.0).to(tl.float32)
        x += (1 + g)[None, :] * tl.load(branch + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + at, x.to(out.dtype.element_ty), mask=mask)
    centred = tl.where(mask, x - (tl.sum(x, 1) / WIDTH)[:, None], 0.0)
    deviation = tl.rsqrt(tl.sum(centred * centred, 1) / WIDTH + EPS)[:, None]
    y = centred * deviation * (1 + m)[None, :] + a[None, :]
    tl.store(modulated + at, y.to(modulated.dtype.element_ty), mask=mask)


@triton.jit
def _residual_backward(
    grad_out, grad_modulated, out, branch, gate, scale,
    grad_tokens, grad_branch, grad_gate, grad_shift, grad_scale,
    num_tokens, gate_row, scale_row,
    HAS_BRANCH: tl.constexpr, WIDTH: tl.constexpr, EPS: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """One program per frame, which sums the gradients of the frame's gate, shift and scale on the way."""
    frame = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < WIDTH
    if HAS_BRANCH:
        g = tl.load(gate + frame * gate_row + channel, mask=inside, other=0.0).to(tl.float32)
    m = tl.load(scale + frame * scale_row + channel, mask=inside, other=0.0).to(tl.float32)
    dgate = tl.zeros((TOKENS, BLOCK), tl.float32)
    dshift = tl.zeros((TOKENS, BLOCK), tl.float32)
    dscale = tl.zeros((TOKENS, BLOCK), tl.float32)
    for start in tl.range(0, num_tokens, TOKENS, num_stages=STAGES):
        token = start + tl.arange(0, TOKENS)
        mask = (token < num_tokens)[:, None] & inside[None, :]
        at = (frame * num_tokens + token)[:, None] * WIDTH + channel[None, :]
        x = tl.load(out + at, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(grad_modulated + at, mask=mask, other=0.0).to(tl.float32)
        centred = tl.where(mask, x - (tl.sum(x, 1) / WIDTH)[:, None], 0.0)
        deviation = tl.rsqrt(tl.sum(centred * centred, 1) / WIDTH + EPS)[:, None]
        normalised = centred * deviation
        dshift += dy
        dscale += dy * normalised
        dy = dy * (1 + m)[None, :]
        mean = (tl.sum(dy, 1) / WIDTH)[:, None]
        overlap = (tl.sum(dy * normalised, 1) / WIDTH)[:, None]
        dx = deviation * (dy - mean - normalised * overlap)
        if HAS_BRANCH:
            dx += tl.load(grad_out + at, mask=mask, other=0.0).to(tl.float32)
            tl.store(grad_branch + at, (dx * (1 + g)[None, :]).to(grad_branch.dtype.element_ty), mask=mask)
            u = tl.load(branch + at, mask=mask, other=0.0).to(tl.float32)
            dgate += tl.where(mask, dx * u, 0.0)
        tl.store(grad_tokens + at, dx.to(grad_tokens.dtype.element_ty), mask=mask)
    at = frame * WIDTH + channel
    if HAS_BRANCH:
        tl.store(grad_gate + at, tl.sum(dgate, 0).to(grad_gate.dtype.element_ty), mask=inside)
    tl.store(grad_shift + at, tl.sum(dshift, 0).to(grad_shift.dtype.element_ty), mask=inside)
    tl.store(grad_scale + at, tl.sum(dscale, 0).to(grad_scale.dtype.element_ty), mask=inside)


def residual_norm(
    tokens: Tensor, branch: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """New tokens and their modulated norm.

    Args:
        tokens: ``[..., N, D]``, contiguous.
        branch: like ``tokens``; None (with ``gate`` None) leaves the tokens as they are.
        gate, shift, scale: one row per frame, ``[R, D]`` with any stride between rows.
    """
    frames, width = shift.shape
    num_tokens = tokens.numel() // (frames * width)
    has_branch = branch is not None
    if branch is None or gate is None:
        branch, gate = tokens, shift  # any pointers: they are not read
    out, modulated = torch.empty_like(tokens) if has_branch else tokens, torch.empty_like(tokens)
    _residual_forward[(frames, triton.cdiv(num_tokens, _TOKENS))](
        tokens, branch, gate, shift, scale, out, modulated,
        num_tokens, gate.stride(0), shift.stride(0), scale.stride(0),
        has_branch, width, EPS, _TOKENS, triton.next_power_of_2(width),
        num_warps=4,
    )  # fmt: skip
    return out, modulated


def residual_norm_backward(
    grad_out: Tensor | None,
    grad_modulated: Tensor,
    out: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    scale: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
    """Gradients of tokens, branch, gate, shift and scale; without a branch there is no ``grad_out`` either."""
    frames, width = scale.shape
    num_tokens = out.numel() // (frames * width)
    grad_tokens = torch.empty_like(out)
    grad_shift, grad_scale = scale.new_empty(frames, width), scale.new_empty(frames, width)
    has_branch = branch is not None
    grad_branch, grad_gate = (torch.empty_like(out), scale.new_empty(frames, width)) if has_branch else (None, None)
    if grad_out is None or branch is None or gate is None:
        grad_out, branch, gate = out, out, scale  # any pointers: they are not read
    _residual_backward[(frames,)](
        grad_out, grad_modulated, out, branch, gate, scale,
        grad_tokens, out if grad_branch is None else grad_branch, scale if grad_gate is None else grad_gate,
        grad_shift, grad_scale,
        num_tokens, gate.stride(0), scale.stride(0),
        has_branch, width, EPS, _BACKWARD_TOKENS, triton.next_power_of_2(width), _STAGES,
        num_warps=4,
    )  # fmt: skip
    return grad_tokens, grad_branch, grad_gate, grad_shift, grad_scale
