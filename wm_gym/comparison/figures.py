"""What the records of a comparison add up to: figures of each episode, of each step over all episodes, and tables."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wm_gym.comparison.metrics import RewardAgreement, match_rewards, parting_step, psnr, ssim
from wm_gym.comparison.record import Record

# Ends of the ranges of steps over which the table averages.
HORIZONS = (1, 5, 10, 20, 50, 100, 200, 400, 700, 1000, 2000, 4000)
DECIMALS = 4


@dataclass(frozen=True)
class Criteria:
    """What counts as agreement."""

    tolerance: int  # steps by which a reward may come early or late
    part_psnr: float  # dB
    part_steps: int  # steps in a row below `part_psnr` dB, the first of which is where the two part


@dataclass(frozen=True)
class EpisodeFigures:
    """The figures of one record; arrays have one entry for each of its S steps."""

    record: Record
    psnr: np.ndarray  # dB
    ssim: np.ndarray
    psnr_copy_last: np.ndarray  # dB, of repeating the last context frame
    agreement: RewardAgreement
    parted: int | None  # step, counted from 1


def episode_figures(record: Record, criteria: Criteria) -> EpisodeFigures:
    """Measures one record. Raises ImportError without torchmetrics."""
    real = record.reference_frames[record.num_context_frames :]
    quality = psnr(record.frames, real)
    return EpisodeFigures(
        record,
        quality,
        ssim(record.frames, real),
        psnr(record.reference_frames[record.num_context_frames - 1], real),
        match_rewards(record.reference_rewards, record.rewards, criteria.tolerance),
        parting_step(quality, criteria.part_psnr, criteria.part_steps),
    )


def step_table(episodes: Sequence[EpisodeFigures]) -> Any:
    """A pandas DataFrame with a row for each step of each seed, steps counted from 1. Raises ImportError."""
    pandas = load_pandas()
    frames = []
    for episode in episodes:
        record = episode.record
        actions = record.actions[record.num_context_frames - 1 :]
        columns = {
            "seed": record.seed,
            "step": np.arange(1, record.num_steps + 1),
            "action": actions if actions.ndim == 1 else [" ".join(f"{x:g}" for x in action) for action in actions],
            "reward_reference": record.reference_rewards,
            "reward": record.rewards,
            "psnr": episode.psnr.round(DECIMALS),
            "ssim": episode.ssim.round(DECIMALS),
            "psnr_copy_last": episode.psnr_copy_last.round(DECIMALS),
        }
        frames.append(pandas.DataFrame(columns))
    return pandas.concat(frames, ignore_index=True)


def episode_table(episodes: Sequence[EpisodeFigures]) -> Any:
    """A pandas DataFrame with a row for each seed. Raises ImportError."""
    return load_pandas().DataFrame([_episode_row(episode) for episode in episodes])


def horizon_table(episodes: Sequence[EpisodeFigures]) -> Any:
    """A pandas DataFrame: means over ranges of steps, and how the seeds' own means spread (standard deviation)."""
    rows = []
    longest = max(episode.record.num_steps for episode in episodes)
    ends = [end for end in HORIZONS if end < longest] + [longest]
    for start, end in itertools.pairwise([0, *ends]):
        parts = [episode for episode in episodes if episode.record.num_steps > start]
        means = {
            name: np.array([getattr(episode, name)[start:end].mean() for episode in parts])
            for name in ("psnr", "ssim", "psnr_copy_last")
        }
        rows.append(
            {
                "steps": str(end) if end == start + 1 else f"{start + 1}-{end}",
                "seeds": len(parts),
                "psnr": means["psnr"].mean(),
                "psnr_std": means["psnr"].std(),
                "psnr_copy_last": means["psnr_copy_last"].mean(),
                "ssim": means["ssim"].mean(),
                "ssim_std": means["ssim"].std(),
            }
        )
    return load_pandas().DataFrame(rows).round(DECIMALS)


def curves(episodes: Sequence[EpisodeFigures]) -> dict[str, Any]:
    """For each step (the first is 1) mean, standard deviation and range over the seeds that got so far, as lists."""
    longest = max(episode.record.num_steps for episode in episodes)
    result: dict[str, Any] = {"num_seeds": [sum(e.record.num_steps > t for e in episodes) for t in range(longest)]}
    for name in ("psnr", "ssim", "psnr_copy_last"):
        rows = np.full((len(episodes), longest), np.nan)
        for row, episode in zip(rows, episodes, strict=True):
            row[: episode.record.num_steps] = getattr(episode, name)
        if np.isnan(rows).all():
            continue
        statistics = {"mean": np.nanmean, "std": np.nanstd, "min": np.nanmin, "max": np.nanmax}
        result[name] = {key: function(rows, axis=0).round(DECIMALS).tolist() for key, function in statistics.items()}
    return result


