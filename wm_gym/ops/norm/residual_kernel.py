"""The end of one residual branch and the adaptive layer norm that opens the next, in one pass over the tokens."""

# A kernel is Python in form only; the type checker does not know Triton's launches, loops and tuples.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wm_gym.ops.launch import ceil_div, next_power_of_two

_FILLS_A_GPU = 1024  # programs; beyond it, each takes more tokens


@triton.jit
def _residual_adaln_kernel(
    tokens, branch, gate, shift, scale, out, gate_stride, shift_stride, scale_stride, num_tokens,
    WIDTH: tl.constexpr, WIDTH_TILE: tl.constexpr, TOKEN_TILE: tl.constexpr, HAS_BRANCH: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(num_tokens, TOKEN_TILE)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    token = tl.program_id(0) % tiles * TOKEN_TILE + tl.arange(0, TOKEN_TILE)[:, None]
    column = tl.arange(0, WIDTH_TILE)[None, :]
    inside = column < WIDTH
    mask = (token < num_tokens) & inside
    place = (row * num_tokens + token) * WIDTH + column
    value = tl.load(tokens + place, mask, 0.0).to(tl.float32)
    if HAS_BRANCH:
        opening = 1.0 + tl.load(gate + row * gate_stride + column, inside, 0.0).to(tl.float32)
        value += opening * tl.load(branch + place, mask, 0.0).to(tl.float32)
        tl.store(tokens + place, value.to(tokens.dtype.element_ty), mask)
    mean = tl.sum(value, axis=1, keep_dims=True) / WIDTH
    centred = tl.where(inside, value - mean, 0.0)
    normalised = centred * tl.rsqrt(tl.sum(centred * centred, axis=1, keep_dims=True) / WIDTH + 1e-6)
    factor = 1.0 + tl.load(scale + row * scale_stride + column, inside, 0.0).to(tl.float32)
    offset = tl.load(shift + row * shift_stride + column, inside, 0.0).to(tl.float32)
    tl.store(out + place, (normalised * factor + offset).to(out.dtype.element_ty), mask)


def residual_adaln(
    tokens: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    out_dtype: torch.dtype | None,
) -> Tensor:
    """Kernel of :func:`wm_gym.ops.step.residual_adaln`.

    Raises:
        ValueError: if tokens are not contiguous, or the channels of gate, shift or scale are not.
    """
    if not tokens.is_contiguous():
        raise ValueError("tokens are changed in place and must be contiguous; pass them so.")
    if any(t is not None and t.stride(-1) != 1 for t in (gate, shift, scale)):
        raise ValueError("gate, shift and scale may be strided over rows but not over channels.")
    num_rows, num_tokens, width = tokens.shape
    out = tokens.new_empty(tokens.shape, dtype=out_dtype)
    tile = 1 if num_rows * num_tokens <= _FILLS_A_GPU else min(8, next_power_of_two(num_tokens))
    grid = (num_rows * ceil_div(num_tokens, tile),)
    # Without a branch the kernel reads neither of the two; it still takes pointers.
    branch_given = tokens if branch is None else branch.contiguous()
    gate_given = scale if gate is None else gate
    _residual_adaln_kernel[grid](
        tokens, branch_given, gate_given, shift, scale, out, gate_given.stride(0), shift.stride(0), scale.stride(0),
        num_tokens, width, next_power_of_two(width), tile, branch is not None, num_warps=4,
    )  # fmt: skip
    return out
