"""Plot and film strips of a measurement of imagination."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from training.evaluation.imagination import Imagination
from training.evaluation.pictures import ROW_COLORS
from wm_gym.comparison.plots import load_matplotlib
from wm_gym.files import atomic_path, write_json

PANELS = (
    ("sharpness", "gradient energy / real"),
    ("return_psnr", "imagined return, dB"),
    ("frechet", "Fréchet distance"),
    ("diversity_unknown", "two seeds, unknown (two mazes = 1)"),
    ("diversity_known", "two seeds, known"),
    ("actions", "actions read back / from real"),
    ("recall", "context on the way back, dB"),
)
_COLUMNS = 12


def write_imagination(measured: Imagination, out: Path, strips: Path | None) -> None:
    """Writes OUT.json, OUT.png and film strips, or says what is missing to draw them."""
    write_json(out, measured.record)
    try:
        write_imagination_strips(strips or out.with_name(f"{out.stem}_strips"), measured)
        write_imagination_plot(out.with_suffix(".png"), measured.record)
    except ImportError as error:
        print(f"{error} The figures are in {out}.")


def write_imagination_plot(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a PNG: a panel for each main figure, a bar for each row; and the return by distance.

    Raises ImportError that says what to install.
    """
    rows = record["rows"]
    figure = load_matplotlib()(figsize=(15, 7.2), dpi=110)
    panels = figure.subplots(2, 4).flatten()
    for axes, (name, label) in zip(panels, PANELS, strict=False):
        for index, row in enumerate(rows.values()):
            value = row["figures"].get(name, {"value": None})
            if value["value"] is None:
                continue
            error = [[value["value"] - value["low"]], [value["high"] - value["value"]]] if value["low"] else None
            axes.bar(index, value["value"], yerr=error, color=ROW_COLORS[index % len(ROW_COLORS)], capsize=2)
        if name in ("sharpness", "actions"):
            axes.axhline(1, color="#8a8f98", lw=1, ls=":")
        elif name == "frechet":
            axes.axhline(record["real"]["frechet"]["value"], color="#8a8f98", lw=1, ls=":")
        axes.set_title(label, fontsize=9)
        axes.set_xticks(range(len(rows)), list(rows), rotation=60, fontsize=7)
    for index, (name, row) in enumerate(rows.items()):
        bins = row["figures"]["return_psnr"]["by_distance"]
        values = [np.nan if value is None else value for value in bins["value"]]
        panels[-1].plot(bins["from"], values, ".-", label=name, color=ROW_COLORS[index % len(ROW_COLORS)])
    panels[-1].set_title("imagined return, dB, by frames between the views", fontsize=9)
    panels[-1].legend(fontsize=6, frameon=False)
    figure.suptitle(
        f"{record['context']} real frames, {record['frames']} imagined ones, and the way back; "
        f"{len(record['seeds']) // 2} mazes, {record['checkpoint']}",
        fontsize=11,
    )
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def write_imagination_strips(folder: Path, measured: Imagination, num_mazes: int = 3) -> None:
    """Film strips of some mazes: reality, then for each row the first and the second view. Raises ImportError."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("Film strips need Pillow: `pip install pillow`.") from error
    reality = measured.reality
    num_steps, context = reality.unseen.shape[1], reality.num_context
    steps = np.unique(np.linspace(0, num_steps - 2, _COLUMNS).astype(int))
    for maze in range(min(num_mazes, len(reality.frames))):
        lines = [reality.frames[maze, context + steps]]
        for dreams in measured.dreams.values():
            frames = dreams.frames[maze].numpy()
            lines += [frames[steps], frames[2 * num_steps - 2 - steps]]
        strip = np.concatenate([np.concatenate(list(line), axis=1) for line in lines], axis=0)
        with atomic_path(folder / f"maze_{maze}.png") as temporary:
            Image.fromarray(strip).save(temporary)
