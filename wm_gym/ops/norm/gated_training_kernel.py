"""RMS norm of ``y * silu(gate)``, forward and backward, with the gate read out of the input projection in place."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# (Triton's types do not describe launches.)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

EPS = 1e-5
_TOKENS = 4  # of a forward program
_BACKWARD_TOKENS = 2  # of one step of a program
_STEPS = 32  # of a backward program, which sums the gradient of the weight


@triton.jit
def _norm_forward(
    y, projected, weight, out, num_tokens,
    ROW: tl.constexpr, INNER: tl.constexpr, EPS: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    mask = (token < num_tokens) & (channel < INNER)
    z = tl.load(projected + token * ROW + channel, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(y + token * INNER + channel, mask=mask, other=0.0).to(tl.float32) * z * tl.sigmoid(z)
    scale = tl.rsqrt(tl.sum(g * g, 1) / INNER + EPS)[:, None]
    w = tl.load(weight + channel, mask=channel < INNER, other=0.0).to(tl.float32)
    tl.store(out + token * INNER + channel, (g * scale * w).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _norm_backward(
    grad, y, projected, weight, grad_y, grad_projected, partial, num_tokens,
    ROW: tl.constexpr, INNER: tl.constexpr, EPS: tl.constexpr,
    TOKENS: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    channel = tl.arange(0, BLOCK)[None, :]
    w = tl.load(weight + channel, mask=channel < INNER, other=0.0).to(tl.float32)
    dw = tl.zeros((TOKENS, BLOCK), tl.float32)
    for step in range(STEPS):
        token = ((tl.program_id(0) * STEPS + step) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)[:, None]
        mask = (token < num_tokens) & (channel < INNER)
        z = tl.load(projected + token * ROW + channel, mask=mask, other=0.0).to(tl.float32)
        u = tl.load(y + token * INNER + channel, mask=mask, other=0.0).to(tl.float32)
        do = tl.load(grad + token * INNER + channel, mask=mask, other=0.0).to(tl.float32)
        s = tl.sigmoid(z)
        g = u * z * s
        scale = tl.rsqrt(tl.sum(g * g, 1) / INNER + EPS)[:, None]
        normalised = g * scale
        dw += do * normalised
        do = do * w
        dg = scale * (do - normalised * (tl.sum(do * normalised, 1) / INNER)[:, None])
        tl.store(grad_y + token * INNER + channel, (dg * z * s).to(grad_y.dtype.element_ty), mask=mask)
        dz = dg * u * s * (1 + z * (1 - s))
        tl.store(grad_projected + token * ROW + channel, dz.to(grad_projected.dtype.element_ty), mask=mask)
    channel = tl.arange(0, BLOCK)
    tl.store(partial + tl.program_id(0) * INNER + channel, tl.sum(dw, 0), mask=channel < INNER)


def gated_norm(y: Tensor, projected: Tensor, weight: Tensor) -> Tensor:
    """``rms_norm(y * silu(gate)) * weight``, with the gate in the first channels of ``projected``.

    Args:
        y: ``[..., inner]``, contiguous.
        projected: ``[..., width]``, contiguous.
        weight: ``[inner]``.
    """
    inner, num_tokens = y.shape[-1], y.numel() // y.shape[-1]
    out = torch.empty_like(y)
    block = triton.next_power_of_2(inner)
    _norm_forward[(triton.cdiv(num_tokens, _TOKENS),)](
        y, projected, weight, out, num_tokens, projected.shape[-1], inner, EPS, _TOKENS, block, num_warps=4
    )
    return out


def gated_norm_backward(
    grad: Tensor, y: Tensor, projected: Tensor, weight: Tensor, grad_projected: Tensor
) -> tuple[Tensor, Tensor]:
    """Writes the gate's channels of ``grad_projected`` and returns the gradients of ``y`` and of the weight."""
    inner, num_tokens = y.shape[-1], y.numel() // y.shape[-1]
    grad_y = torch.empty_like(y)
    programs = triton.cdiv(num_tokens, _BACKWARD_TOKENS * _STEPS)
    partial = torch.empty(programs, inner, device=y.device)
    block = triton.next_power_of_2(inner)
    _norm_backward[(programs,)](
        grad, y, projected, weight, grad_y, grad_projected, partial, num_tokens,
        projected.shape[-1], inner, EPS, _BACKWARD_TOKENS, _STEPS, block,
        num_warps=4,
    )  # fmt: skip
    return grad_y, partial.sum(0)
