"""RMS norm over the last axis."""

# A kernel is Python in form only; the type checker does not know Triton's launches, loops and tuples.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from wm_gym.ops.launch import ceil_div, next_power_of_two

_FILLS_A_GPU = 1024  # programs; beyond it, each takes more rows


@triton.jit
def _gated_norm_kernel(
    y, weight, out, num_rows, eps, WIDTH: tl.constexpr, WIDTH_TILE: tl.constexpr, ROW_TILE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROW_TILE + tl.arange(0, ROW_TILE)[:, None]
    column = tl.arange(0, WIDTH_TILE)[None, :]
    mask = (row < num_rows) & (column < WIDTH)
    value = tl.load(y + row * WIDTH + column, mask, 0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=1, keep_dims=True) / WIDTH + eps)
    gain = tl.load(weight + column, column < WIDTH, 0.0).to(tl.float32)
    tl.store(out + row * WIDTH + column, (value * scale * gain).to(out.dtype.element_ty), mask)


def gated_norm(y: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Kernel of :func:`wm_gym.ops.step.gated_norm`."""
    y, weight = y.contiguous(), weight.contiguous()
    out = y.new_empty(y.shape)
    width = y.shape[-1]
    num_rows = y.numel() // width
    row_tile = 1 if num_rows <= _FILLS_A_GPU else 4
    grid = (ceil_div(num_rows, row_tile),)
    _gated_norm_kernel[grid](y, weight, out, num_rows, eps, width, next_power_of_two(width), row_tile, num_warps=4)
    return out
