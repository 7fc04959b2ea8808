"""The operations of one inference step, for one or two frames per dream, over buffers that stay where they are.

Memory is changed in place, nothing waits for the GPU and no launch depends on data, so a whole step can be captured in
a CUDA graph. On a GPU each is a Triton kernel, elsewhere its plain twin in :mod:`wm_gym.ops.step_reference`. There are
no gradients.

F is the number of frames in the pass: the pending frame, which may enter memory, then the noisy one, which reads it.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from wm_gym.ops import step_reference

Backend = Literal["auto", "triton", "plain"]
"""Which version runs. "auto": Triton for tensors on a GPU, if it is installed, else the plain one. "triton" also takes
tensors on the CPU if the environment variable TRITON_INTERPRET was 1 when Python started (for tests: it is slow)."""

__all__ = ["Backend", "frame_noise", "gated_norm", "residual_adaln", "ring_attention", "scan_step", "uses_triton"]


@cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def uses_triton(device: torch.device, backend: Backend = "auto") -> bool:
    """Whether tensors on ``device`` are computed by the Triton kernels.

    Raises:
        ValueError: if Triton is asked for on another device than a GPU, outside its interpreter.
        ImportError: if it is asked for and not installed.
    """
    on_gpu = device.type == "cuda"
    if backend == "plain" or (backend == "auto" and not (on_gpu and _triton_is_installed())):
        return False
    if not _triton_is_installed():
        raise ImportError("Triton is not installed; pip install triton, or use backend='plain'.")
    if not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"Triton kernels cannot run on device {device.type!r}; move the tensors to a GPU, start Python with "
            "TRITON_INTERPRET=1 to interpret the kernels, or use backend='plain'."
        )
    return True


def scan_step(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    a: Tensor,
    skip: Tensor,
    ssm_state: Tensor,
    conv_state: Tensor,
    block_size: int,
    num_committed: int,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """The block-wise scan of 1 or 2 frames, from the input projection to the gate: all of Mamba2's mixer between them.

    Block order, 4-tap causal convolution, SiLU, softplus, the selective scan of arXiv 2405.21060 with a state per block
    (arXiv 2505.20171), direct path and gate ``silu(z)``. All frames see those before them, committed or not.

    Args:
        projected: gate z, convolved channels (x, b, c) and dt, ``[B, F, rows, columns, inner + mixed + h]``, with
            ``inner = h * d`` and ``mixed = inner + 2 * g * s``: g groups of h / g consecutive heads have a b and a c.
        conv_weight: ``[4, mixed]``; the last tap meets the current token.
        conv_bias: ``[mixed]``.
        dt_bias: added to dt before the softplus, ``[h]``.
        a: negative decay rates, ``[h]``.
        skip: weight of the direct path, ``[h]``.
        ssm_state: ``[B, K, h, d, s]``, float32 or bfloat16; changed in place if ``num_committed`` is 1.
        conv_state: the last 3 inputs of the convolution, ``[B, K, 3, mixed]``; changed in place likewise.
        block_size: side of a block in tokens; ``K = rows * columns / block_size**2``.
        num_committed: leading frames that enter the two states: 0 or 1.

    Returns:
        ``[B, F, rows, columns, inner]`` in the dtype of ``projected``, before the norm of :func:`gated_norm`.

    Raises:
        ValueError: if shapes do not fit each other.
    """
    _check_scan_step(projected, conv_weight, ssm_state, conv_state, block_size, num_committed)
    arguments = (projected, conv_weight, conv_bias, dt_bias, a, skip, ssm_state, conv_state, block_size, num_committed)
    if uses_triton(projected.device, backend):
        from wm_gym.ops.scan.step_kernel import scan_step as kernel

        return kernel(*arguments)
    return step_reference.scan_step(*arguments)


def gated_norm(y: Tensor, weight: Tensor, eps: float = 1e-5, *, backend: Backend = "auto") -> Tensor:
    """RMS norm over the last axis (arXiv 1910.07467), in float32: the norm after Mamba2's gate.

    Args:
        y: ``[..., inner]``, already gated.
        weight: ``[inner]``.
        eps: added to the mean square.

    Returns:
        Same shape and dtype as ``y``.
    """
    if uses_triton(y.device, backend):
        from wm_gym.ops.norm.gated_kernel import gated_norm as kernel

        return kernel(y, weight, eps)
    return step_reference.gated_norm(y, weight, eps)


def ring_attention(
    qkv: Tensor,
    query_norm: Tensor,
    key_norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    kv_ring: Tensor,
    num_cached: Tensor,
    num_committed: int,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Frame-local attention of 1 or 2 fresh frames to themselves and the ``window`` frames before each, over a ring.

    Queries and keys are RMS-normalised (eps 1e-6) and then rotated by their place in the window: a cached frame of age
    g (0 = newest) lies in slot ``(num_cached - 1 - g) % window`` and takes the angles ``window - 1 - g``; fresh frame f
    takes ``window + f``. The ring holds normalised, unrotated keys.

    Args:
        qkv: ``[B, F, N, 3, heads, dim]``.
        query_norm, key_norm: weights of the norms, ``[dim]``.
        cos, sin: ``[window + F or more, N, 1, dim / 2]``.
        kv_ring: keys and values of the last frames, ``[B, window, N, 2, heads, dim]``.
        num_cached: frames that ever entered each ring, int64 ``[B]``; it is read and not changed.
        num_committed: 0, or 1: frame 0 is written to slot ``num_cached % window`` after every query has read the ring.

    Returns:
        ``[B, F, N, heads * dim]`` in the dtype of ``qkv``.

    Raises:
        ValueError: if shapes do not fit each other.
    """
    _check_ring_attention(qkv, cos, sin, kv_ring, num_cached, num_committed)
    arguments = (qkv, query_norm, key_norm, cos, sin, kv_ring, num_cached, num_committed)
    if uses_triton(qkv.device, backend):
        from wm_gym.ops.attention.ring_kernel import ring_attention as kernel

        return kernel(*arguments)
    return step_reference.ring_attention(*arguments)


