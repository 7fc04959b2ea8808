"""What the measurements are held against: one H200, the default packaged model, one denoising step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from training.benchmarks.speed.latency import FULL, OURS

Record = dict[str, Any]
Target = tuple[str, str, Callable[[Record], float | None], Callable[[float], bool]]


def _latency(record: Record, model: str, output: str, age: int) -> Record | None:
    """The row of a model's step at an age, None where it was not measured."""
    for row in record.get("latency", {}).get("rows", []):
        if (row["model"], row["frame"], row.get("output")) == (model, age, output):
            return row
    return None


def _median(record: Record, output: str) -> float | None:
    row = _latency(record, OURS, output, 10)
    return row["median_ms"] if row else None


def _tail(record: Record) -> float | None:
    ratios = [
        row["p99_ms"] / row["median_ms"]
        for row in record.get("latency", {}).get("rows", [])
        if row["model"] == OURS and "median_ms" in row
    ]
    return max(ratios, default=None)


def _growth(record: Record, key: str, output: str) -> float | None:
    young, old = (_latency(record, OURS, output, age) for age in (10, 10_000))
    return old[key] / young[key] - 1 if young and old and young.get(key) else None


def _over_transformer(record: Record, key: str, output: str) -> float | None:
    ours, full = (_latency(record, model, output, 10_000) for model in (OURS, FULL))
    return full[key] / ours[key] if ours and full and ours.get(key) else None


def _best_batch(record: Record) -> Record | None:
    rows = [row for row in record.get("batch", {}).get("rows", []) if "frames_per_second" in row]
    return max(rows, key=lambda row: row["frames_per_second"], default=None)


def _at_best(record: Record, key: str) -> float | None:
    best = _best_batch(record)
    return best[key] if best else None


def _over_real(record: Record, name: str) -> float | None:
    best, real = _best_batch(record), record.get("batch", {}).get("real_env", {})
    return best["frames_per_second"] / real[name] if best and name in real else None


def _training(record: Record) -> float | None:
    return record.get("training", {}).get("recipe", {}).get("frames_per_second")


def _overhead(record: Record) -> float | None:
    return record.get("batch", {}).get("env", {}).get("overhead")


H200: tuple[Target, ...] = (
    ("batch 1, frame on the GPU, median ms", "<= 1.2", lambda r: _median(r, "device"), lambda x: x <= 1.2),
    ("batch 1, frame as numpy on the host, median ms", "<= 1.5", lambda r: _median(r, "host"), lambda x: x <= 1.5),
    ("batch 1, p99 over median, largest", "<= 1.5", _tail, lambda x: x <= 1.5),
    (
        "step 10,000 against step 10, time",
        "within 3%",
        lambda r: _growth(r, "median_ms", "device"),
        lambda x: abs(x) <= 0.03,
    ),
    (
        "step 10,000 against step 10, memory",
        "equal to the byte",
        lambda r: _growth(r, "allocated_bytes", "device"),
        lambda x: x == 0,
    ),
    (
        "full-cache transformer at 10,000 frames, its time over ours",
        ">= 20",
        lambda r: _over_transformer(r, "median_ms", "device"),
        lambda x: x >= 20,
    ),
    (
        "full-cache transformer at 10,000 frames, its memory over ours, weights included",
        ">= 20",
        lambda r: _over_transformer(r, "peak_bytes", "device"),
        lambda x: x >= 20,
    ),
    (
        "aggregate frames/s at the best batch",
        ">= 40,000",
        lambda r: _at_best(r, "frames_per_second"),
        lambda x: x >= 40_000,
    ),
    ("share of the roofline there", ">= 0.5", lambda r: _at_best(r, "share_of_roofline"), lambda x: x >= 0.5),
    (
        "over one process of the real environment as published",
        ">= 500",
        lambda r: _over_real(r, "one_process_as_published"),
        lambda x: x >= 500,
    ),
    (
        "over one process of the real environment as stepped here",
        ">= 500",
        lambda r: _over_real(r, "one_process"),
        lambda x: x >= 500,
    ),
    ("training, 8 x 400 frames, frames/s", ">= 45,000", _training, lambda x: x >= 45_000),
    ("vector environment, host overhead over the step", "<= 0.05", _overhead, lambda x: x <= 0.05),
)
CPU: tuple[Target, ...] = (
    ("two cores, batch 1, frames/s", ">= 10", lambda r: _rate(_median(r, "host")), lambda x: x >= 10),
)


def _rate(milliseconds: float | None) -> float | None:
    return 1000 / milliseconds if milliseconds else None


def judge(record: Record, device: str) -> list[Record]:
    """Each target of the device's kind with what was measured; `met` is None where nothing was."""
    judged = []
    for what, target, measured, is_met in H200 if device == "cuda" else CPU:
        value = measured(record)
        judged.append(
            {
                "what": what,
                "target": target,
                "measured": None if value is None else round(value, 4),
                "met": None if value is None else is_met(value),
            }
        )
    return judged