def summary(episodes: Sequence[EpisodeFigures]) -> dict[str, Any]:
    """The figures of the whole comparison, as JSON types; None where a figure is not defined."""
    hits = sum(len(episode.agreement.hits) for episode in episodes)
    misses = sum(len(episode.agreement.misses) for episode in episodes)
    false_alarms = sum(len(episode.agreement.false_alarms) for episode in episodes)
    records = [episode.record for episode in episodes]
    parted = [episode.parted for episode in episodes if episode.parted is not None]
    # An episode that does not part counts as one that parts after all others.
    parting = sorted(np.inf if episode.parted is None else float(episode.parted) for episode in episodes)
    median = parting[(len(parting) - 1) // 2]
    num_steps = sum(record.num_steps for record in records)
    seconds = sum(record.seconds for record in records), sum(record.reference_seconds for record in records)
    return {
        "num_seeds": len(episodes),
        "num_steps": num_steps,
        "psnr": _mean(np.array([episode.psnr.mean() for episode in episodes])),
        "psnr_std": _std(np.array([episode.psnr.mean() for episode in episodes])),
        "psnr_first_step": _mean(np.array([episode.psnr[0] for episode in episodes])),
        "psnr_copy_last": _mean(np.array([episode.psnr_copy_last.mean() for episode in episodes])),
        "ssim": _mean(np.array([episode.ssim.mean() for episode in episodes])),
        "ssim_std": _std(np.array([episode.ssim.mean() for episode in episodes])),
        "reward_hits": hits,
        "reward_misses": misses,
        "reward_false_alarms": false_alarms,
        "reward_precision": round(hits / (hits + false_alarms), DECIMALS) if hits + false_alarms else None,
        "reward_recall": round(hits / (hits + misses), DECIMALS) if hits + misses else None,
        "return": _mean(np.array([record.rewards.sum() for record in records])),
        "return_reference": _mean(np.array([record.reference_rewards.sum() for record in records])),
        "num_parted": len(parted),
        "median_parting_step": None if np.isinf(median) else int(median),
        "steps_per_second": round(num_steps / max(seconds[0], 1e-9), 2),
        "steps_per_second_reference": round(num_steps / max(seconds[1], 1e-9), 2),
    }


def ranked(episodes: Sequence[EpisodeFigures], count: int) -> list[tuple[str, EpisodeFigures]]:
    """Up to `count` episodes that stand for all, from the best mean PSNR to the worst, each with its rank in words.

    One is the median; more are spread evenly over the ranking.
    """
    order = sorted(episodes, key=lambda episode: -float(episode.psnr.mean()))
    count = min(count, len(order))
    if count == 1:
        chosen = [(len(order) - 1) // 2]
    else:
        chosen = sorted({int(x + 1e-9) for x in np.linspace(0, len(order) - 1, count)})
    names = {0: "best", len(order) - 1: "worst", (len(order) - 1) // 2: "median"} if len(order) > 2 else {}
    return [(names.get(rank, f"{rank + 1} of {len(order)}"), order[rank]) for rank in chosen]


def load_pandas() -> Any:
    """The pandas module. Raises ImportError that says what to install."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("The tables of a comparison need pandas: `pip install wm-gym[compare]`.") from error
    return pandas


def _episode_row(episode: EpisodeFigures) -> dict[str, Any]:
    record, agreement = episode.record, episode.agreement
    return {
        "seed": record.seed,
        "steps": record.num_steps,
        "psnr": _mean(episode.psnr),
        "ssim": _mean(episode.ssim),
        "psnr_copy_last": _mean(episode.psnr_copy_last),
        "parted": episode.parted,
        "return_reference": float(record.reference_rewards.sum()),
        "return": float(record.rewards.sum()),
        "hits": len(agreement.hits),
        "misses": len(agreement.misses),
        "false_alarms": len(agreement.false_alarms),
        "end_reference": record.reference_end,
        "end": record.end,
    }


def _mean(values: np.ndarray) -> float | None:
    return None if np.isnan(values).any() else round(float(values.mean()), DECIMALS)


def _std(values: np.ndarray) -> float | None:
    return None if np.isnan(values).any() else round(float(values.std()), DECIMALS)
