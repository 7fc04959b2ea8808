"""Tables for the terminal and plots beside the record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wm_gym.files import atomic_path

Record = dict[str, Any]
LATENCY_COLUMNS = ("model", "frame", "output", "median_ms", "p99_ms", "num_steps", "state_bytes", "peak_bytes")
BATCH_COLUMNS = ("batch", "step_ms", "frames_per_second", "share_of_roofline", "state_bytes", "peak_bytes")
TRAINING_COLUMNS = ("model", "length", "batch", "median_ms", "frames_per_second", "peak_bytes")
TARGET_COLUMNS = ("what", "target", "measured", "met")


def table(rows: Sequence[Record], columns: Sequence[str]) -> str:
    """Aligned text; a row that was skipped shows the reason."""
    lines = [list(columns)]
    for row in rows:
        cells = [_cell(name, row.get(name)) for name in columns]
        if "skipped" in row:
            cells[-1] = f"skipped: {row['skipped']}"
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name.endswith("_bytes"):
        return f"{value / 2**20:,.1f} MiB"
    if isinstance(value, bool):
        return "met" if value else "missed"
    if isinstance(value, float):
        return f"{value:,.1f}" if value >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def tables(record: Record) -> str:
    """All parts that the record has."""
    parts = []
    if "latency" in record:
        parts.append("Latency of one dream\n" + table(record["latency"]["rows"], LATENCY_COLUMNS))
    if "batch" in record:
        batch = record["batch"]
        parts.append(
            f"Batches, beside a roofline of {batch['copy_bytes_per_second'] / 1e9:,.0f} GB/s\n"
            + table(batch["rows"], BATCH_COLUMNS)
        )
        parts += [f"{name}: {batch[name]}" for name in ("env", "real_env") if name in batch]
    if "training" in record:
        parts.append("Training, forward and backward\n" + table(record["training"]["rows"], TRAINING_COLUMNS))
        parts.append(f"recipe: {record['training'].get('recipe')}")
    parts.append("Targets\n" + table(record.get("targets", []), TARGET_COLUMNS))
    return "\n\n".join(parts)


def plot(record: Record, json_path: Path) -> list[Path]:
    """Draws each part that has rows beside the JSON file: NAME_latency.png, NAME_batch.png, NAME_training.png.

    Raises:
        ImportError: without matplotlib.
    """
    plt = _pyplot()
    title = f"{record['hardware']}, {record['date'][:10]}"
    drawn = []
    for part, draw in (("latency", _draw_latency), ("batch", _draw_batch), ("training", _draw_training)):
        if part not in record:
            continue
        figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
        draw(record[part], axes)
        figure.suptitle(title, fontsize=9)
        path = json_path.with_name(f"{json_path.stem}_{part}.png")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=120)
        plt.close(figure)
        drawn.append(path)
    return drawn


def _draw_latency(part: Record, axes: Any) -> None:
    rows = [row for row in part["rows"] if "median_ms" in row]
    outputs = {row["output"] for row in rows}
    rows = [row for row in rows if row["output"] == ("device" if "device" in outputs else "host")]
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name]
        ages = [row["frame"] for row in mine]
        axes[0].plot(ages, [row["median_ms"] for row in mine], "o-", label=name)
        axes[1].plot(ages, [_mebibytes(row["state_bytes"]) for row in mine], "o-", label=name)
    _finish(axes[0], "frames seen", "ms per step (median)")
    _finish(axes[1], "frames seen", "memory of the dream, MiB")


def _draw_batch(part: Record, axes: Any) -> None:
    rows = [row for row in part["rows"] if "frames_per_second" in row]
    sizes = [row["batch"] for row in rows]
    axes[0].plot(sizes, [row["frames_per_second"] for row in rows], "o-", label="ours")
    axes[0].plot(sizes, [row["roofline_frames_per_second"] for row in rows], "--", label="copy bandwidth")
    names = {
        "one_process_as_published": "real, one process, as published",
        "one_process": "real, one process",
        "one_per_core": "real, one process per core",
    }
    for name, label in names.items():
        if name in part.get("real_env", {}):
            axes[0].axhline(part["real_env"][name], linestyle=":", color="gray", label=label)
    axes[1].plot(sizes, [_mebibytes(row["state_bytes"]) for row in rows], "o-", label="state")
    axes[1].plot(sizes, [_mebibytes(row["peak_bytes"]) for row in rows], "o--", label="peak")
    _finish(axes[0], "dreams in the batch", "frames/s of all dreams together", base=2)
    _finish(axes[1], "dreams in the batch", "MiB", base=2)


def _draw_training(part: Record, axes: Any) -> None:
    rows = [row for row in part["rows"] if "median_ms" in row]
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name]
        lengths, frames = [row["length"] for row in mine], [row["length"] * row["batch"] for row in mine]
        per_frame = [row["median_ms"] / count for row, count in zip(mine, frames, strict=True)]
        memory = [_mebibytes(row["peak_bytes"]) / count for row, count in zip(mine, frames, strict=True)]
        axes[0].plot(lengths, per_frame, "o-", label=name)
        axes[1].plot(lengths, memory, "o-", label=name)
    _finish(axes[0], "frames of a segment", "ms per frame, forward and backward", base=2)
    _finish(axes[1], "frames of a segment", "peak MiB per frame", base=2)


def _mebibytes(count: int | None) -> float:
    """NaN, which is not drawn, where nothing was measured."""
    return float("nan") if count is None else count / 2**20


def _finish(axis: Any, x: str, y: str, base: int = 10) -> None:
    if not any(math.isfinite(value) for line in axis.lines for value in line.get_ydata()):
        axis.set_axis_off()  # nothing was measured
        return
    axis.set_xscale("log", base=base)
    axis.set_yscale("log")
    ticks = sorted({float(value) for line in axis.lines if len(line.get_xdata()) > 2 for value in line.get_xdata()})
    if ticks:
        axis.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], rotation=30)
        axis.minorticks_off()
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "wm-gym[bench]", or give --no-plots.') from error
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt
