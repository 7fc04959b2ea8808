"""Plots of a comparison; the only place that imports matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wm_gym.comparison.figures import EpisodeFigures, curves
from wm_gym.film import ACCENT, BACKGROUND, MUTED, TEXT, pillow

HIT = (94, 210, 160)
FALSE_ALARM = (255, 92, 104)
GRID = (44, 49, 60)
DPI = 100
MAX_RASTER_ROWS = 40


def quality_figure(
    episodes: Sequence[EpisodeFigures], part_psnr: float, name_under_test: str, size: tuple[float, float]
) -> Any:
    """A matplotlib figure: PSNR and, where it is defined, SSIM by step; mean, spread and range over the seeds.

    Args:
        episodes: one or more.
        part_psnr: dB, drawn as a line.
        name_under_test: of the curve.
        size: width and height in inches of 100 pixels.
    """
    data = curves(episodes)
    names = [name for name in ("psnr", "ssim") if name in data]
    figure = _new_figure(size)
    for position, name in enumerate(names, start=1):
        axes = figure.add_subplot(1, len(names), position)
        _draw_curve(axes, data[name], name_under_test, len(episodes))
        if name == "psnr":
            copied = np.array(data["psnr_copy_last"]["mean"])
            axes.plot(np.arange(1, len(copied) + 1), copied, color=_hex(MUTED), lw=1.4, ls="--", label="still picture")
            axes.axhline(part_psnr, color=_hex(MUTED), lw=0.8, ls=":")
            axes.legend(frameon=False, labelcolor=_hex(MUTED), fontsize=10, loc="upper right")
        axes.set_title("PSNR, dB" if name == "psnr" else "SSIM", loc="left", color=_hex(TEXT), fontsize=12)
    figure.tight_layout()
    return figure


def reward_figure(episodes: Sequence[EpisodeFigures], names: tuple[str, str], width: float) -> Any | None:
    """A matplotlib figure: a line for each seed with all rewards of both sides; None if there are no rewards."""
    shown = episodes[:MAX_RASTER_ROWS]
    if not any(np.any(e.record.rewards) or np.any(e.record.reference_rewards) for e in shown):
        return None
    figure = _new_figure((width, 1.0 + 0.34 * len(shown)))
    axes = figure.add_subplot()
    _style(axes)
    for row, episode in enumerate(shown):
        agreement = episode.agreement
        axes.axhline(row, color=_hex(GRID), lw=1, zorder=0)
        for real, dreamed in agreement.hits:
            axes.plot([real + 1, dreamed + 1], [row - 0.16, row + 0.16], color=_hex(HIT), lw=1.4, zorder=1)
        _ticks(axes, [real for real, _ in agreement.hits], row, -1, HIT)
        _ticks(axes, [dreamed for _, dreamed in agreement.hits], row, 1, HIT)
        _ticks(axes, agreement.misses, row, -1, TEXT)
        _ticks(axes, agreement.false_alarms, row, 1, FALSE_ALARM)
    axes.set_yticks(range(len(shown)), [str(episode.record.seed) for episode in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, max(episode.record.num_steps for episode in shown) + 1)
    axes.set_xlabel("step", color=_hex(MUTED))
    axes.grid(False)
    axes.set_title(f"rewards: {names[0]} above each line, {names[1]} below", loc="left", color=_hex(TEXT), fontsize=12)
    figure.tight_layout()
    return figure


def to_svg(figure: Any) -> str:
    """The figure as an SVG element, without XML header, its text in the font of the page."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "wm_gym"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def write_summary_picture(
    path: Path, strip: Path, episodes: Sequence[EpisodeFigures], part_psnr: float, name_under_test: str
) -> None:
    """Writes a PNG of 256 colours: a film strip above the figure of `quality_figure`, equally wide."""
    image_module, _, _ = pillow()
    top = image_module.open(strip).convert("RGB")
    figure = quality_figure(episodes, part_psnr, name_under_test, (max(top.width / DPI, 8), 3.4))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor=_hex(BACKGROUND))
    bottom = image_module.open(buffer).convert("RGB")
    image = image_module.new("RGB", (max(top.width, bottom.width), top.height + bottom.height), BACKGROUND)
    image.paste(top, (0, 0))
    image.paste(bottom, (0, top.height))
    image.quantize(256).save(path, optimize=True)


def load_matplotlib() -> Any:
    """The class matplotlib.figure.Figure. Raises ImportError that says what to install."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("The plots of a comparison need matplotlib: `pip install wm-gym[compare]`.") from error
    return Figure


def _draw_curve(axes: Any, statistics: dict[str, Any], label: str, num_seeds: int) -> None:
    _style(axes)
    values = {key: np.array(value) for key, value in statistics.items()}
    steps = np.arange(1, len(values["mean"]) + 1)
    if num_seeds > 1:
        low, high = values["mean"] - values["std"], values["mean"] + values["std"]
        axes.fill_between(steps, values["min"], values["max"], color=_hex(ACCENT), alpha=0.12, lw=0)
        axes.fill_between(steps, low, high, color=_hex(ACCENT), alpha=0.25, lw=0)
    axes.plot(steps, values["mean"], color=_hex(ACCENT), lw=2, label=label, marker="o" if len(steps) == 1 else None)
    if len(steps) > 1:
        axes.set_xscale("log")
        axes.set_xlim(1, len(steps))
        ticks = [step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if step <= len(steps)]
        axes.set_xticks(ticks, [str(step) for step in ticks])
        axes.minorticks_off()
    axes.set_xlabel("step after the context", color=_hex(MUTED))


def _new_figure(size: tuple[float, float]) -> Any:
    return load_matplotlib()(figsize=size, dpi=DPI, facecolor="none")


def _style(axes: Any) -> None:
    axes.set_facecolor("none")
    axes.grid(True, color=_hex(GRID), lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_hex(MUTED), length=0, labelsize=10)
    for side in axes.spines.values():
        side.set_visible(False)


def _ticks(axes: Any, steps: Sequence[int], row: int, side: int, color: tuple[int, int, int]) -> None:
    low, high = sorted((row + side * 0.06, row + side * 0.36))
    axes.vlines([step + 1 for step in steps], low, high, color=_hex(color), lw=2.4)


def _hex(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
