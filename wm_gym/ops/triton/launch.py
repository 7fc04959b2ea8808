"""What the kernels' launches share."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def matrix_operand(dtype: torch.dtype) -> tl.dtype:
    """Type in which a kernel multiplies matrices of activations of ``dtype``.

    That type itself, but for Triton's interpreter, which cannot multiply bfloat16.
    """
    if dtype == torch.float32 or triton.knobs.runtime.interpret:
        return tl.float32
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]


def matrix_precision(dtype: torch.dtype) -> str:
    """How float32 matrices are multiplied: exactly where activations are float32, else in tf32."""
    return "ieee" if dtype == torch.float32 else "tf32"
