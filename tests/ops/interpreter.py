"""Triton kernels on the CPU. Import this before anything that imports Triton, in a process of its own."""

from __future__ import annotations

import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_patch_tensor = interpreter._patch_lang_tensor
_dot = interpreter.InterpreterBuilder.create_dot


def _patch_tensor_for_numpy(tensor: Any, scope: Any) -> None:
    # Triton 3.6 converts arrays of one element by int(), which NumPy 2.4 refuses: no loop could have a bound.
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def _as_float32(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    bits = handle.data.astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), tl.float32)


def _dot_of_bfloat16(self: Any, a: Any, b: Any, *arguments: Any) -> Any:
    # The interpreter keeps bfloat16 as integers, and Triton 3.6 multiplies those.
    return _dot(self, _as_float32(a), _as_float32(b), *arguments)


interpreter._patch_lang_tensor = _patch_tensor_for_numpy
interpreter.InterpreterBuilder.create_dot = _dot_of_bfloat16  # pyright: ignore[reportAttributeAccessIssue]
