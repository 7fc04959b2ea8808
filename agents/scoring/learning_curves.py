"""How agents learned: what TensorBoard's files of a training seed say, and a plot of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wm_gym.comparison.plots import load_matplotlib
from wm_gym.files import atomic_path

Points = list[tuple[int, float]]  # (step, value)
ROLLOUT_REWARD = "rollout/reward_per_step"  # in TensorBoard
REWARD, LENGTH = "rollout/ep_rew_mean", "rollout/ep_len_mean"
TAGS = (
    ROLLOUT_REWARD,
    REWARD,
    LENGTH,
    "real/return",
    "dream/reward_per_step",
    "train/entropy_loss",
    "train/explained_variance",
)
MOST_POINTS = 60  # of a curve, in the file
COLORS = ("#0b7285", "#c2255c", "#5f3dc4", "#e67700", "#2b8a3e", "#495057")


def read_learning(folder: Path) -> dict[str, Points]:
    """The curves of one training seed from TensorBoard's files, at most `MOST_POINTS` of each, the last one included.

    Args:
        folder: RUN/seed_K of agents.ppo; a run that went on has several files.

    Raises ImportError that says what to install.
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise ImportError("Learning curves are read with TensorBoard: `pip install wm-gym[agents]`.") from error
    curves: dict[str, dict[int, float]] = {}
    for part in sorted((folder / "tensorboard").glob("*")):
        events = EventAccumulator(str(part), size_guidance={"scalars": 0}).Reload()
        for tag in set(TAGS) & set(events.Tags()["scalars"]):
            curves.setdefault(tag, {}).update({one.step: round(one.value, 5) for one in events.Scalars(tag)})
    return {tag: _thinned(sorted(curves[tag].items())) for tag in TAGS if tag in curves}


def reward_per_step(learning: dict[str, Points], window: int = 9) -> Points:
    """Reward per step while an agent learned, a running mean over `window` of the points that were kept.

    Runs that did not write it down have the means over their newest episodes. These stand for all steps where episodes
    are equally long; where a reward ends an episode they favour the lucky ones, so that nothing is given.

    Args:
        learning: of `read_learning`.
        window: points; fewer at both ends.
    """
    points = learning.get(ROLLOUT_REWARD, [])
    lengths = dict(learning.get(LENGTH, ()))
    if not points and len(set(lengths.values())) == 1:
        points = [(step, reward / lengths[step]) for step, reward in learning.get(REWARD, ()) if step in lengths]
    values, half = np.array([value for _, value in points]), window // 2
    return [(step, float(values[max(0, i - half) : i + half + 1].mean())) for i, (step, _) in enumerate(points)]


def between_scores(scores: Sequence[dict[str, Any]]) -> Points:
    """Reward per step in the dreams between two scores, as a line of steps; none where there was no dream."""
    points, begin = [], 0
    for score in scores:
        if (rate := score["dreamed_reward_per_step"]) is not None:
            points += [(begin, rate), (score["timesteps"], rate)]
        begin = score["timesteps"]
    return points


def write_curves(path: Path, record: dict[str, Any]) -> None:
    """Writes a PNG: reward per step while learning, and the scores of every training seed.

    Args:
        path: of the PNG.
        record: of agents.summary.

    Raises ImportError that says what to install.
    """
    figure = load_matplotlib()(figsize=(12, 4.6), dpi=110)
    panels = figure.subplots(1, 2, width_ratios=(1.25, 1))
    colors: dict[str, str] = dict(zip(record["training"], COLORS, strict=False))
    _draw_learning(panels[0], record["training"], colors)
    _draw_scores(panels[1], record, colors)
    for axes in panels:
        axes.grid(True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _draw_learning(axes: Any, training: dict[str, Any], colors: dict[str, str]) -> None:
    """One colour for each run, paler for its further training seeds, with one entry in the legend."""
    for name, run in training.items():
        labels = [
            f"{name}: while it learns {_place(run)}",
            f"{name}: scored in reality, {run['settings']['score_episodes']} episodes",
        ]
        # A run that was only scored at its end has no curve to look at.
        was_followed = any(len(one["scores"]) > 1 for one in run["seeds"].values())
        for index, one in enumerate(run["seeds"].values()):
            style = {"color": colors.get(name, COLORS[-1]), "alpha": 1 - 0.3 * min(index, 2)}
            if points := reward_per_step(one["learning"]) or between_scores(one["scores"]):
                axes.plot(*_columns(points), lw=1.4, label=labels[0], **style)
                labels[0] = "_nolegend_"
            if was_followed and one["scores"]:
                steps = [score["timesteps"] for score in one["scores"]]
                rates = [score["real_return"] / score["real_length"] for score in one["scores"]]
                axes.plot(steps, rates, "o--", lw=0.8, mec="black", label=labels[1], **style)
                labels[1] = "_nolegend_"
    axes.set(xlabel="steps of training", ylabel="reward per step", ylim=(0, 1.3 * axes.get_ylim()[1]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g}M")
    axes.set_title("Learning: reward per step", fontsize=11)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="upper left")


def _place(run: dict[str, Any]) -> str:
    if not run["is_dream"]:
        return "in reality"
    ends = json.loads(run["settings"]["env_kwargs"]).get("end_at_reward", False)
    return "in dreams that end at a reward" if ends else "in dreams"


def _draw_scores(axes: Any, record: dict[str, Any], colors: dict[str, str]) -> None:
    """Each training seed with its interval over episodes, for whole episodes: those as long as the floor's."""
    floor = record["scores"].get(record["floor"])
    rows = [
        (name if model == "policy" else f"{name}, {model}", one, colors.get(name.split(" ")[0], COLORS[-1]))
        for name, score in record["scores"].items()
        if floor is None or score["environment"]["max_episode_steps"] == floor["environment"]["max_episode_steps"]
        for model, one in score["by_model"].items()
    ]
    lows = [one["interval95"][0] if one["interval95"] else one["mean_return"] for _, one, _ in rows]
    smallest = min((low for low in lows if low > 0), default=0.1)
    for y, (_, one, color) in enumerate(rows):
        mean, interval = one["mean_return"], one["interval95"] or [one["mean_return"]] * 2
        axes.plot([max(interval[0], smallest / 2), interval[1]], [y, y], color=color, lw=2)
        axes.plot([max(mean, smallest / 2)], [y], "o", color=color)
        axes.annotate(f"{mean:.2f}", (interval[1], y), xytext=(5, -3), textcoords="offset points", fontsize=8)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize=8)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="real return of an episode (95% interval over episodes)")
    axes.set_title("Scores in reality", fontsize=11)


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _thinned(points: Points) -> Points:
    if len(points) <= MOST_POINTS:
        return points
    kept = np.unique(np.linspace(0, len(points) - 1, MOST_POINTS).round().astype(int))
    return [points[index] for index in kept]
