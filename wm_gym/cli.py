"""The command `wm-gym`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import tyro

from wm_gym.comparison.command import run_compare
from wm_gym.comparison.config import CompareConfig
from wm_gym.demo import Demo, run_demo
from wm_gym.play.command import Play, run_play


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; `arguments` default to those of the process. Returns the exit status, 1 after an error."""
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` has it, so that PACKAGE.MODULE:NAME finds what is in this folder
    command = tyro.extras.subcommand_cli_from_dict(
        {"demo": Demo, "compare": CompareConfig, "play": Play}, prog="wm-gym", description=__doc__, args=arguments
    )
    try:
        if isinstance(command, Demo):
            run_demo(command)
        elif isinstance(command, CompareConfig):
            run_compare(command)
        else:
            run_play(command)
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"wm-gym: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("wm-gym: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
