"""Normal noise from Philox-4x32-10, the same on every device."""

# A kernel is Python in form only; the type checker does not know Triton's launches, loops and tuples.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from wm_gym.ops.launch import ceil_div

_TILE = 256  # groups of four normals per program


@triton.jit
def _box_muller(radius_word, angle_word):
    uniform = ((radius_word >> 8) + 1).to(tl.float32) * 5.9604644775390625e-08  # 2**-24
    angle = (angle_word >> 8).to(tl.float32) * 3.7450702829238413e-07  # 2 pi / 2**24
    radius = tl.sqrt(-2.0 * tl.log(uniform))
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def _noise_kernel(keys, counters, out, SIZE: tl.constexpr, GROUPS: tl.constexpr, TILE: tl.constexpr):
    tiles: tl.constexpr = (GROUPS + TILE - 1) // TILE
    row = (tl.program_id(0) // tiles).to(tl.int64)
    group = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    counter = tl.load(counters + row)
    low = (counter & 0xFFFFFFFF).to(tl.uint32)
    high = ((counter >> 32) & 0xFFFFFFFF).to(tl.uint32)
    word = group.to(tl.uint32)
    zero = word * 0
    w0, w1, w2, w3 = tl.philox(tl.load(keys + row), word, zero + low, zero + high, zero)
    n0, n1 = _box_muller(w0, w1)
    n2, n3 = _box_muller(w2, w3)
    normals = tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), [4 * TILE])
    index = tl.program_id(0) % tiles * (4 * TILE) + tl.arange(0, 4 * TILE)
    tl.store(out + row * SIZE + index, normals, index < SIZE)


def frame_noise(keys: Tensor, counters: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Kernel of :func:`wm_gym.ops.step.frame_noise`."""
    out = keys.new_empty(keys.shape[0], *shape, dtype=torch.float32)
    size = math.prod(shape)
    groups = ceil_div(size, 4)
    grid = (keys.shape[0] * ceil_div(groups, _TILE),)
    _noise_kernel[grid](keys.contiguous(), counters.contiguous(), out, size, groups, _TILE, num_warps=4)
    return out
