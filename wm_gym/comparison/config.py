"""The settings of a comparison, and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DREAM_ID = "LSSVWM-MemoryMaze-v0"
REAL_ID = "wm_gym/MemoryMaze-9x9-v0"
DEFAULT_SEEDS = "7000000-7000007"


@dataclass(frozen=True)
class CompareConfig:
    """A dream beside the real environment: both take the same actions after the same context.

    Writes report.html, compare.mp4, compare.png, compare.json, compare.csv and film strips. Finished seeds are kept, so
    the same command goes on after an interruption, and further seeds can be added.
    """

    env: str = DREAM_ID
    """The environment under test: an id as gym.make takes it, or MODULE:ID."""
    env_kwargs: str = "{}"
    """Its arguments, as a JSON object: '{"checkpoint": "runs/maze/model.safetensors", "num_denoising_steps": 2}'."""
    real: str = REAL_ID
    """The real environment that it is held against. A policy leads it through the context, which the dream reads."""
    real_kwargs: str = "{}"
    """Arguments of the real environment, as a JSON object."""
    against: str | None = None
    """Another environment in the place of the real one, such as a dream from another checkpoint. If it is a dream, both
    start from the clips of `clips`, and the policy must do without the real environment's info."""
    against_kwargs: str = "{}"
    """Arguments of that environment, as a JSON object."""
    policy: str = "navigator"
    """navigator, random, backtrack (walks through the context, then goes back the way it came), or
    PACKAGE.MODULE:FUNCTION, called as function(env, seed), or the path of a Stable-Baselines3 model. It sees the real
    environment."""
    context: int = 100
    """Real frames that are read in first."""
    steps: int = 400
    """Steps of both after the context."""
    seeds: str | None = None
    """Seeds of the episodes, such as "7000000-7000007,7000100"; by default 7000000-7000007, or all recorded episodes.
    Mazes below 7,000,000 may have been trained on; the report says so where the checkpoint knows it."""
    out: Path = Path("outputs/compare")
    """Folder for all that is written."""
    device: str = "auto"
    """Where dreams run; auto takes a GPU if there is one."""
    batch: int = 0
    """Episodes at a time; 0: 16 on a GPU, else 1. It changes the speed and nothing else."""
    clips: str = "memory-maze"
    """With `against` a dream: name or path of the clips from which both start; the seed chooses one."""
    tolerance: int = 2
    """Steps by which a dreamed reward may come early or late and still count as a hit."""
    part_psnr: float = 22.0
    """Dream and reality have parted where PSNR stays below this, in dB (a blur of the right colours reaches 20), ..."""
    part_steps: int = 5
    """... for so many steps in a row; the first of them is the step at which they part."""
    films: int = 3
    """Episodes in compare.mp4 and among the film strips, from the best to the worst; 0: no video."""

    def check(self) -> None:
        """Raises ValueError for a number out of range."""
        smallest = {"context": 1, "steps": 1, "batch": 0, "tolerance": 0, "part_steps": 1, "films": 0}
        for name, minimum in smallest.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}.")
