"""Where dreams take themselves to be, held against where the same actions really led; and whether walls are open.

In dreams no frame corrects odometry: only what it has learned of motion keeps a dreamed agent from walking on where a
wall stops the real one. Once it has, reality stays at that wall and the dream is elsewhere: what walls do is told by
the steps that both begin at the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from agents.scoring.dreamed_episodes import Dreamed
from agents.scoring.real_episodes import Replayed
from agents.scoring.results import Result
from wm_gym.policies.base import FORWARD, FORWARD_LEFT, FORWARD_RIGHT
from wm_gym.poses import drift_steps, motion_between, motion_sizes, relative_to_first, size_quantiles
from wm_gym.statistics import proportion95

# In Memory Maze a free step leads 0.25 cells on, the first one from rest 0.08 to 0.11, a turning one 0.2, one into a
# wall 0.001: a tenth of the free way tells the last of these from the others.
FREE_QUANTILE = 0.9
BLOCKED, MOVED_ON = 0.1, 0.5  # of the free way
# A free step and a half action of turning: more than odometry is off by while it reads real frames, less than walls
# set right or wrong.
AGREED_CELLS, AGREED_DEGREES = 0.25, 15.0
# A dream that agrees may still stand a step behind and have that step to go; one that goes on for more than two of four
# has no wall before it.
PRESS_STEPS, OPENED = 4, 2.0  # the latter in free ways
COUNTS = ("forward_steps", "blocked", "moved_on")
TOGETHER = ("blocked_together", "moved_on_together", "free_together", "stopped_together", "presses", "opened")
DEFINITIONS = {
    "pose_drift": "between the dreamed pose and the real one after so many steps, both seen from the first frame of "
    "the context; quantiles over episodes, 0: the end of the context",
    "walls": f"free speed: the {FREE_QUANTILE:.0%} quantile of the cells that an episode's real forward steps lead on, "
    f"its context's among them. blocked: dreamed forward actions that in reality lead less than {BLOCKED:g} of it; "
    f"moved_on: those of them that in the dream lead more than {MOVED_ON:g} of it. After the first of these dream and "
    "reality stand at different places and every later one counts too, hence the figures of steps taken together: "
    f"dreamed and real pose agree before them, seen from the first frame of the context, within {AGREED_CELLS:g} cells "
    f"and {AGREED_DEGREES:g} degrees. blocked_together, moved_on_together: likewise, of those. free_together: forward "
    f"actions that in reality lead more than {MOVED_ON:g} of the free speed; stopped_together: those of them that in "
    f"the dream lead less than {BLOCKED:g} of it. presses: {PRESS_STEPS} blocked forward actions in a row, the first "
    f"of the row and taken together; opened: those in which the dream goes further than {OPENED:g} free steps, so that "
    "it can not have been some way short of the wall",
    "parted": "the first step after which dreamed and real pose do not agree, as for walls, 0: at the end of the "
    "context; median: over all episodes, None where most never part; never_share: of episodes that agree throughout",
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
    agreed = (off[:, 0] <= AGREED_CELLS) & (off[:, 1] <= AGREED_DEGREES)
    return {
        "drift": [[step, *(round(size, 4) for size in off[step].tolist())] for step in drift_steps(num_steps)],
        "agreed": _runs(agreed),
        "parted": None if agreed.all() else int((~agreed).nonzero()[0]),
        "walls": _walls(record.actions[: len(real) - 1], real, told, agreed[:-1], forward) if forward else None,
    }


def agreed_after(where: Result, step: int) -> bool:
    """Whether the dreamed pose agreed with the real one after so many steps; `where` is of `pose_result`."""
    return any(first <= step < last for first, last in where["agreed"])


def _runs(mask: Tensor) -> list[list[int]]:
    """[first, last] of the stretches that are True; `last` is not included."""
    edges = np.flatnonzero(np.diff(mask.numpy().astype(np.int8), prepend=0, append=0))
    return edges.reshape(-1, 2).tolist()


def _walls(actions: np.ndarray, real: Tensor, told: Tensor, agreed: Tensor, forward: Sequence[int]) -> dict[str, Any]:
    """Counts of one episode: `actions` lead from each of the `real` poses to the next, and `told` end with them.

    `agreed` [S] says whether both stood at the same place before each of the S dreamed steps.
    """
    is_forward = torch.from_numpy(np.isin(actions, forward))
    walked, dreamed = (_lengths(poses) for poses in (real, told))
    if not is_forward.any():
        return {"free_speed": None, **dict.fromkeys((*COUNTS, *TOGETHER), 0)}
    free = float(torch.quantile(walked[is_forward], FREE_QUANTILE))
    begin = len(walked) - len(dreamed)
    is_forward, walked = is_forward[begin:], walked[begin:]
    blocked = is_forward & (walked < BLOCKED * free)
    moved_on = blocked & (dreamed > MOVED_ON * free)
    is_free = is_forward & (walked > MOVED_ON * free) & agreed
    presses = [
        float(dreamed[first : first + PRESS_STEPS].sum()) > OPENED * free
        for first, last in _runs(blocked)
        if last - first >= PRESS_STEPS and agreed[first]
    ]
    found = {
        "forward_steps": is_forward,
        "blocked": blocked,
        "moved_on": moved_on,
        "blocked_together": blocked & agreed,
        "moved_on_together": moved_on & agreed,
        "free_together": is_free,
        "stopped_together": is_free & (dreamed < BLOCKED * free),
    }
    counts = {name: int(steps.sum()) for name, steps in found.items()}
    return {"free_speed": round(free, 4), **counts, "presses": len(presses), "opened": sum(presses)}


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
    # Results that were kept by earlier versions do not tell where both agree.
    parted = [result["parted"] for result in results if "parted" in result]
    return {
        "pose_drift": drift,
        "parted": _parted(parted) if parted else None,
        "walls": _wall_figures(walls) if walls else None,
    }


def _parted(steps: Sequence[int | None]) -> dict[str, Any]:
    never = [step is None for step in steps]
    median = float(np.median([np.inf if step is None else step for step in steps]))
    return {
        "episodes": len(steps),
        "median": median if np.isfinite(median) else None,
        "never": sum(never),
        "never_share": sum(never) / len(never),
        "never_share_interval95": proportion95(never, [1] * len(never)),
    }


def _wall_figures(walls: Sequence[dict[str, Any]]) -> dict[str, Any]:
    speeds = [one["free_speed"] for one in walls if one["free_speed"] is not None]
    together = [one for one in walls if TOGETHER[0] in one]
    return {
        "free_speed": round(float(np.median(speeds)), 4) if speeds else None,
        "forward_steps": sum(one["forward_steps"] for one in walls),
        **_share(walls, "blocked", "forward_steps"),
        **_share(walls, "moved_on", "blocked"),
        "blocked_together": sum(one["blocked_together"] for one in together),
        **_share(together, "moved_on_together", "blocked_together"),
        "free_together": sum(one["free_together"] for one in together),
        **_share(together, "stopped_together", "free_together"),
        "presses": sum(one["presses"] for one in together),
        **_share(together, "opened", "presses"),
    }


def _share(walls: Sequence[dict[str, Any]], part: str, whole: str) -> dict[str, Any]:
    """How many, and which share of the whole they are."""
    parts, wholes = ([one[name] for one in walls] for name in (part, whole))
    return {
        part: sum(parts),
        f"{part}_share": sum(parts) / sum(wholes) if sum(wholes) else None,
        f"{part}_share_interval95": proportion95(parts, wholes),
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
    if (parted := figures["parted"]) is not None:
        step = "never" if parted["median"] is None else f"{parted['median']:g}"
        lines.append(f"  it parts from the real one at step (median) {step}, in {parted['never_share']:.0%} never")
    walls = figures["walls"]
    if walls is not None and walls["blocked_share"] is not None:
        moved_on = "" if walls["moved_on_share"] is None else f", the dream moves on in {walls['moved_on_share']:.0%}"
        lines.append(f"  walls stop {walls['blocked_share']:.0%} of the forward steps in reality{moved_on} of these")
        names = {
            "moved_on_together": "of {blocked_together} blocked steps from one place the dream moves on in",
            "stopped_together": "of {free_together} free ones it is stopped in",
            "opened": "of {presses} presses against a wall it goes through in",
        }
        told = [
            f"{text.format(**walls)} {walls[f'{name}_share']:.0%}"
            for name, text in names.items()
            if walls[f"{name}_share"] is not None
        ]
        lines += ["  " + ", ".join(told)] if told else []
    return lines
