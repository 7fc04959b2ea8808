"""Trains the odometry of a world model: ``python -m training.odometry --data STORE --checkpoint IN --out OUT``.

A model with odometry knows where it is from frames and actions alone. Everything else of the checkpoint stays as it is.
Without `--checkpoint` the weights of the odometry go into a file of their own, which `--init` takes later. The same
command again goes on with a training that was killed: until OUT is written, it is kept in the folder OUT.training.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import tyro

from training.odometry.making import OdometryArguments, make_odometry


def print_table(record: dict[str, Any]) -> None:
    """Prints how far poses are off, by what frames were seen and after how many steps."""
    for name in ("frames", "spoilt_frames", "frames_alone"):
        for steps, errors in [*record[name]["drift"].items(), ("1", record[name]["step"])]:
            parts = (
                f"{errors[unit]['median']:.3f} ({errors[unit]['p90']:.3f}) {unit}" for unit in ("cells", "degrees")
            )
            print(f"{name:>14}, {steps:>4} steps: median (90%) off by {', '.join(parts)}")


def main(argv: Sequence[str] | None = None) -> None:
    """The command; an error that a user can mend is one sentence."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        arguments = tyro.cli(OdometryArguments, args=argv, prog="python -m training.odometry", description=__doc__)
        record = make_odometry(arguments, argv)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    if record is not None:
        print_table(record)


if __name__ == "__main__":
    main()
