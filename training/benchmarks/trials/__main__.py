"""Tries every training option of PAPER.md's last section once, each alone: ``python -m training.trials --out JSON``.

A small model learns to recall a ring of pictures (`training.benchmarks.trials.world`), first as it is, then with one
option at a
time, each with the same data, seeds and steps. The command goes on where it was stopped. OUT.png shows the figures.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from training.benchmarks.trials.figures import BASELINE, print_table, summary, write_plot
from training.benchmarks.trials.measure import Scale, once, recall_of, record_data, refresh_of, trained
from training.benchmarks.trials.recipes import OPTIONS, baseline
from training.recipes import Recipe
from wm_gym.files import write_json
from wm_gym.provenance import provenance


@dataclass(frozen=True)
class TrialArguments:
    """Trains a baseline and one run for each option, and compares what they recall. CPU, one core."""

    out: Path  # JSON file to write
    runs: Path = Path("runs/trials")  # folder for data and runs; what is there already is not done again
    seeds: int = 3  # runs of each kind
    options: tuple[str, ...] = tuple(OPTIONS)  # which are tried
    scale: Scale = field(default_factory=Scale)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}.")
        if unknown := [name for name in self.options if name not in OPTIONS]:
            raise ValueError(f"There is no option {unknown[0]!r} to try; there are {', '.join(OPTIONS)}.")


def run_trials(arguments: TrialArguments, argv: Sequence[str]) -> dict[str, Any]:
    """All figures, as they go into the JSON file.

    Raises:
        ValueError: the folder has runs of other sizes.
        FloatingPointError: a loss that is not finite.
        KeyboardInterrupt: stopped, also by SIGTERM.
    """
    folder, scale = arguments.runs, arguments.scale
    data, walks = record_data(folder, scale)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (BASELINE, *arguments.options)}
    refreshes, plain = [], baseline(scale.steps, 0)
    for seed in range(arguments.seeds):  # whole seeds one after the other: fewer of them are a result, too
        plain = baseline(scale.steps, seed)
        for name, figures in runs.items():
            recipe = plain if name == BASELINE else OPTIONS[name](plain)
            checkpoint = trained(folder, name, recipe, data)
            figures.append(
                once(checkpoint.with_name("recall.json"), lambda path=checkpoint: recall_of(path, walks, scale))
            )
            if name == BASELINE:
                path = checkpoint.with_name("refresh.json")
                refreshes.append(once(path, lambda path=checkpoint: refresh_of(path, walks, scale)))
            print(f"seed {seed}, {name}: {sum(figures[-1]['kept']) / scale.walks:.2f} dB")
    return {
        "world": "training.benchmarks.trials.world:RingWorld-v0",
        "scale": dataclasses.asdict(scale),
        "seeds": list(range(arguments.seeds)),
        "changes": {name: changes(plain, OPTIONS[name](plain)) for name in arguments.options},
        **summary(runs, refreshes),
        **provenance("training.trials", argv),
    }


def changes(plain: Recipe, changed: Recipe) -> dict[str, Any]:
    """What an option sets, as OPTION.FIELD."""
    before, after = (
        {f"{name}.{field}": value for name, one in vars(recipe.options).items() for field, value in vars(one).items()}
        for recipe in (plain, changed)
    )
    return {name: value for name, value in after.items() if value != before[name]}


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        arguments = tyro.cli(
            TrialArguments, args=argv, prog="python -m training.benchmarks trials", description=__doc__
        )
        record = run_trials(arguments, argv)
        write_json(arguments.out, record)
    except (FloatingPointError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("Stopped; the same command goes on from there.")
    print_table(record)
    try:
        write_plot(arguments.out.with_suffix(".png"), record)
    except ImportError as error:
        print(f"{error} The figures are in {arguments.out}.")


if __name__ == "__main__":
    main()
