"""GELU of a linear map's output and bias, whose gradient is summed up in the same pass."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# (Triton's types do not describe launches.)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 16  # of one step of a program
_STEPS = 8
_COLUMNS = 256


@triton.jit
def _sigmoid_and_slope(x):
    """tanh's GELU is ``x * sigmoid(u)`` with this u; also the derivative of u (arXiv 1606.08415)."""
    square = x * x
    return tl.sigmoid(1.5957691216057308 * x * (1 + 0.044715 * square)), 1.5957691216057308 * (1 + 0.134145 * square)


@triton.jit
def _gelu_forward(x, bias, out, num_rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = (row < num_rows) & (column < WIDTH)
    u = tl.load(x + row * WIDTH + column, mask=mask, other=0.0).to(tl.float32)
    u += tl.load(bias + column, mask=column < WIDTH, other=0.0)
    s = _sigmoid_and_slope(u)[0]
    tl.store(out + row * WIDTH + column, (u * s).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gelu_backward(
    grad, x, bias, grad_x, partial, num_rows,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < WIDTH
    offset = tl.load(bias + column, mask=inside, other=0.0)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(STEPS):
        row = ((tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        mask = (row < num_rows) & inside[None, :]
        at = row * WIDTH + column[None, :]
        u = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) + offset
        s, slope = _sigmoid_and_slope(u)
        du = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32) * (s + u * s * (1 - s) * slope)
        total += du
        tl.store(grad_x + at, du.to(grad_x.dtype.element_ty), mask=mask)
    tl.store(partial + tl.program_id(0) * WIDTH + column, tl.sum(total, 0), mask=inside)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """``gelu(x + bias)`` with tanh's approximation; x ``[..., width]``, contiguous, bias ``[width]``, float32."""
    width, num_rows = x.shape[-1], x.numel() // x.shape[-1]
    out = torch.empty_like(x)
    columns = min(triton.next_power_of_2(width), _COLUMNS)
    grid = (triton.cdiv(num_rows, _ROWS), triton.cdiv(width, columns))
    _gelu_forward[grid](x, bias, out, num_rows, width, _ROWS, columns, num_warps=4)
    return out


def bias_gelu_backward(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the bias; ``grad`` is contiguous."""
    width, num_rows = x.shape[-1], x.numel() // x.shape[-1]
    grad_x = torch.empty_like(x)
    columns = min(triton.next_power_of_2(width), _COLUMNS)
    programs = triton.cdiv(num_rows, _ROWS * _STEPS)
    partial = torch.empty(programs, width, device=x.device)
    grid = (programs, triton.cdiv(width, columns))
    _gelu_backward[grid](grad, x, bias, grad_x, partial, num_rows, width, _ROWS, _STEPS, columns, num_warps=4)
    return grad_x, partial.sum(0)
