"""The recursion of odometry over a sequence, with the poses that it leads to, in one launch: a program for each row."""

# A kernel is Python in form only; the type checker does not know Triton's launches, loops and tuples.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from wm_gym.ops.launch import next_power_of_two

_OUTPUT_TILE = 16  # covers the six outputs, and what else there are few of
_INPUT_TILE = 16  # covers the six recent numbers and the three of surprise


@triton.jit
def _at(values, index: tl.constexpr, TILE: tl.constexpr):
    """One element of a tile."""
    return tl.sum(tl.where(tl.arange(0, TILE) == index, values, 0.0))


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _moved(x, y, cos, sin, forward, left, turn):
    """A pose after a motion, as `wm_gym.poses.moved`."""
    x, y = x + cos * forward - sin * left, y + sin * forward + cos * left
    turn_cos, turn_sin = tl.cos(turn), tl.sin(turn)
    cos, sin = cos * turn_cos - sin * turn_sin, sin * turn_cos + cos * turn_sin
    scale = tl.rsqrt(tl.maximum(cos * cos + sin * sin, 1e-12))
    return x, y, cos * scale, sin * scale


@triton.jit
def _odometry_scan_kernel(
    hidden,
    out,
    seen,
    has_previous,
    recent,
    pose,
    recur,
    inner,
    inner_bias,
    last,
    last_recent,
    poses,
    new_recent,
    length,
    scale,
    surprise,
    WIDTH: tl.constexpr,
    WIDTH_TILE: tl.constexpr,
    OUTPUTS: tl.constexpr,
    OUTPUT_TILE: tl.constexpr,
    INPUT_TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH_TILE)
    output = tl.arange(0, OUTPUT_TILE)
    wide, told = column < WIDTH, output < OUTPUTS
    number = tl.arange(0, INPUT_TILE)
    kept, used = number < 6, number < 9
    w_recur = tl.load(recur + column[:, None] * 9 + number[None, :], wide[:, None] & used[None, :], 0.0)
    w_inner = tl.load(inner + column[:, None] * WIDTH + column[None, :], wide[:, None] & wide[None, :], 0.0)
    b_inner = tl.load(inner_bias + column, wide, 0.0)
    w_last = tl.load(last + output[:, None] * WIDTH + column[None, :], told[:, None] & wide[None, :], 0.0)
    w_recent = tl.load(last_recent + output[:, None] * 9 + number[None, :], told[:, None] & used[None, :], 0.0)
    now = tl.load(recent + row * 6 + number, kept, 0.0)
    x, y = tl.load(pose + row * 4), tl.load(pose + row * 4 + 1)
    cos, sin = tl.load(pose + row * 4 + 2), tl.load(pose + row * 4 + 3)
    for t in range(length):
        place = row * length + t
        weight = tl.load(has_previous + place)
        was_forward, was_left, was_turn = _at(now, 0, INPUT_TILE), _at(now, 1, INPUT_TILE), _at(now, 2, INPUT_TILE)
        new_forward = (tl.load(seen + place * 3) - was_forward) * weight
        new_left = (tl.load(seen + place * 3 + 1) - was_left) * weight
        new_turn = (tl.load(seen + place * 3 + 2) - was_turn) * weight
        innovation = tl.where(number == 6, new_forward, 0.0)
        innovation = tl.where(number == 7, new_left, innovation)
        innovation = tl.where(number == 8, new_turn, innovation)
        inputs = now * scale + innovation / (tl.abs(innovation) + surprise)
        h = tl.load(hidden + place * WIDTH + column, wide, 0.0) + tl.sum(w_recur * inputs[None, :], axis=1)
        h = h * _sigmoid(h)
        h = tl.sum(w_inner * h[None, :], axis=1) + b_inner
        h = h * _sigmoid(h)
        o = tl.load(out + place * OUTPUTS + output, told, 0.0)
        o += tl.sum(w_last * h[None, :], axis=1) + tl.sum(w_recent * inputs[None, :], axis=1)
        forward = _sigmoid(_at(o, 0, OUTPUT_TILE)) * new_forward
        left = _sigmoid(_at(o, 1, OUTPUT_TILE)) * new_left
        turn = _sigmoid(_at(o, 2, OUTPUT_TILE)) * new_turn
        next_forward, next_left, next_turn = _at(o, 3, OUTPUT_TILE), _at(o, 4, OUTPUT_TILE), _at(o, 5, OUTPUT_TILE)
        # The change is to the motion to this frame; the pose moves by it as seen from the frame.
        led_cos, led_sin = tl.cos(was_turn), tl.sin(was_turn)
        ahead, aside = led_cos * forward + led_sin * left, led_cos * left - led_sin * forward
        x, y, cos, sin = _moved(x, y, cos, sin, ahead, aside, turn)
        x, y, cos, sin = _moved(x, y, cos, sin, next_forward, next_left, next_turn)
        before = tl.where(number == 3, was_forward + forward, 0.0)
        before = tl.where(number == 4, was_left + left, before)
        before = tl.where(number == 5, was_turn + turn, before)
        now = tl.where(number == 0, next_forward, before)
        now = tl.where(number == 1, next_left, now)
        now = tl.where(number == 2, next_turn, now)
        tl.store(poses + place * 4, x)
        tl.store(poses + place * 4 + 1, y)
        tl.store(poses + place * 4 + 2, cos)
        tl.store(poses + place * 4 + 3, sin)
    tl.store(new_recent + row * 6 + number, now, kept)


def odometry_scan(
    hidden: Tensor,
    out: Tensor,
    seen: Tensor,
    has_previous: Tensor,
    recent: Tensor,
    pose: Tensor,
    recur: Tensor,
    inner: Tensor,
    inner_bias: Tensor,
    last: Tensor,
    last_recent: Tensor,
    scale: float,
    surprise: float,
) -> tuple[Tensor, Tensor]:
    """Kernel of :func:`wm_gym.ops.odometry.motions.odometry_scan`."""
    batch, length, width = hidden.shape
    poses, new_recent = hidden.new_empty(batch, length, 4), hidden.new_empty(batch, 6)
    tensors = (hidden, out, seen, has_previous, recent, pose, recur, inner, inner_bias, last, last_recent)
    _odometry_scan_kernel[(batch,)](
        *(tensor.contiguous() for tensor in tensors),
        poses,
        new_recent,
        length,
        scale,
        surprise,
        width,
        next_power_of_two(width),
        out.shape[-1],
        _OUTPUT_TILE,
        _INPUT_TILE,
        num_warps=4,
    )
    return poses, new_recent
