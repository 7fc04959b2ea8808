"""The filter of bearings over a sequence, in one launch: a program for each row; its covariance is one small tile."""

# A kernel is Python in form only; the type checker does not know Triton's launches, loops and tuples.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_TILE = 8  # covers the six numbers of the filter


@triton.jit
def _at(values, index: tl.constexpr, TILE: tl.constexpr):
    """One element of a tile."""
    return tl.sum(tl.where(tl.arange(0, TILE) == index, values, 0.0))


@triton.jit
def _wrapped(angle):
    return angle - 6.283185307179586 * tl.floor((angle + 3.141592653589793) / 6.283185307179586)


@triton.jit
def _convention(heading):
    """Whether the last axis that was passed is taken, and its angle or that of the nearest one."""
    quarter = 1.5707963267948966
    past = heading - quarter * tl.floor(heading / quarter)
    by_passed = tl.abs(past - quarter / 2) < quarter / 4
    ahead = tl.where(by_passed, 0.0, quarter / 2)
    return by_passed, tl.floor((heading + ahead) / quarter) * quarter


@triton.jit
def _grid_filter_kernel(
    state,
    pose,
    motions,
    told,
    variance,
    counts,
    poses,
    new_state,
    length,
    off_cells,
    off_radians,
    surprise,
    unknown,
    most_unknown,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    number = tl.arange(0, TILE)
    down, across_tile = number[:, None], number[None, :]
    inside, diagonal = (down < 6) & (across_tile < 6), down == across_tile
    base = state + row * 40
    grid_x, grid_y, grid_turn, known = tl.load(base), tl.load(base + 1), tl.load(base + 2), tl.load(base + 39)
    covariance = tl.load(base + 3 + down * 6 + across_tile, inside, 0.0)
    x, y, angle = tl.load(pose + row * 3), tl.load(pose + row * 3 + 1), tl.load(pose + row * 3 + 2)
    drift = tl.where(diagonal & (down >= 3) & (down < 5), off_cells * off_cells, 0.0)
    drift = tl.where(diagonal & (down == 5), off_radians * off_radians, drift)
    tau = 6.283185307179586
    for t in range(length):
        place = row * length + t
        sight, spread_of, count_of = told + place * 5, variance + place * 5, counts + place * 5
        first = (tl.load(count_of) > 0) & (known == 0)
        heading = tl.load(sight) / 4
        by_passed, axis = _convention(heading)
        along = tl.where(by_passed, tl.load(sight + 1), tl.load(sight + 3)) / tau
        across = tl.where(by_passed, tl.load(sight + 2), tl.load(sight + 4)) / tau
        turn = heading - _wrapped(angle)
        cos, sin, axis_cos, axis_sin = tl.cos(turn), tl.sin(turn), tl.cos(axis), tl.sin(axis)
        grid_x = tl.where(first, axis_cos * along - axis_sin * across - (cos * x - sin * y), grid_x)
        grid_y = tl.where(first, axis_sin * along + axis_cos * across - (sin * x + cos * y), grid_y)
        grid_turn = tl.where(first, turn, grid_turn)
        by_along = unknown * tl.where(by_passed, tl.load(spread_of + 1), tl.load(spread_of + 3))
        by_across = unknown * tl.where(by_passed, tl.load(spread_of + 2), tl.load(spread_of + 4))
        begin = tl.where(diagonal & (down == 0), tl.minimum(by_along, most_unknown), 0.0)
        begin = tl.where(diagonal & (down == 1), tl.minimum(by_across, most_unknown), begin)
        begin = tl.where(diagonal & (down == 2), tl.minimum(unknown * tl.load(spread_of), most_unknown), begin)
        covariance = tl.where(first, begin, covariance)
        known = tl.where(first, 1.0, known)
        for part in tl.static_range(3):
            cos, sin = tl.cos(grid_turn), tl.sin(grid_turn)
            arm_x, arm_y = cos * x - sin * y, sin * x + cos * y
            heading = grid_turn + angle
            if part == 0:
                error = _wrapped(tl.load(sight) - 4 * heading) / 4
                noise, counted = tl.load(spread_of), tl.load(count_of)
                slope = tl.where((number == 2) | (number == 5), 1.0, 0.0)
            else:
                by_passed, axis = _convention(heading)
                cos, sin = tl.cos(axis), tl.sin(axis)
                at_x, at_y = grid_x + arm_x, grid_y + arm_y
                if part == 1:
                    own = at_x * cos + at_y * sin
                else:
                    own = at_y * cos - at_x * sin
                    axis = axis + 1.5707963267948966
                    cos, sin = tl.cos(axis), tl.sin(axis)
                angle_told = tl.where(by_passed, tl.load(sight + part), tl.load(sight + part + 2))
                error = _wrapped(angle_told - tau * own) / tau
                noise = tl.where(by_passed, tl.load(spread_of + part), tl.load(spread_of + part + 2))
                counted = tl.where(by_passed, tl.load(count_of + part), tl.load(count_of + part + 2))
                slope = tl.where(number == 0, cos, 0.0)
                slope = tl.where(number == 1, sin, slope)
                slope = tl.where(number == 2, sin * arm_x - cos * arm_y, slope)
                slope = tl.where(number == 3, tl.cos(axis - grid_turn), slope)
                slope = tl.where(number == 4, tl.sin(axis - grid_turn), slope)
            spread = tl.sum(covariance * slope[None, :], axis=1)
            total = tl.sum(slope * spread) + noise
            total = total * tl.maximum(error * error / (surprise * surprise * total), 1.0)
            gain = known * counted * spread / total
            covariance = covariance - gain[:, None] * spread[None, :]
            change = gain * error
            grid_x += _at(change, 0, TILE)
            grid_y += _at(change, 1, TILE)
            grid_turn += _at(change, 2, TILE)
            x += _at(change, 3, TILE)
            y += _at(change, 4, TILE)
            angle += _at(change, 5, TILE)
        forward, left = tl.load(motions + place * 3), tl.load(motions + place * 3 + 1)
        cos, sin = tl.cos(angle), tl.sin(angle)
        by_x, by_y = cos * forward - sin * left, sin * forward + cos * left
        lever = tl.where(number == 3, -by_y, 0.0)
        lever = tl.where(number == 4, by_x, lever)
        turned = tl.sum(tl.where(down == 5, covariance, 0.0), axis=0)
        covariance = covariance + lever[:, None] * turned[None, :]
        turned = tl.sum(tl.where(across_tile == 5, covariance, 0.0), axis=1)
        covariance = covariance + turned[:, None] * lever[None, :] + known * drift
        x, y, angle = x + by_x, y + by_y, angle + tl.load(motions + place * 3 + 2)
        tl.store(poses + place * 4, x)
        tl.store(poses + place * 4 + 1, y)
        tl.store(poses + place * 4 + 2, tl.cos(angle))
        tl.store(poses + place * 4 + 3, tl.sin(angle))
    kept = new_state + row * 40
    tl.store(kept, grid_x)
    tl.store(kept + 1, grid_y)
    tl.store(kept + 2, grid_turn)
    tl.store(kept + 3 + down * 6 + across_tile, covariance, inside)
    tl.store(kept + 39, known)


def grid_filter(
    state: Tensor,
    pose: Tensor,
    motions: Tensor,
    told: Tensor,
    variance: Tensor,
    counts: Tensor,
    off_cells: float,
    off_radians: float,
    surprise: float,
    unknown: float,
    most_unknown: float,
) -> tuple[Tensor, Tensor]:
    """Kernel of :func:`wm_gym.ops.odometry.bearings.filtered_poses`.

    Args:
        state: ``[B, 40]``.
        pose: x, y and heading of the first frame, ``[B, 3]``.
        motions: that follow each frame, ``[B, T, 3]``.
        told, variance, counts: the angles of the sights, their variances, and 1 where they tell anything, else 0,
            ``[B, T, 5]``.
        off_cells, off_radians, surprise, unknown, most_unknown: constants of the filter.

    Returns:
        Poses ``[B, T, 4]`` and the new state.
    """
    batch, length = motions.shape[:2]
    poses, new_state = motions.new_empty(batch, length, 4), motions.new_empty(batch, 40)
    tensors = (state, pose, motions, told, variance, counts)
    constants = (off_cells, off_radians, surprise, unknown, most_unknown)
    _grid_filter_kernel[(batch,)](
        *(tensor.float().contiguous() for tensor in tensors), poses, new_state, length, *constants, _TILE, num_warps=1
    )
    return poses, new_state
