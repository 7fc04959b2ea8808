"""A dream beside recorded episodes: ``python -m training.compare --data STORE --env ID --out DIR``.

Like `wm-gym compare`, with the episodes of a store in the place of the real environment and its policy. It lives here
because `wm_gym` knows no stores.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from training.store.episode_store import SPLITS, EpisodeStore, open_store
from wm_gym.comparison.command import run_compare
from wm_gym.comparison.config import CompareConfig
from wm_gym.comparison.recorded import RecordedEpisode

STATIC_INFO = ("layout", "targets")  # what a store keeps once for each episode


@dataclass(frozen=True)
class Arguments:
    """Holds a dream against recorded episodes: it reads their beginning and then takes the recorded actions."""

    data: Path
    """The store."""
    split: str = "test"
    """Part of the store."""
    compare: Annotated[CompareConfig, tyro.conf.arg(name="")] = field(default_factory=CompareConfig)
    """As in `wm-gym compare`; what says how the real environment is made and led has no effect."""


class StoreEpisodes:
    """The episodes of one split as `wm_gym.compare` takes them. Raises ValueError for an unknown split."""

    def __init__(self, store: EpisodeStore, split: str) -> None:
        if split not in SPLITS:
            raise ValueError(f"A split is one of {', '.join(SPLITS)}, got {split!r}.")
        self.name = store.path.name
        self.env_id = store.header.env_id
        self.observation_space = store.header.observation_space
        self.action_space = store.header.action_space
        self.seeds = store.seeds(split)
        self._store = store
        self._split = split

    def read(self, seed: int) -> RecordedEpisode:
        """One episode, with pose, layout and targets in its infos where they were recorded.

        Raises:
            FileNotFoundError: no such episode.
            ValueError: it is damaged.
        """
        episode = self._store.read(seed, self._split)
        static = {name: np.asarray(episode.attributes[name]) for name in STATIC_INFO if name in episode.attributes}
        has_pose = episode.pose.shape[1] > 0
        infos: list[dict[str, Any]] = [{**static, "pose": pose} if has_pose else static for pose in episode.pose]
        end = "terminated" if episode.terminations[-1] else "truncated"
        return RecordedEpisode(episode.frames, episode.actions, episode.rewards, infos, end)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = tyro.cli(Arguments, args=argv, prog="python -m training.compare", description=__doc__)
    try:
        run_compare(arguments.compare, StoreEpisodes(open_store(arguments.data), arguments.split))
    except (ImportError, OSError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
