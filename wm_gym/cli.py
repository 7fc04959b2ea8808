"""The command `wm-gym`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import tyro

from wm_gym.demo import Demo, run_demo
from wm_gym.play.command import Play, run_play


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; `arguments` default to those of the process. Returns the exit status, 1 after an error."""
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` has it, so that PACKAGE.MODULE:NAME finds what is in this folder
    try:
        config = tyro.extras.subcommand_cli_from_dict(
            {"demo": Demo, "play": Play}, prog="wm-gym", description=__doc__, args=arguments
        )
        if isinstance(config, Demo):
            run_demo(config)
        else:
            run_play(config)
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"wm-gym: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
