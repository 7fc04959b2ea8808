"""Plots and film strips of a measurement: ``python -m training.evaluation.pictures JSON...`` draws the plots again."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.evaluation.measure import Recall
from wm_gym.comparison.plots import load_matplotlib
from wm_gym.files import atomic_path
from wm_gym.film import Film, strip_steps, write_strip

COLORS = {"kept": "#0a6ebd", "cleared": "#d1495b", "copy_last": "#8a8f98", "copy_nearest": "#5a9e6f"}
LABELS = {
    "kept": "memory kept",
    "cleared": "memory cleared",
    "copy_last": "repeating the last frame",
    "copy_nearest": "copying the nearest pose",
}
ROW_COLORS = ("#0a6ebd", "#d1495b", "#5a9e6f", "#e08e2b", "#7a5aa6", "#3aa6a6", "#a0522d", "#c2559b")
PANELS = (("by_length", "frames after the context"), ("by_distance", "frames back to the one revisited (seen frames)"))


def write_plots(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a PNG: a row for each metric, over length and over distance, with 95% intervals.

    A last row shows how far told poses are off, if the record says so. Raises ImportError that says what to install.
    """
    names = [name for name, about in record["metrics"].items() if "not_measured" not in about]
    num_rows = len(names) + ("pose_drift" in record)
    figure = load_matplotlib()(figsize=(11, 3.6 * num_rows), dpi=120)
    for row, name in enumerate(names):
        for column, (key, label) in enumerate(PANELS):
            axes = figure.add_subplot(num_rows, 2, 2 * row + column + 1)
            _draw(axes, record["columns"][name], key)
            unit = record["metrics"][name]["unit"]
            axes.set(xlabel=label, ylabel=f"{name.upper()}{', ' + unit if unit else ''}")
            if row == column == 0:
                axes.legend(frameon=False, fontsize=8)
    if "pose_drift" in record:
        for column, unit in enumerate(("cells", "degrees")):
            axes = figure.add_subplot(num_rows, 2, 2 * len(names) + column + 1)
            _draw_drift(axes, record["pose_drift"]["by_steps"], unit)
    figure.suptitle(
        f"{record['protocol']} by {record['conditioning']}: {record['context']} → {record['frames']} frames, "
        f"{len(record['seeds'])} mazes, denoising steps: {record['num_denoising_steps']}, "
        f"each frame after {_context_of(record)}",
        fontsize=11,
    )
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _context_of(record: Mapping[str, Any]) -> str:
    """The frames that a predicted one follows, in words."""
    interval = record.get("feedback_interval", 1)
    if record["feedback"] != "dreamed" or interval == 1:
        return f"{record['feedback']} ones"
    return f"one in {interval} dreamed ones" if interval else "the context alone"


def _draw(axes: Any, columns: Mapping[str, Any], key: str) -> None:
    for name, label in LABELS.items():
        if name not in columns or not columns[name][key]["value"]:
            continue
        _draw_bins(axes, columns[name][key], label, COLORS[name])
    _plain(axes)


def _draw_bins(axes: Any, bins: Mapping[str, Any], label: str, color: str, style: str = "-") -> None:
    x = [(first + last) / 2 for first, last in zip(bins["from"], bins["to"], strict=True)]
    axes.plot(x, bins["value"], style, color=color, label=label, lw=1.6, marker="." if len(x) < 30 else None)
    if None not in bins["low"]:
        axes.fill_between(x, bins["low"], bins["high"], color=color, alpha=0.18, lw=0)


def _draw_drift(axes: Any, drift: Mapping[str, Any], unit: str) -> None:
    for memory, by_step in drift.items():
        steps = [int(step) for step in by_step]
        for quantile, style in (("median", "-"), ("p90", ":")):
            values = [figures[unit][quantile] for figures in by_step.values()]
            axes.plot(steps, values, style, color=COLORS[memory], label=f"{LABELS[memory]}, {quantile}", marker=".")
    axes.set(xlabel="frames after the context", ylabel=f"told pose off by, {unit}")
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.grid(True, alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def write_row_plot(path: Path, table: Mapping[str, Any]) -> None:
    """Writes a PNG of `training.table`: PSNR of all rows over distance and over length, with 95% intervals.

    Raises ImportError that says what to install.
    """
    figure = load_matplotlib()(figsize=(12, 5.2), dpi=120)
    panels = figure.subplots(1, 2)
    for axes, (key, label) in zip(panels, reversed(PANELS), strict=True):
        for index, row in enumerate(table["rows"]):
            _draw_bins(axes, row[f"psnr_{key}"], row["label"], ROW_COLORS[index % len(ROW_COLORS)])
        for row, style in zip(table["references"], (":", "--"), strict=False):
            _draw_bins(axes, row[f"psnr_{key}"], row["label"], COLORS["copy_last"], style)
        axes.set(xlabel=label, ylabel="PSNR, dB")
        _plain(axes)
    panels[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(
        f"{table['protocol']} by {table['conditioning']}: {table['context']} → {table['frames']} frames, "
        f"{sum(last - first + 1 for first, last in table['seeds'])} mazes"
        + "".join(f"; rows differ in {what}" for what in table["unequal"]),
        fontsize=11,
    )
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def write_strips(folder: Path, recall: Recall, num_context: int) -> None:
    """Film strips of the worst, the median and the best maze: FOLDER/worst_kept.png, worst_cleared.png, ...

    All memories show the same mazes, those of the first. Raises ImportError without Pillow.
    """
    order = next(iter(recall.psnr.values())).mean(1).argsort()
    for name, maze in (("worst", order[0]), ("median", order[len(order) // 2]), ("best", order[-1])):
        for memory, dreamed in recall.dreamed.items():
            film = Film(recall.real[maze], dreamed[maze], recall.psnr[memory][maze], ("real", memory))
            assert film.num_context_frames == num_context
            write_strip(folder / f"{name}_{memory}.png", film, strip_steps(dreamed.shape[1]))


def main(paths: Sequence[str]) -> None:
    """Draws the plots of each JSON file beside it."""
    if not paths:
        sys.exit("error: give the JSON files whose plots are to be drawn.")
    for path in map(Path, paths):
        try:
            write_plots(path.with_suffix(".png"), json.loads(path.read_text()))
        except (ImportError, KeyError, OSError, ValueError) as error:
            sys.exit(f"error: {path} cannot be drawn: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