def residual_adaln(
    tokens: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    *,
    out_dtype: torch.dtype | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Close one residual branch and open the next: ``tokens += (1 + gate) * branch``, then adaptive layer norm.

    The norm (eps 1e-6, no weights) is that of arXiv 2212.09748, section 3.2: ``norm(tokens) * (1 + scale) + shift``.

    Args:
        tokens: the residual stream, ``[R, N, D]``; changed in place unless ``branch`` is None.
        branch: ``[R, N, D]`` or None for none.
        gate, shift, scale: ``[R, D]``; may be strided views. ``gate`` is None where ``branch`` is.
        out_dtype: dtype of the result; that of ``tokens`` if None.

    Returns:
        ``[R, N, D]``.

    Raises:
        ValueError: if only one of ``branch`` and ``gate`` is given.
    """
    if (branch is None) != (gate is None):
        raise ValueError("one of branch and gate was given without the other; give both, or None for both.")
    if uses_triton(tokens.device, backend):
        from wm_gym.ops.norm.residual_kernel import residual_adaln as kernel

        return kernel(tokens, branch, gate, shift, scale, out_dtype)
    return step_reference.residual_adaln(tokens, branch, gate, shift, scale, out_dtype)


def frame_noise(keys: Tensor, counters: Tensor, shape: tuple[int, int, int], *, backend: Backend = "auto") -> Tensor:
    """Standard normal noise for one frame per row, a pure function of key and counter on every device.

    Philox-4x32-10 (Salmon et al. 2011) under the row's 64-bit key, with counter words (index of the group of four
    elements, frame counter low, frame counter high, 0), then Box-Muller. CPU and GPU draw the same integers and agree
    in the normals to 1e-5.

    Args:
        keys: int64 ``[B]``.
        counters: frame counters, int64 ``[B]``.
        shape: (C, H, W).

    Returns:
        float32 ``[B, C, H, W]``.
    """
    if uses_triton(keys.device, backend):
        from wm_gym.ops.noise.philox_kernel import frame_noise as kernel

        return kernel(keys, counters, shape)
    return step_reference.frame_noise(keys, counters, shape)


def _check_scan_step(
    projected: Tensor, conv_weight: Tensor, ssm_state: Tensor, conv_state: Tensor, block_size: int, num_committed: int
) -> None:
    batch, frames, rows, columns, channels = projected.shape
    heads, dim, state_dim = ssm_state.shape[2:]
    inner, mixed = heads * dim, conv_weight.shape[1]
    groups = (mixed - inner) // (2 * state_dim)
    _check_frames(frames, num_committed)
    if rows % block_size or columns % block_size:
        raise ValueError(f"block size {block_size} does not divide the token grid {rows}x{columns}.")
    if groups < 1 or heads % groups or mixed != inner + 2 * groups * state_dim:
        raise ValueError(
            f"conv_weight has {mixed} channels; {heads} heads of {dim} with a state of {state_dim} take "
            f"{inner} + 2 * g * {state_dim}, where g divides {heads}."
        )
    if channels != inner + mixed + heads:
        raise ValueError(
            f"projected has {channels} channels; {heads} heads of {dim} with {mixed} convolved channels take "
            f"{inner + mixed + heads}."
        )
    taps = conv_weight.shape[0]
    expected = (batch, rows * columns // block_size**2)
    if taps != 4 or ssm_state.shape[:2] != expected or conv_state.shape != (*expected, taps - 1, mixed):
        raise ValueError(
            f"conv_weight {tuple(conv_weight.shape)}, ssm_state {tuple(ssm_state.shape)} and conv_state "
            f"{tuple(conv_state.shape)} do not fit; expected 4 taps, states that begin with {expected}, and a "
            f"conv_state that ends in (3, {mixed})."
        )


def _check_ring_attention(
    qkv: Tensor, cos: Tensor, sin: Tensor, kv_ring: Tensor, num_cached: Tensor, num_committed: int
) -> None:
    batch, frames, tokens, _three, heads, dim = qkv.shape
    window = kv_ring.shape[1]
    _check_frames(frames, num_committed)
    if kv_ring.shape != (batch, window, tokens, 2, heads, dim):
        raise ValueError(f"kv_ring {tuple(kv_ring.shape)} does not fit qkv {tuple(qkv.shape)}.")
    if num_cached.shape != (batch,) or num_cached.dtype != torch.int64:
        raise ValueError(f"num_cached is {num_cached.dtype} {tuple(num_cached.shape)}; expected int64 ({batch},).")
    if cos.shape != sin.shape or cos.shape[0] < window + frames or cos.shape[1:] != (tokens, 1, dim // 2):
        raise ValueError(
            f"cos and sin are {tuple(cos.shape)} and {tuple(sin.shape)}; expected at least "
            f"({window + frames}, {tokens}, 1, {dim // 2}) each."
        )


def _check_frames(frames: int, num_committed: int) -> None:
    if frames not in (1, 2) or num_committed not in (0, 1):
        raise ValueError(f"{frames} frames with {num_committed} committed; a step runs 1 or 2 and commits 0 or 1.")
