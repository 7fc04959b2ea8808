"""The operations of the network. Each is picked here: the fast one where it runs, the plain one elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from wm_gym.array_typing import ScanInput, ScanProjection, ScanState, ScanStep
from wm_gym.ops.attention.local import banded_local_attention, flex_local_attention, frame_block_mask
from wm_gym.ops.scan import chunked, mamba

__all__ = ["banded_local_attention", "causal_conv", "flex_local_attention", "frame_block_mask", "ssd_scan"]

# Up to this many tokens one chunk holds everything, and more kernels would cost more than they save.
_MAX_CHUNK = 128


def ssd_scan(
    x: ScanInput,
    dt: ScanStep,
    a: Tensor,
    b: ScanProjection,
    c: ScanProjection,
    skip: Tensor,
    initial_state: ScanState | None = None,
    num_committed: int | None = None,
) -> tuple[ScanInput, ScanState]:
    """Selective scan; contract of :func:`wm_gym.ops.reference.ssd_scan`.

    Computed by mamba-ssm on a GPU when it is there, else by PyTorch.

    Args:
        num_committed: the state returned is that after so many tokens; None: after all of them.
    """
    length = x.shape[1]
    committed = length if num_committed is None else num_committed
    if initial_state is not None and length <= _MAX_CHUNK:
        return chunked.ssd_chunk(x, dt, a, b, c, skip, initial_state, committed)
    if initial_state is not None and committed == 0:
        return ssd_scan(x, dt, a, b, c, skip, initial_state)[0], initial_state
    if committed < length:
        (x0, x1), (dt0, dt1), (b0, b1), (c0, c1) = (z.tensor_split([committed], dim=1) for z in (x, dt, b, c))
        y0, state = ssd_scan(x0, dt0, a, b0, c0, skip, initial_state)
        y1, _ = ssd_scan(x1, dt1, a, b1, c1, skip, state)
        return torch.cat([y0, y1], dim=1), state
    if x.is_cuda and length > _MAX_CHUNK and mamba.is_available():
        return mamba.ssd_scan(x, dt, a, b, c, skip, initial_state)  # pyright: ignore[reportCallIssue]
    return chunked.ssd_scan(x, dt, a, b, c, skip, initial_state)


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, conv_state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Depth-wise causal convolution; contract of :func:`wm_gym.ops.reference.causal_conv` but for the second value.

    That is the whole padded input ``[sequences, taps - 1 + L, channels]``: a caller that stops after n tokens finds its
    convolution state at ``[:, n : n + taps - 1]``. Written as shifts, which compile to one kernel.
    """
    taps, length = weight.shape[0], x.shape[1]
    past = x.new_zeros(x.shape[0], taps - 1, x.shape[2]) if conv_state is None else conv_state.to(x.dtype)
    padded = torch.cat([past, x], dim=1)
    y = bias
    for tap in range(taps):
        y = y + padded[:, tap : tap + length] * weight[tap]
    return y, padded
