"""One table of many checkpoints: ``python -m training.table --records JSON... --out docs/results/retrieval.json``.

The records are those of `training.evaluate` with a protocol, all of the same walks. Writes the JSON, prints the table
in Markdown, and draws a plot beside the JSON: PSNR of all rows against the distance to the frame that is revisited.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from training.baselines.recipes import ROWS
from training.evaluation.paper import LABELS, OURS, SOURCE, paper_figures
from training.evaluation.pictures import write_row_plot
from wm_gym.files import write_json
from wm_gym.provenance import provenance
from wm_gym.seeds import seed_ranges
from wm_gym.statistics import Bootstrap

Record = dict[str, Any]
METRICS = ("psnr", "ssim", "lpips")
# What has to be equal for rows to stand in one table: the question that was asked, and of which walks.
SHARED = (
    *("protocol", "conditioning", "feedback", "feedback_interval", "env_id", "policy"),
    *("context", "frames", "num_denoising_steps"),
)
REFERENCES = {"copy_nearest": "copying the nearest pose", "copy_last": "repeating the last frame"}
# What has to be about equal unless --unequal is said, and how nearly; in words for people.
EQUAL = {
    "total_frames_seen": ("frames seen", 0.01),  # batches of shorter segments cannot always have exactly as many
    "num_parameters": ("parameters", 0.03),
}


@dataclass(frozen=True)
class TableArguments:
    """Merges the records of many checkpoints."""

    records: tuple[str, ...]  # JSON files of training.evaluate, in the order of the rows; LABEL=FILE names a row
    out: Path  # JSON file to write; the plot gets its name
    unequal: bool = False  # allow rows that saw other numbers of frames or have other numbers of parameters


def make_table(paths: Sequence[str], unequal: bool, argv: Sequence[str]) -> Record:
    """All rows, as they go into the JSON file.

    Args:
        paths: FILE or LABEL=FILE.
        unequal: whether rows may differ in frames seen and in parameters.

    Raises:
        FileNotFoundError: no such record.
        ValueError: no records, one that is none, or rows that cannot be compared.
    """
    if not paths:
        raise ValueError("No records given; training.evaluate with a --protocol writes them.")
    labelled = [_read(path) for path in paths]
    records = [record for _, record in labelled]
    for record, path in zip(records[1:], paths[1:], strict=True):
        _check_shared(records[0], record, path)
    rows = [_row(label, record) for label, record in labelled]
    differ = {what: told for key, (what, tolerance) in EQUAL.items() if (told := _told(rows, key, tolerance))}
    if differ and not unequal:
        told = "; ".join(f"{what} ({values})" for what, values in differ.items())
        raise ValueError(f"Rows differ in {told}; train them alike, or say --unequal.")
    _add_differences(rows, records)
    return {
        **{name: records[0][name] for name in SHARED},
        "seeds": seed_ranges(records[0]["seeds"]),
        "seen_fraction": records[0]["seen_fraction"],
        "definitions": {name: text for name, text in records[0]["definitions"].items() if name != "cleared"}
        | {"psnr_minus_ours": "mean over mazes of the row's PSNR less that of ours in the same maze"},
        "metrics": records[0]["metrics"],
        "paper": SOURCE,
        "unequal": differ,
        "rows": rows,
        "references": [
            {"label": label, **_figures(records[0], column)}
            for column, label in REFERENCES.items()
            if column in records[0]["columns"]["psnr"]
        ],
        **provenance("training.table", argv),
    }


def _read(path: str) -> tuple[str, Record]:
    label, _, file = path.rpartition("=")
    try:
        record = json.loads(Path(file).read_text())
        missing = [key for key in (*SHARED, "seeds", "columns", "recipe", "total_frames_seen") if key not in record]
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{file} is no record of training.evaluate: {error}.") from None
    if missing:
        raise ValueError(f"{file} lacks {missing}: make it with training.evaluate --protocol of this version.")
    if "kept" not in record["columns"]["psnr"]:
        raise ValueError(f"{file} has no column 'kept'; measure it with --memory kept.")
    return label, record


def _check_shared(first: Record, other: Record, path: str) -> None:
    for name in (*SHARED, "seeds", "refresh_steps"):
        expected, given = (record.get(name, 0) for record in (first, other))  # earlier records never refreshed
        if given != expected:
            raise ValueError(f"{path} has {name} {given}, the first record {expected}: measure all rows alike.")
    ours, theirs = (record["columns"]["psnr"]["copy_last"]["per_maze"] for record in (first, other))
    # Rounding of sums differs between devices.
    if len(ours) != len(theirs) or max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) > 1e-2:
        raise ValueError(
            f"{path} was measured on other walks than the first record; give all rows the same --rollouts."
        )


def _told(rows: Sequence[Record], key: str, tolerance: float) -> str:
    """What each row has, if they do not all have about the same; else nothing."""
    values = [row[key] for row in rows]
    if None not in values and max(values) <= min(values) * (1 + tolerance):
        return ""
    return ", ".join(f"{row['label']}: {'unknown' if row[key] is None else f'{row[key]:,}'}" for row in rows)


def _add_differences(rows: Sequence[Record], records: Sequence[Record]) -> None:
    """Adds "psnr_minus_ours" to all but the first row of ours: in the same mazes, for those differ more than rows."""
    per_maze = [np.array(record["columns"]["psnr"]["kept"]["per_maze"])[:, None] for record in records]
    ours = [i for i, row in enumerate(rows) if row["recipe"] not in ROWS]
    if not ours:
        return
    bootstrap = Bootstrap(len(per_maze[0]))
    for i, row in enumerate(rows):
        if i != ours[0]:
            estimate = bootstrap.mean(per_maze[i] - per_maze[ours[0]], np.ones((1, 1, 1), dtype=bool))
            ends = (estimate.value[0], estimate.low[0], estimate.high[0])
            figures = (round(float(end), 4) if np.isfinite(end) else None for end in ends)
            row["psnr_minus_ours"] = dict(zip(("value", "low", "high"), figures, strict=True))


def _row(label: str, record: Record) -> Record:
    recipe = record["recipe"]
    kind = recipe if recipe in ROWS else OURS
    return {
        "label": label or LABELS[kind],
        "recipe": recipe,
        **{name: record.get(name) for name in ("checkpoint", "num_parameters", "total_frames_seen")},
        **_figures(record, "kept"),
        "cleared": _figures(record, "cleared") | {"means": record["definitions"]["cleared"]}
        if "cleared" in record["columns"]["psnr"]
        else None,
        "paper": paper_figures(record["protocol"], kind),
        **{name: record.get(name) for name in ("command", "commit", "hardware", "date")},
    }


def _figures(record: Record, column: str) -> Record:
    """Of all frames, of those that were seen and of those that were not; PSNR also by distance and by length."""
    figures: Record = {}
    for metric, columns in record["columns"].items():
        if column in columns:
            figures[metric] = {part: columns[column][part] for part in ("all", "seen", "unseen")}
    psnr = record["columns"]["psnr"][column]
    return figures | {f"psnr_{name}": psnr[name] for name in ("by_distance", "by_length", "change_over_distance")}


def markdown(table: Mapping[str, Any]) -> str:
    """The README's table: figures over all frames with 95% intervals, and the paper's."""
    measured = [name for name in METRICS if name in table["rows"][0]]
    with_cleared = any(row["cleared"] for row in table["rows"])
    with_difference = any("psnr_minus_ours" in row for row in table["rows"])
    heads = ["", *(name.upper() + (", dB" if name == "psnr" else "") for name in measured)]
    heads += ["less ours in the same maze, dB"] if with_difference else []
    heads += ["PSNR with memory cleared"] if with_cleared else []
    heads += ["change from 50 to 400 frames back, dB", "parameters", "frames seen"]
    heads += [f"paper: {' / '.join(name.upper() for name in METRICS)}"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in [*table["rows"], *table["references"]]:
        cells = [row["label"], *(_with_interval(row[name]["all"], name) for name in measured)]
        if with_difference:
            cells.append(_with_interval(row["psnr_minus_ours"], "difference") if "psnr_minus_ours" in row else "")
        if with_cleared:
            cells.append(_with_interval(row["cleared"]["psnr"]["all"], "psnr") if row.get("cleared") else "")
        cells.append(_with_interval(row["psnr_change_over_distance"], "psnr") if "recipe" in row else "")
        parameters, frames, paper = (row.get(key) for key in ("num_parameters", "total_frames_seen", "paper"))
        cells += ["" if parameters is None else f"{parameters / 1e6:.1f}M", "" if frames is None else _frames(frames)]
        cells.append("" if paper is None else " / ".join(_number(paper[name], name) for name in METRICS))
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"\nRows differ in {what}: {told}." for what, told in table["unequal"].items()]
    return "\n".join(lines)


def _with_interval(figure: Mapping[str, Any], metric: str) -> str:
    if figure["value"] is None:
        return "–"
    value = _number(figure["value"], metric)
    return (
        value
        if figure["low"] is None
        else f"{value} ({', '.join(_number(figure[k], metric) for k in ('low', 'high'))})"
    )


def _number(value: float, metric: str) -> str:
    if metric == "difference":
        return f"{value:+.2f}"
    return f"{value:.1f}" if metric == "psnr" else f"{value:.3f}".replace("0.", ".", 1)


def _frames(frames: int) -> str:
    if frames < 1e6:
        return f"{frames:,}"
    return f"{frames / 1e6:.1f}M" if frames < 1e9 else f"{frames / 1e9:.2f}B"


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        arguments = tyro.cli(TableArguments, args=argv, prog="python -m training.table", description=__doc__)
        table = make_table(arguments.records, arguments.unequal, argv)
        write_json(arguments.out, table)
        print(markdown(table))
        write_row_plot(arguments.out.with_suffix(".png"), table)
    except (FileNotFoundError, ImportError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
