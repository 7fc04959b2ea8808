"""From the figures of all runs to those of the JSON file: means over seeds, differences to the baseline, a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wm_gym.comparison.plots import load_matplotlib
from wm_gym.files import atomic_path
from wm_gym.statistics import Bootstrap

BASELINE = "baseline"
DIGITS = 3
SMOOTHED = 8  # frames of the curves
DEFINITIONS = {
    "kept": "PSNR, dB, of dreamed frames that the context has shown; the model has read all of the context",
    "cleared": "the same, but the model has read the last frames of the context only, as many as its attention sees",
    "difference": "of kept to the baseline with the same seed, in the same walks; mean over seeds",
    "spread": "standard deviation over seeds",
    "low, high": "95% interval over walks, percentile bootstrap",
    "reward_f1": "of rewards told before their frame is seen, from the real frames before it",
    "state_refresh": "of the baseline: memories made anew from the newest frames alone, every so many dreamed ones, by "
    "how many of the dreamed frames enter memory (0: none, 1: all); PSNR from the first refresh on",
}

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""By name of the option, what `training.benchmarks.trials.measure.recall_of` gave for each seed."""


def summary(runs: Runs, refreshes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All figures.

    Args:
        runs: of the baseline and of all options.
        refreshes: for each seed what `training.benchmarks.trials.measure.refresh_of` gave.
    """
    bootstrap = Bootstrap(len(runs[BASELINE][0]["kept"]))
    options = {name: _option(of_seeds, runs[BASELINE], bootstrap) for name, of_seeds in runs.items()}
    options[BASELINE].pop("difference")
    return {
        "definitions": DEFINITIONS,
        "num_parameters": runs[BASELINE][0]["num_parameters"],
        "runs": options,
        "state_refresh": {
            interval: _refresh([one[interval] for one in refreshes], bootstrap) for interval in refreshes[0]
        },
    }


def _option(of_seeds: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]], bootstrap: Bootstrap) -> Any:
    pairs = list(zip(of_seeds, baseline, strict=True))
    return {
        **{memory: _over_seeds([np.mean(one[memory]) for one in of_seeds]) for memory in ("kept", "cleared")},
        "kept_minus_cleared": _over_seeds([np.mean(one["kept"]) - np.mean(one["cleared"]) for one in of_seeds]),
        "reward_f1": _over_seeds([one["reward_f1"] or 0.0 for one in of_seeds]),
        "difference": _difference([(one["kept"], other["kept"]) for one, other in pairs], bootstrap),
    }


def _refresh(of_seeds: Sequence[Mapping[str, Any]], bootstrap: Bootstrap) -> dict[str, Any]:
    names = ("never", "refreshed")
    curves = {f"{name}_per_frame": np.mean([one[f"{name}_per_frame"] for one in of_seeds], 0) for name in names}
    return {
        **{name: _over_seeds([np.mean(one[name]) for one in of_seeds]) for name in names},
        "difference": _difference([(one["refreshed"], one["never"]) for one in of_seeds], bootstrap),
        **{name: curve.round(DIGITS).tolist() for name, curve in curves.items()},
    }


def _over_seeds(values: Sequence[Any]) -> dict[str, Any]:
    spread = np.std(values, ddof=1) if len(values) > 1 else np.nan
    return {
        "value": round(float(np.mean(values)), DIGITS),
        "spread": None if np.isnan(spread) else round(float(spread), DIGITS),
        "per_seed": np.round(values, DIGITS).tolist(),
    }


def _difference(pairs: Sequence[tuple[Sequence[float], Sequence[float]]], bootstrap: Bootstrap) -> dict[str, Any]:
    """Of per-walk figures, pair by pair; one pair for each seed."""
    per_walk = [np.array(one) - np.array(other) for one, other in pairs]
    everything = np.ones((1, len(per_walk[0]), 1), np.bool_)
    estimates = [bootstrap.mean(values[:, None], everything) for values in per_walk]
    ends = {
        end: [
            None if np.isnan(value) else round(float(value), DIGITS)
            for value in (getattr(e, end)[0] for e in estimates)
        ]
        for end in ("low", "high")
    }
    return _over_seeds([values.mean() for values in per_walk]) | ends


def write_plot(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a PNG: the differences of all options, seed by seed, and long dreams with and without refreshes.

    Raises ImportError that says what to install.
    """
    figure = load_matplotlib()(figsize=(11, 3.8), dpi=110)
    left, right = figure.subplots(1, 2)
    options = {name: run["difference"] for name, run in record["runs"].items() if name != BASELINE}
    for row, difference in enumerate(options.values()):
        left.plot(difference["per_seed"], [row] * len(difference["per_seed"]), "o", color="tab:blue", alpha=0.6)
        left.plot([difference["value"]] * 2, [row - 0.25, row + 0.25], color="black")
    left.axvline(0, color="grey", lw=1)
    left.set_yticks(range(len(options)), list(options))
    left.invert_yaxis()
    left.set(xlabel="PSNR of recalled frames less the baseline's, dB; a dot per seed", title="Options of training")
    words = {"0": "none fed back", "1": "all fed back"}
    for (interval, figures), color in zip(record["state_refresh"].items(), ("tab:blue", "tab:orange"), strict=True):
        for name, style in (("never", "-"), ("refreshed", "--")):
            curve = figures[f"{name}_per_frame"]
            label = f"{words[interval]}, {'no refresh' if name == 'never' else 'refreshed'}"
            smooth = np.convolve(curve, np.full(SMOOTHED, 1 / SMOOTHED), "valid")
            right.plot(np.arange(len(smooth)) + SMOOTHED / 2, smooth, style, color=color, label=label, lw=1.4)
    title = f"Refresh every {record['scale']['refresh_steps']} frames"
    right.set(xlabel=f"dreamed frames, mean of {SMOOTHED}", ylabel="PSNR, dB", title=title)
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(True, alpha=0.3)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def print_table(record: Mapping[str, Any]) -> None:
    """The main figures."""
    print(f"{'':>22} {'kept':>7} {'cleared':>8} {'difference':>11} {'spread':>7} {'reward F1':>10}")
    for name, run in record["runs"].items():
        difference = run.get("difference", {"value": 0.0, "spread": run["kept"]["spread"]})
        values = (run["kept"]["value"], run["cleared"]["value"], difference["value"], run["reward_f1"]["value"])
        spread = "-" if difference["spread"] is None else f"{difference['spread']:.2f}"
        print(f"{name:>22} {values[0]:>7.2f} {values[1]:>8.2f} {values[2]:>+11.2f} {spread:>7} {values[3]:>10.3f}")
    for interval, figures in record["state_refresh"].items():
        fed = "none" if interval == "0" else "all"
        print(
            f"state refresh, {fed} fed back: {figures['never']['value']:.2f} dB without, "
            f"{figures['refreshed']['value']:.2f} with, difference {figures['difference']['value']:+.2f}"
        )
