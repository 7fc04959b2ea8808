"""What the kernels' launches share."""

from __future__ import annotations

import torch
import triton.language as tl
from triton import knobs


def matrix_operand(dtype: torch.dtype) -> tl.dtype:
    """Type in which a kernel multiplies matrices of activations of ``dtype``.

    That type itself, but for Triton's interpreter, which cannot multiply bfloat16.
    """
    if dtype == torch.float32 or knobs.runtime.interpret:
        return tl.float32
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]


def matrix_precision(dtype: torch.dtype) -> str:
    """How float32 matrices are multiplied: exactly where activations are float32, else in tf32."""
    return "ieee" if dtype == torch.float32 else "tf32"


def ceil_div(total: int, part: int) -> int:
    """How many parts cover the total."""
    return -(-total // part)


def next_power_of_two(size: int) -> int:
    """The smallest power of two that is not below ``size``: what Triton's tiles must measure."""
    return 1 << (size - 1).bit_length()
