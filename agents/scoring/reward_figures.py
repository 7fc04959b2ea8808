"""How far dreamed rewards can be trusted: precision, recall, and the marks of a policy that exploits its model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from agents.scoring.pose_figures import agreed_after, pose_figures
from agents.scoring.results import Result, gap
from wm_gym.comparison.metrics import RewardAgreement, match_rewards, psnr
from wm_gym.comparison.record import Record
from wm_gym.statistics import interval95, proportion95

# Ends of the ranges of dreamed steps that are looked at apart: dreams get worse as they age.
RANGE_ENDS = (10, 25, 50, 100, 200, 400, 700, 1000, 2000)
THRESHOLDS = (0.1, 0.25, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # of the reward head
LEAST_LIKELY = 0.02  # less probable rewards are not kept


def episode_result(record: Record, acted: np.ndarray, likely: np.ndarray | None, where: Result | None = None) -> Result:
    """What the figures need of an episode in which the dream is the environment under test, as JSON types.

    Args:
        record: of S steps.
        acted: rewards [S] of the policy itself in the real environment, from the same context.
        likely: as of `agents.scoring.dreamed_episodes.Dreamed`, at least [S, 2]; None where another threshold would
        have
            led to another dream.
        where: of `agents.scoring.pose_figures.pose_result`, if poses are told on both sides.
    """
    real_frames = record.reference_frames[record.num_context_frames :]
    quality = psnr(record.frames, real_frames)
    return {
        "seed": record.seed,
        "steps": record.num_steps,
        "dream_end": record.end,
        "real_end": record.reference_end,
        "dreamed": _sparse(record.rewards),
        "real": _sparse(record.reference_rewards),
        "acted": _sparse(acted),
        "psnr": [round(float(quality[first:last].mean()), 2) for first, last in ranges(record.num_steps)],
        **({} if likely is None else {"likely": _likely(likely[: record.num_steps])}),
        **({} if where is None else {"where": where}),
    }


def reward_figures(results: Sequence[Result], tolerance: int) -> dict[str, Any]:
    """Figures over episodes, as JSON types; None where a figure is not defined.

    Where chance decides what comes after a reward (Memory Maze draws the next target), dream and reality may part there
    with neither of them wrong, and what is dreamed later need not be real: `first_precision` looks at the first dreamed
    reward of each episode alone.

    Args:
        results: of `episode_result`, one at least.
        tolerance: steps by which a dreamed reward may come early or late and still be backed by a real one.
    """
    dreamed, real = ([_dense(result[side], result["steps"]) for result in results] for side in ("dreamed", "real"))
    matches = [match_rewards(there, here, tolerance) for there, here in zip(real, dreamed, strict=True)]
    returns = [[float(rewards.sum()) for rewards in side] for side in (dreamed, real)]
    means = [math.fsum(side) / len(results) for side in returns]
    return {
        "episodes": len(results),
        "steps": sum(result["steps"] for result in results),
        **_agreement(matches),
        **_first(matches),
        "dreamed_return": means[0],
        "dreamed_return_interval95": interval95(returns[0]),
        "real_return": means[1],
        "real_return_interval95": interval95(returns[1]),
        "gap": gap(*means),
        "return_ratio": means[0] / means[1] if means[1] else None,
        **_acted(results),
        "most_unbacked_in_a_row": max(map(_unbacked_in_a_row, matches)),
        "longest_dreamed_run": max(map(_longest_run, dreamed)),
        "longest_real_run": max(map(_longest_run, real)),
        "by_range": _by_range(results, matches),
        "by_threshold": _by_threshold(results, tolerance),
        **_together(results, matches),
        **pose_figures([result["where"] for result in results if "where" in result]),
    }


def ranges(num_steps: int) -> list[tuple[int, int]]:
    """(first, last) of the ranges that `num_steps` steps reach into; the first step is 0, `last` is not included."""
    ends = [end for end in RANGE_ENDS if end < num_steps] + [num_steps]
    return list(itertools.pairwise([0, *ends]))


def _agreement(matches: Sequence[RewardAgreement]) -> dict[str, Any]:
    hits, misses, alarms = (
        [len(getattr(match, name)) for match in matches] for name in ("hits", "misses", "false_alarms")
    )
    dreamed = [hit + alarm for hit, alarm in zip(hits, alarms, strict=True)]
    real = [hit + miss for hit, miss in zip(hits, misses, strict=True)]
    return {
        "dreamed_rewards": sum(dreamed),
        "real_rewards": sum(real),
        "hits": sum(hits),
        "precision": sum(hits) / sum(dreamed) if sum(dreamed) else None,
        "precision_interval95": proportion95(hits, dreamed),
        "recall": sum(hits) / sum(real) if sum(real) else None,
        "recall_interval95": proportion95(hits, real),
        "unbacked_share": sum(alarms) / sum(dreamed) if sum(dreamed) else None,
    }


def _first(matches: Sequence[RewardAgreement]) -> dict[str, Any]:
    """Whether the first reward that an episode dreams is a real one."""
    backed = []
    for match in matches:
        dreamed = [(step, 1) for _, step in match.hits] + [(step, 0) for step in match.false_alarms]
        if dreamed:
            backed.append(min(dreamed)[1])
    return {
        "episodes_with_dreamed_rewards": len(backed),
        "first_precision": sum(backed) / len(backed) if backed else None,
        "first_precision_interval95": proportion95(backed, [1] * len(backed)),
    }


def _together(results: Sequence[Result], matches: Sequence[RewardAgreement]) -> dict[str, Any]:
    """Dreamed rewards that come where the dream still stands where the real agent does; {} unless that is known."""
    known = [
        (one["where"], match) for one, match in zip(results, matches, strict=True) if "agreed" in one.get("where", {})
    ]
    if not known:
        return {}
    # Steps of a match count from 0; what comes with step i comes after i + 1 steps.
    hits = [sum(agreed_after(where, dreamed + 1) for _, dreamed in match.hits) for where, match in known]
    alarms = [sum(agreed_after(where, step + 1) for step in match.false_alarms) for where, match in known]
    dreamed = [hit + alarm for hit, alarm in zip(hits, alarms, strict=True)]
    together = {
        "dreamed_rewards": sum(dreamed),
        "precision": sum(hits) / sum(dreamed) if sum(dreamed) else None,
        "precision_interval95": proportion95(hits, dreamed),
    }
    return {"rewards_together": together}


def _acted(results: Sequence[Result]) -> dict[str, Any]:
    """The gap between the returns of the policy in dreams and in reality, where it acts in both from the same contexts.

    `acted_first_gap` is that of episodes which end at the first reward other than 0, so that what chance decides after
    it does not matter. Of the episodes for which both are known: results that were kept by earlier versions have one.
    """
    both = [(one["dreamed"], one["acted"]) for one in results if "acted" in one]
    if not both:
        return dict.fromkeys(("acted_return", "acted_return_interval95", "acted_gap", "acted_first_gap"))
    dreamed, acted = ([math.fsum(reward for _, reward in one) for one in side] for side in zip(*both, strict=True))
    firsts = [math.fsum(one[0][1] for one in side if one) for side in zip(*both, strict=True)]
    return {
        "acted_return": math.fsum(acted) / len(both),
        "acted_return_interval95": interval95(acted),
        "acted_gap": gap(math.fsum(dreamed) / len(both), math.fsum(acted) / len(both)),
        "acted_first_gap": gap(firsts[0] / len(both), firsts[1] / len(both)),
    }


def _by_threshold(results: Sequence[Result], tolerance: int) -> list[dict[str, Any]]:
    """What the same dreams would have rewarded had the head been believed from another probability on.

    Frames do not depend on rewards, so these are the figures of other thresholds, as long as no reward ends a dream.
    [] if that is not known of every episode.
    """
    if not all("likely" in one for one in results):
        return []
    rows = []
    for threshold in THRESHOLDS:
        believed = [
            {
                **one,
                "dreamed": [[step, reward] for step, reward, probability in one["likely"] if probability > threshold],
            }
            for one in results
        ]
        dreamed, real = ([_dense(one[side], one["steps"]) for one in believed] for side in ("dreamed", "real"))
        matches = [match_rewards(there, here, tolerance) for there, here in zip(real, dreamed, strict=True)]
        agreement, first, acted = _agreement(matches), _first(matches), _acted(believed)
        rows.append(
            {
                "threshold": threshold,
                **{key: agreement[key] for key in ("dreamed_rewards", "hits", "precision", "recall")},
                "first_precision": first["first_precision"],
                "dreamed_return": sum(float(rewards.sum()) for rewards in dreamed) / len(results),
                **{key: acted[key] for key in ("acted_gap", "acted_first_gap")},
            }
        )
    return rows


def _by_range(results: Sequence[Result], matches: Sequence[RewardAgreement]) -> list[dict[str, Any]]:
    """A match counts for precision at its dreamed step and for recall at its real one, to each range its own."""
    rows = []
    for index, (first, last) in enumerate(ranges(max(result["steps"] for result in results))):
        inside = [
            {
                "backed": sum(first <= dreamed < last for _, dreamed in match.hits),
                "unbacked": sum(first <= step < last for step in match.false_alarms),
                "found": sum(first <= real < last for real, _ in match.hits),
                "missed": sum(first <= step < last for step in match.misses),
            }
            for match in matches
        ]
        backed, unbacked, found, missed = (
            sum(one[name] for one in inside) for name in ("backed", "unbacked", "found", "missed")
        )
        qualities = [result["psnr"][index] for result in results if result["steps"] > first]
        rows.append(
            {
                "steps": f"{first + 1}-{last}",
                "dreamed_rewards": backed + unbacked,
                "real_rewards": found + missed,
                "precision": backed / (backed + unbacked) if backed + unbacked else None,
                "recall": found / (found + missed) if found + missed else None,
                "psnr": round(math.fsum(qualities) / len(qualities), 2),
            }
        )
    return rows


def _unbacked_in_a_row(match: RewardAgreement) -> int:
    """The most dreamed rewards that no real one backs, with no backed one between them."""
    events = sorted([(step, True) for step in match.false_alarms] + [(dreamed, False) for _, dreamed in match.hits])
    return max((len(list(group)) for wrong, group in itertools.groupby(events, lambda one: one[1]) if wrong), default=0)


def _longest_run(rewards: np.ndarray) -> int:
    """The most steps in a row that each bring a reward."""
    return max((len(list(group)) for is_reward, group in itertools.groupby(rewards != 0) if is_reward), default=0)


def _sparse(rewards: np.ndarray) -> list[list[float]]:
    """(step, reward) of all rewards other than 0; the first step is 1."""
    return [[int(step) + 1, float(rewards[step])] for step in np.flatnonzero(rewards)]


def _likely(likely: np.ndarray) -> list[list[float]]:
    """(step, reward, probability) where a reward other than 0 is not quite out of the question; the first step is 1."""
    steps = np.flatnonzero(likely[:, 1] > LEAST_LIKELY)
    return [[int(step) + 1, float(likely[step, 0]), round(float(likely[step, 1]), 4)] for step in steps]


def _dense(events: Sequence[Sequence[float]], num_steps: int) -> np.ndarray:
    rewards = np.zeros(num_steps)
    for step, reward in events:
        rewards[int(step) - 1] = reward
    return rewards
