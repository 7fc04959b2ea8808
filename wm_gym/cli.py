"""The command `wm-gym`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import tyro

from wm_gym.comparison.command import run_compare
from wm_gym.comparison.config import CompareConfig
from wm_gym.demo import Demo, run_demo


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; `arguments` default to those of the process. Returns the exit status, 1 after an error."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"demo": Demo, "compare": CompareConfig}, prog="wm-gym", description=__doc__, args=arguments
    )
    try:
        if isinstance(command, Demo):
            run_demo(command)
        else:
            run_compare(command)
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"wm-gym: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("wm-gym: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
