"""The operations of the network. Each is picked here: the fast one where it runs, the plain one elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from wm_gym.array_typing import ScanInput, ScanProjection, ScanState, ScanStep
from wm_gym.ops import mamba, ssd
from wm_gym.ops.attention import banded_local_attention, flex_local_attention, frame_block_mask

__all__ = ["banded_local_attention", "causal_conv", "flex_local_attention", "frame_block_mask", "ssd_scan"]

# Below this many tokens one chunk holds everything and launching mamba-ssm's five kernels costs more than it saves.
_MIN_MAMBA_LENGTH = 129


def ssd_scan(
    x: ScanInput,
    dt: ScanStep,
    a: Tensor,
    b: ScanProjection,
    c: ScanProjection,
    skip: Tensor,
    initial_state: ScanState | None = None,
) -> tuple[ScanInput, ScanState]:
    """Selective scan; contract of :func:`wm_gym.ops.reference.ssd_scan`. mamba-ssm on a GPU when it is there, else PyTorch."""
    if x.is_cuda and x.shape[1] >= _MIN_MAMBA_LENGTH and mamba.is_available():
        return mamba.ssd_scan(x, dt, a, b, c, skip, initial_state)
    return ssd.ssd_scan(x, dt, a, b, c, skip, initial_state)


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, conv_state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Depth-wise causal convolution; contract of :func:`wm_gym.ops.reference.causal_conv`. Shifts, which compile to one kernel.

    The second value is the whole padded input ``[sequences, taps - 1 + L, channels]``: a caller that stops after n tokens
    finds its convolution state at ``[:, n : n + taps - 1]``.
    """
    taps, length = weight.shape[0], x.shape[1]
    past = x.new_zeros(x.shape[0], taps - 1, x.shape[2]) if conv_state is None else conv_state.to(x.dtype)
    padded = torch.cat([past, x], dim=1)
    y = bias
    for tap in range(taps):
        y = y + padded[:, tap : tap + length] * weight[tap]
    return y, padded
