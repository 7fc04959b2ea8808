"""Records whole episodes of an environment: ``python -m training.collect --env ID --frames N --out PATH``.

Episode i is the environment's episode of seed `seed + i`, so what a store holds depends neither on the number of
workers nor on how often the run was killed: the same command goes on where it stopped. Given twice at a time, in two
processes, it shares the work between them.
"""

from __future__ import annotations

import signal
import sys

import tyro

from training.recording.config import CollectConfig
from training.recording.workers import collect, record_missing

__all__ = ["CollectConfig", "collect", "main"]


def main() -> None:
    """The command; an error that a user can mend is one sentence."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        config = tyro.cli(CollectConfig, prog="python -m training.collect")
        store, num_recorded = record_missing(config)
        seeds = store.seeds(config.split)
        num_frames = sum(store.num_frames(seed, config.split) for seed in seeds)
        print(
            f"{config.out}: {num_frames} frames in {len(seeds)} episodes of split {config.split!r}, "
            f"{num_recorded} of them recorded now."
        )
    except KeyboardInterrupt:
        print("Interrupted; finished episodes are kept, and the same command goes on from there.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except RuntimeError as error:
        sys.exit(str(error))
    except (ValueError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
