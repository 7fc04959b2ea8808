"""The scan through mamba-ssm's Triton kernels. The only module that imports mamba-ssm."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from wm_gym.array_typing import ScanInput, ScanProjection, ScanState, ScanStep


@torch.compiler.assume_constant_result
def is_available() -> bool:
    """Whether mamba-ssm's chunk scan can be used on this machine."""
    return _probe()


@cache
def _probe() -> bool:
    if not torch.cuda.is_available():
        return False
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined  # noqa: F401
    except ImportError:
        return False
    return True


@torch.compiler.disable
def ssd_scan(
    x: ScanInput,
    dt: ScanStep,
    a: Tensor,
    b: ScanProjection,
    c: ScanProjection,
    skip: Tensor,
    initial_state: ScanState | None = None,
    chunk_size: int = 128,
) -> tuple[ScanInput, ScanState]:
    """Same contract as :func:`wm_gym.ops.reference.ssd_scan`, on a GPU; states are kept in float32.

    ``torch.compile`` leaves the kernels alone: their own autotuning does not trace.
    """
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    y, final_state = mamba_chunk_scan_combined(
        x,
        dt,
        a.float(),
        b,
        c,
        chunk_size,
        D=skip.float(),
        initial_states=initial_state,
        return_final_states=True,
    )
    return y, final_state
