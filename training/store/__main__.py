"""``python -m training.store info|validate|merge|split|export|import``: stores as a whole, from the command line."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from training.store.episode_store import SPLITS, open_store
from training.store.tools import choose_seeds, merge, move, problems, summarize
from wm_gym.seeds import seed_ranges

Format = Literal["mp4", "lerobot", "memory-maze"]
Split = Literal["train", "test", "eval"]


@dataclass(frozen=True)
class Info:
    """Describes a store: its header, and for each split episodes, frames, seeds, rewards and size."""

    path: tyro.conf.Positional[Path]
    """The store."""

    def run(self) -> int:
        """Prints what a store holds."""
        store = open_store(self.path)
        header = store.header
        lines = {
            "environment": header.env_id,
            "observations": header.observation_space,
            "actions": header.action_space,
            "policy": header.policy,
            "episode limit": header.max_episode_steps or "the environment's own",
            **({"recording": header.recording} if header.recording else {}),
            "packages": ", ".join(f"{name} {version}" for name, version in header.packages.items()) or "unknown",
        }
        print(f"{self.path}: a store of recorded episodes")
        for name, value in lines.items():
            print(f"  {name + ':':15}{value}")
        for split in SPLITS:
            summary = summarize(store, split)
            if not summary.num_episodes:
                print(f"  {split + ':':15}no episodes")
                continue
            seeds = ", ".join(
                f"{low}" if low == high else f"{low} to {high}" for low, high in seed_ranges(summary.seeds)
            )
            print(
                f"  {split + ':':15}{summary.num_episodes:,} episodes, {summary.num_frames:,} frames, "
                f"{summary.num_bytes / summary.num_frames:,.0f} bytes a frame ({summary.num_bytes / 1e9:.3f} GB)"
            )
            print(f"  {'':15}seeds {seeds}")
            print(
                f"  {'':15}reward {summary.total_reward / summary.num_episodes:.2f} an episode, "
                f"{summary.num_rewards:,} rewarded transitions"
            )
        return 0


@dataclass(frozen=True)
class Validate:
    """Reads every chunk of a store and names what is damaged, half-written or foreign; exit code 1 if anything is."""

    path: tyro.conf.Positional[Path]
    """The store."""

    def run(self) -> int:
        """Checks the episodes of a store and prints what is wrong."""
        store = open_store(self.path)
        found = 0
        for problem in problems(store):
            print(problem, file=sys.stderr)
            found += 1
        num_episodes = sum(len(store.seeds(split)) for split in SPLITS)
        result = f"{found} problem{'s' * (found != 1)}" if found else "valid"
        print(f"{self.path}: {num_episodes} episodes read, {result}.")
        return 1 if found else 0


@dataclass(frozen=True)
class Merge:
    """Copies the episodes of several stores of one environment into another; the same command goes on after a kill."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """The stores."""
    out: Path
    """The store that receives them."""

    def run(self) -> int:
        """Copies the episodes of several stores into one."""
        store = merge(self.paths, self.out)
        totals = ", ".join(f"{len(seeds)} in {split}" for split in SPLITS if (seeds := store.seeds(split)))
        print(f"{self.out}: episodes {totals or 'none'}.")
        return 0


@dataclass(frozen=True)
class MoveSplit:
    """Moves whole episodes, chosen by maze seed, from one split to another."""

    path: tyro.conf.Positional[Path]
    """The store."""
    source: Split
    """Split that they are in."""
    target: Split
    """Split that receives them."""
    seeds: tuple[int, ...] = ()
    """Which episodes; none means `fraction`."""
    fraction: float | None = None
    """About this part of the source, by a hash of the seed: the choice stays when the store grows."""

    def run(self) -> int:
        """Moves episodes to another split."""
        if bool(self.seeds) == (self.fraction is not None):
            raise ValueError("Give either --seeds or --fraction.")
        store = open_store(self.path)
        seeds = self.seeds or choose_seeds(store.seeds(self.source), self.fraction or 0.0)
        print(f"{self.path}: {move(store, seeds, self.source, self.target)} episodes moved to {self.target!r}.")
        return 0


@dataclass(frozen=True)
class Export:
    """Writes a store in another format to a new folder, and says how exact its frames are."""

    path: tyro.conf.Positional[Path]
    """The store."""
    out: Path
    """The folder, which must not exist."""
    format: Format
    """mp4: video and npz per episode. lerobot: LeRobotDataset v3.0. memory-maze: the published NPZ files."""
    lossy: bool = False
    """Videos as yuv420p with CRF 18, which everything plays, instead of lossless RGB."""
    images: Literal["video", "png"] = "video"
    """For lerobot: mp4 files, or PNG images in the data files."""
    fps: int = 10
    """Frames per second of videos and timestamps."""

    def run(self) -> int:
        """Writes episodes in another format."""
        store = open_store(self.path)
        if self.format == "lerobot":
            from training.store.formats.lerobot import export_lerobot

            result = export_lerobot(store, self.out, not self.lossy, self.images, self.fps)
        elif self.images != "video":
            raise ValueError("--images is for --format lerobot.")
        elif self.format == "mp4":
            from training.store.formats.video import export_mp4

            result = export_mp4(store, self.out, not self.lossy, self.fps)
        elif self.lossy:
            raise ValueError("--lossy is for videos; the published NPZ files are lossless.")
        else:
            from training.store.formats.memory_maze_offline import export_memory_maze

            result = export_memory_maze(store, self.out)
        print(result)
        return 0


@dataclass(frozen=True)
class Import:
    """Adds episodes of another format to a store; the same command goes on after a kill."""

    path: tyro.conf.Positional[Path]
    """Folder to read."""
    out: Path
    """The store, which is made if it is not there."""
    format: Format
    """As in export."""
    env: str | None = None
    """Environment id, where the format does not tell it; None means wm_gym/MemoryMaze-9x9-v0 for memory-maze."""
    split: Split = "train"
    """Split that receives the episodes, where the format does not tell it."""
    first_seed: int | None = None
    """Seed of the first episode, where the format does not tell it; None means the first that the split allows."""

    def run(self) -> int:
        """Reads episodes of another format into a store."""
        if self.format == "lerobot":
            from training.store.formats.lerobot import import_lerobot

            store = import_lerobot(self.path, self.out, self.env, self.split, self.first_seed)
        elif self.format == "mp4":
            from training.store.formats.video import import_mp4

            store = import_mp4(self.path, self.out)
        else:
            from training.store.formats.memory_maze_offline import DEFAULT_ENV, import_memory_maze

            store = import_memory_maze(self.path, self.out, self.env or DEFAULT_ENV, self.split, self.first_seed)
        totals = ", ".join(f"{len(seeds)} in {split}" for split in SPLITS if (seeds := store.seeds(split)))
        print(f"{self.out}: episodes {totals or 'none'}.")
        return 0


Command = (
    Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Validate, tyro.conf.subcommand("validate")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[MoveSplit, tyro.conf.subcommand("split")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Import, tyro.conf.subcommand("import")]
)


def main() -> None:
    """The command; an error that a user can mend is one sentence."""
    command = tyro.cli(Command, prog="python -m training.store")  # type: ignore[arg-type]
    try:
        sys.exit(command.run())
    except KeyboardInterrupt:
        print("Interrupted; whole episodes are kept, and the same command goes on from there.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
