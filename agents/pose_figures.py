"""Where dreams take themselves to be, held against where the same actions really led; and whether walls are open.

In dreams no frame corrects odometry: only what it has learned of motion keeps a dreamed agent from walking on where a
wall stops the real one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from agents.dream_rows import Dreamed
from agents.real_episodes import Replayed
from agents.results import Result, proportion95
from wm_gym.policies import FORWARD, FORWARD_LEFT, FORWARD_RIGHT
from wm_gym.poses import drift_steps, motion_between, motion_sizes, relative_to_first, size_quantiles

# In Memory Maze a free step leads 0.25 cells on, the first one from rest 0.08 to 0.11, a turning one 0.2, one into a
# wall 0.001: a tenth of the free way tells the last of these from the others.
FREE_QUANTILE = 0.9
BLOCKED, MOVED_ON = 0.1, 0.5  # of the free way
DEFINITIONS = {
    "pose_drift": "between the dreamed pose and the real one after so many steps, both seen from the first frame of "
    "the context; quantiles over episodes, 0: the end of the context",
    "walls": f"free speed: the {FREE_QUANTILE:.0%} quantile of the cells that an episode's real forward steps lead on, "
    f"its context's among them. blocked: dreamed forward actions that in reality lead less than {BLOCKED:g} of it; "
    f"moved_on: those of them that in the dream lead more than {MOVED_ON:g} of it",
}


def forward_actions(given: Sequence[int] | None, space: gym.Space[Any]) -> tuple[int, ...]:
    """Actions that ask the agent to walk on: those given, else those of Memory Maze where there are six; () if unknown.

    Raises ValueError for an action that is not in the space, or for a space that is not discrete.
    """
    if given is None:
        is_maze = isinstance(space, gym.spaces.Discrete) and space.n == 6
        return (FORWARD, FORWARD_LEFT, FORWARD_RIGHT) if is_maze else ()
    if not isinstance(space, gym.spaces.Discrete) or not all(space.contains(action) for action in given):
        raise ValueError(f"forward_actions are discrete actions; {list(given)} are given, and actions are of {space}.")
    return tuple(given)


def pose_result(replayed: Replayed, dreamed: Dreamed, forward: Sequence[int]) -> Result | None:
    """What the figures need of an episode, as JSON types; None unless both sides tell poses.

    Only steps that both took count.

    Args:
        replayed, dreamed: one episode, of one context of C frames.
        forward: of `forward_actions`.
    """
    if replayed.poses is None or dreamed.poses is None:
        return None
    record = replayed.record
    last = record.num_context_frames - 1
    real = relative_to_first(torch.from_numpy(replayed.poses).double())
    num_steps = len(real) - 1 - last
    told = torch.from_numpy(dreamed.poses).double()[: num_steps + 1]
    off = motion_sizes(motion_between(real[last:], told))
    return {
        "drift": [[step, *(round(size, 4) for size in off[step].tolist())] for step in drift_steps(num_steps)],
        "walls": _walls(record.actions[: len(real) - 1], real, told, forward) if forward else None,
    }


def _walls(actions: np.ndarray, real: Tensor, told: Tensor, forward: Sequence[int]) -> dict[str, Any]:
    """Counts of one episode: `actions` lead from each of the `real` poses to the next, and `told` end with them."""
    is_forward = torch.from_numpy(np.isin(actions, forward))
    walked, dreamed = (_lengths(poses) for poses in (real, told))
    if not is_forward.any():
        return {"free_speed": None, "forward_steps": 0, "blocked": 0, "moved_on": 0}
    free = float(torch.quantile(walked[is_forward], FREE_QUANTILE))
    begin = len(walked) - len(dreamed)
    blocked = is_forward[begin:] & (walked[begin:] < BLOCKED * free)
    return {
        "free_speed": round(free, 4),
        "forward_steps": int(is_forward[begin:].sum()),
        "blocked": int(blocked.sum()),
        "moved_on": int((blocked & (dreamed > MOVED_ON * free)).sum()),
    }


def _lengths(poses: Tensor) -> Tensor:
    """Of the ways from each of the poses ``[T, 4]`` to the next."""
    return (poses[1:, :2] - poses[:-1, :2]).norm(dim=-1)


def pose_figures(results: Sequence[Result]) -> dict[str, Any]:
    """Figures over episodes of `pose_result`, as JSON types; {} without any."""
    if not results:
        return {}
    by_step: dict[int, list[list[float]]] = {}
    for result in results:
        for step, *sizes in result["drift"]:
            by_step.setdefault(step, []).append(sizes)
    drift = {
        str(step): {"episodes": len(sizes), **size_quantiles(torch.tensor(sizes))}
        for step, sizes in sorted(by_step.items())
    }
    walls = [result["walls"] for result in results if result["walls"] is not None]
    return {"pose_drift": drift, "walls": _wall_figures(walls) if walls else None}


def _wall_figures(walls: Sequence[dict[str, Any]]) -> dict[str, Any]:
    forward, blocked, moved_on = ([one[name] for one in walls] for name in ("forward_steps", "blocked", "moved_on"))
    speeds = [one["free_speed"] for one in walls if one["free_speed"] is not None]
    return {
        "free_speed": round(float(np.median(speeds)), 4) if speeds else None,
        "forward_steps": sum(forward),
        "blocked": sum(blocked),
        "blocked_share": sum(blocked) / sum(forward) if sum(forward) else None,
        "blocked_share_interval95": proportion95(blocked, forward),
        "moved_on": sum(moved_on),
        "moved_on_share": sum(moved_on) / sum(blocked) if sum(blocked) else None,
        "moved_on_share_interval95": proportion95(moved_on, blocked),
    }


def pose_lines(figures: dict[str, Any]) -> list[str]:
    """The figures as lines of text; none if there are no poses."""
    if "pose_drift" not in figures:
        return []
    drift = ", ".join(
        f"{step}: {of['cells']['median']:.2f} cells {of['degrees']['median']:.1f}\N{DEGREE SIGN}"
        for step, of in figures["pose_drift"].items()
    )
    lines = [f"  dreamed pose off by (median) after steps {drift}"]
    walls = figures["walls"]
    if walls is not None and walls["blocked_share"] is not None:
        moved_on = "" if walls["moved_on_share"] is None else f", the dream moves on in {walls['moved_on_share']:.0%}"
        lines.append(f"  walls stop {walls['blocked_share']:.0%} of the forward steps in reality{moved_on} of these")
    return lines
