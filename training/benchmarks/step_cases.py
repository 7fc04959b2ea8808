"""Random inputs for the operations of a step, at any size: for their tests and for
:mod:`training.benchmarks.step_ops`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from wm_gym.nn.local_attention import Rotary
from wm_gym.poses import moved


class Draw:
    """Random tensors of one dtype on one device, from a seed."""

    def __init__(self, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        self.device = device
        self.dtype = dtype
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:
        """Normal values times ``scale``, ``shape``; in the draw's own dtype if None is given."""
        values = torch.randn(*shape, generator=self.generator, device=self.device) * scale
        return values.to(self.dtype if dtype is None else dtype)


def scan_case(
    draw: Draw,
    batch: int = 3,
    frames: int = 2,
    grid: tuple[int, int] = (4, 4),
    heads: int = 2,
    dim: int = 16,
    state_dim: int = 16,
    groups: int = 1,
    block_size: int = 2,
    state_dtype: torch.dtype = torch.float32,
    num_committed: int = 1,
) -> dict[str, Any]:
    """Arguments of ``scan_step``."""
    rows, columns = grid
    inner, mixed = heads * dim, heads * dim + 2 * groups * state_dim
    blocks = rows * columns // block_size**2
    f32 = torch.float32
    return {
        "projected": draw(batch, frames, rows, columns, inner + mixed + heads),
        "conv_weight": draw(4, mixed, dtype=f32, scale=0.5),
        "conv_bias": draw(mixed, dtype=f32, scale=0.1),
        "dt_bias": draw(heads, dtype=f32) - 2,
        "a": -torch.exp(draw(heads, dtype=f32)),
        "skip": draw(heads, dtype=f32),
        "ssm_state": draw(batch, blocks, heads, dim, state_dim, dtype=state_dtype),
        "conv_state": draw(batch, blocks, 3, mixed),
        "block_size": block_size,
        "num_committed": num_committed,
    }


def attention_case(
    draw: Draw,
    batch: int = 3,
    frames: int = 2,
    grid: tuple[int, int] = (2, 3),
    heads: int = 2,
    dim: int = 16,
    window: int = 3,
    ring_dtype: torch.dtype | None = None,
    num_committed: int = 1,
) -> dict[str, Any]:
    """Arguments of ``ring_attention``; the rows hold 0, 1, 2, … frames more than the one before, wrapping included."""
    rotary = Rotary.create(window + 2, *grid, dim, torch.device(draw.device))
    tokens = math.prod(grid)
    return {
        "qkv": draw(batch, frames, tokens, 3, heads, dim),
        "query_norm": 1 + draw(dim, dtype=torch.float32, scale=0.3),
        "key_norm": 1 + draw(dim, dtype=torch.float32, scale=0.3),
        "cos": rotary.cos,
        "sin": rotary.sin,
        "kv_ring": draw(batch, window, tokens, 2, heads, dim, dtype=ring_dtype),
        "num_cached": torch.arange(batch, device=draw.device) * (window // 2 + 1),
        "num_committed": num_committed,
    }


def adaln_case(draw: Draw, rows: int = 3, tokens: int = 5, width: int = 24, with_branch: bool = True) -> dict[str, Any]:
    """Arguments of ``residual_adaln``; gate, shift and scale are strided views of one tensor."""
    shift, scale, gate = draw(rows, 9 * width).chunk(9, dim=-1)[3:6]
    stream = 1 + 2 * draw(rows, tokens, width)
    branch = draw(rows, tokens, width) if with_branch else None
    return {"tokens": stream, "branch": branch, "gate": gate if with_branch else None, "shift": shift, "scale": scale}


def clone(case: dict[str, Any]) -> dict[str, Any]:
    """The same arguments in storage of their own; strides are kept."""
    return {k: v.clone() if isinstance(v, Tensor) and v.is_contiguous() else v for k, v in case.items()}


def upcast(case: dict[str, Any]) -> dict[str, Any]:
    """The same values in float32, for a reference that rounds nothing on the way."""
    return {k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in clone(case).items()}


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm; infinite where the value is not finite."""
    error = (value.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)
    return float(error) if bool(error.isfinite()) else math.inf


def odometry_case(draw: Draw, batch: int = 3, length: int = 5, width: int = 16) -> dict[str, Any]:
    """Arguments of ``odometry_scan``."""
    angle = draw(batch, 1)
    has_previous = torch.ones(batch, length, 1, device=draw.device)
    has_previous[0, 0] = 0
    return {
        "hidden": draw(batch, length, width),
        "out": draw(batch, length, 6, scale=0.3),
        "seen": draw(batch, length, 3, scale=0.2),
        "has_previous": has_previous,
        "recent": draw(batch, 6, scale=0.2),
        "pose": torch.cat([draw(batch, 2), angle.cos(), angle.sin()], dim=1),
        "recur": draw(width, 9, scale=0.3),
        "inner": draw(width, width, scale=width**-0.5),
        "inner_bias": draw(width, scale=0.3),
        "last": draw(6, width, scale=width**-0.5),
        "last_recent": draw(6, 9, scale=0.1),
        "scale": 5.0,
        "surprise": 0.01,
    }


def bearings_case(draw: Draw, batch: int = 3, length: int = 5) -> dict[str, Any]:
    """Arguments of ``filtered_poses``; of the first row the grid is not known yet, and one sight tells nothing."""
    angle = draw(batch, 1)
    spread = draw(batch, 6, 6, scale=0.05)
    state = torch.cat(
        [
            draw(batch, 3),
            (spread @ spread.mT).flatten(1),
            torch.ones(batch, 1, device=draw.device),
        ],
        dim=1,
    )
    state[0] = 0
    sights = draw(batch, length, 10, scale=30.0)
    sights[-1, 0] = 0
    motions = draw(batch, length, 3, scale=0.1)
    poses = [torch.cat([draw(batch, 2), angle.cos(), angle.sin()], dim=1)]
    for t in range(length):
        poses.append(moved(poses[-1], motions[:, t]))
    return {"state": state, "pose": poses[0], "followed": torch.stack(poses, dim=1), "sights": sights}
