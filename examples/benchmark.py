"""How fast the world model is, and beside what: `python examples/benchmark.py --out docs/results/speed_h200.json`.

One run measures the latency of a single dream as it grows old, batches of dreams against the memory bandwidth and the
real environment, and training against the length of segments; prints tables; draws plots beside the JSON file. The
file is written after each part, so a run that is cut short keeps what it has.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `training` lies beside this folder

from training.benchmarks.speed.batches import BatchSettings, measure_batches, measure_env, measure_real_env
from training.benchmarks.speed.latency import LatencySettings, measure_latency
from training.benchmarks.speed.report import plot, tables
from training.benchmarks.speed.targets import judge
from training.benchmarks.speed.timing import Deadline, copy_bandwidth
from training.benchmarks.speed.training_step import TrainingSettings, measure_lengths, measure_recipe
from wm_gym.checkpoint import resolve_device
from wm_gym.files import write_json
from wm_gym.provenance import command_arguments, provenance
from wm_gym.world_model import WorldModel

Part = Literal["latency", "batch", "training"]


@dataclass(frozen=True)
class BenchConfig:
    """Measures latency, batches and training of the world model."""

    out: Path | None = None
    """JSON file for the result; plots come beside it."""
    parts: tuple[Part, ...] = ("latency", "batch", "training")
    """What is measured."""
    checkpoint: str = "memory-maze"
    """The model."""
    device: str = "auto"
    """"auto" takes the GPU if there is one."""
    quick: bool = False
    """Only a few steps of the smallest sizes: shows that it runs."""
    latency_seconds: float = 120.0
    """Time limit of the part; what does not fit is skipped and named."""
    batch_seconds: float = 60.0
    """Likewise, without the environments (about 40 seconds)."""
    training_seconds: float = 120.0
    """Likewise, without the recipe (about 100 seconds on a GPU, which is mostly compilation)."""
    real_env: bool = True
    """Measure the real environment too."""
    plots: bool = True
    """Draw plots; needs matplotlib."""


@dataclass(frozen=True)
class Sizes:
    """What a kind of machine can do in minutes."""

    ages: tuple[int, ...]
    ages_beyond: tuple[int, ...]
    batches: tuple[int, ...]
    env_size: int
    lengths: tuple[int, ...]
    frames_per_step: int
    recipe: str
    num_steps: int
    step_seconds: float


SIZES = {
    "cuda": Sizes(
        ages=(10, 100, 1_000, 10_000),
        ages_beyond=(40_000,),
        batches=tuple(2**i for i in range(11)),
        env_size=256,
        lengths=(64, 512, 2_048, 1_024, 256, 128),  # most telling first: there may be no time for all
        frames_per_step=2_048,
        recipe="memory_maze_9x9_continued",
        num_steps=200,
        step_seconds=3.0,
    ),
    "cpu": Sizes(
        ages=(10, 100, 300),
        ages_beyond=(),
        batches=(1, 2, 4, 8),
        env_size=4,
        lengths=(4, 8, 16),
        frames_per_step=16,
        recipe="tiny",
        num_steps=100,
        step_seconds=2.0,
    ),
    "quick": Sizes(
        ages=(2, 10),
        ages_beyond=(),
        batches=(1, 2),
        env_size=2,
        lengths=(2, 4),
        frames_per_step=4,
        recipe="tiny",
        num_steps=5,
        step_seconds=0.2,
    ),
}


def run(config: BenchConfig) -> dict[str, Any]:
    """Measures, writes and returns the record.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint or device.
    """
    device = resolve_device(config.device)
    sizes = SIZES["quick" if config.quick else device.type]
    model = WorldModel.from_checkpoint(config.checkpoint, device)
    record: dict[str, Any] = {
        **provenance("examples.benchmark", command_arguments()),
        "model": {"checkpoint": Path(config.checkpoint).name, "parameters": sum(p.numel() for p in model.parameters())},
        "cpu_threads": torch.get_num_threads(),
    }
    measures = {"latency": measure_latency_part, "batch": measure_batch_part, "training": measure_training_part}
    for part in config.parts:
        try:
            measures[part](record, config, sizes, model)
        except Exception as error:  # the other parts may be worth minutes on a GPU; main() ends with a failure
            traceback.print_exc()
            record.setdefault("errors", {})[part] = f"{type(error).__name__}: {error}"
        record["targets"] = judge(record, device.type)
        save(record, config)
    return record


def measure_latency_part(record: dict[str, Any], config: BenchConfig, sizes: Sizes, model: WorldModel) -> None:
    """Times single dreams."""
    settings = LatencySettings(
        sizes.ages, sizes.ages_beyond, sizes.num_steps, config.latency_seconds, sizes.step_seconds
    )
    record["latency"] = {"rows": []}
    collect(record["latency"]["rows"], measure_latency(model, settings), record, config)


def measure_batch_part(record: dict[str, Any], config: BenchConfig, sizes: Sizes, model: WorldModel) -> None:
    """Times batches of dreams."""
    settings = BatchSettings(sizes.batches, sizes.num_steps, config.batch_seconds, sizes.step_seconds)
    bandwidth = copy_bandwidth(model.device)
    part: dict[str, Any] = {"copy_bytes_per_second": round(bandwidth), "rows": []}
    record["batch"] = part
    collect(part["rows"], measure_batches(model, settings, bandwidth), record, config)
    part["env"] = measure_env(model, config.checkpoint, sizes.env_size, sizes.num_steps, sizes.step_seconds)
    save(record, config)
    if config.real_env and not config.quick:
        part["real_env"] = measure_real_env(model.device)


def measure_training_part(record: dict[str, Any], config: BenchConfig, sizes: Sizes, model: WorldModel) -> None:
    """Times training."""
    settings = TrainingSettings(sizes.lengths, sizes.frames_per_step, min(sizes.num_steps, 10), sizes.step_seconds)
    # First the recipe, whose compilation must not inherit that of the lengths.
    part: dict[str, Any] = {"recipe": measure_recipe(sizes.recipe, model.device, settings), "rows": []}
    record["training"] = part
    save(record, config)
    deadline = Deadline(config.training_seconds)
    collect(part["rows"], measure_lengths(model.config, model.device, settings, deadline), record, config)
    part["rows"].sort(key=lambda row: row["length"])


def collect(
    rows: list[dict[str, Any]], measured: Iterable[dict[str, Any]], record: dict[str, Any], config: BenchConfig
) -> None:
    """Takes rows as they come, tells of each, and writes the record with it."""
    for row in measured:
        rows.append(row)
        short = {name: value for name, value in row.items() if name != "implementation"}
        print(" ".join(f"{name}={value}" for name, value in short.items()), file=sys.stderr, flush=True)
        save(record, config)


def save(record: dict[str, Any], config: BenchConfig) -> None:
    """Writes the record, if a file is wanted."""
    if config.out is not None:
        write_json(config.out, record)


def main() -> None:
    """The command."""
    config = tyro.cli(BenchConfig, prog="python examples/benchmark.py")
    record = run(config)
    print(tables(record))
    if config.out is not None:
        drawn = plot(record, config.out) if config.plots else []
        print(f"\nWrote {', '.join(str(path) for path in (config.out, *drawn))}")
    if "errors" in record:
        sys.exit(f"error: some parts failed: {record['errors']}")


if __name__ == "__main__":
    main()
