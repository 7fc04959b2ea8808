"""Staged recipes: a shipped model from a store of episodes, phase by phase, its odometry last, by one command."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from training.loop.run import RunArguments, is_finished, train
from training.odometry.bearings import BearingsTraining
from training.odometry.learning import OdometryTraining
from training.odometry.making import OdometryArguments, OdometryRecipe, make_odometry
from training.odometry.mapped_walks import MapTraining
from training.recipes import (
    Recipe,
    memory_maze_9x9_map,
    memory_maze_9x9_pose,
    memory_maze_9x9_pose_continued,
    memory_maze_9x9_pose_only,
    memory_maze_9x9_pose_views,
    tiny,
)
from wm_gym.files import atomic_path

NO_ODOMETRY = OdometryRecipe(training=OdometryTraining(steps=0), by_map=MapTraining(steps=0))


@dataclass(frozen=True)
class Phase:
    """One run of a staged recipe, which begins with the weights of the phase before."""

    name: str
    recipe: Recipe


@dataclass(frozen=True)
class StagedRecipe:
    """The phases that a model goes through, and what its odometry is trained by."""

    phases: tuple[Phase, ...]
    odometry: OdometryRecipe = field(default_factory=lambda: NO_ODOMETRY)  # all steps 0: the model has none
    max_minutes: float = 0.0  # for all phases, shared by their steps; odometry has its own; 0: no limit

    def __post_init__(self) -> None:
        names = [phase.name for phase in self.phases]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"A staged recipe needs phases of different names, got {names}.")

    def phase_recipe(self, index: int) -> Recipe:
        """The recipe of a phase, with its share of the time."""
        recipe = self.phases[index].recipe
        if not self.max_minutes:
            return recipe
        share = recipe.steps / sum(phase.recipe.steps for phase in self.phases)
        return dataclasses.replace(recipe, max_minutes=self.max_minutes * share)


@dataclass(frozen=True)
class StagedArguments:
    """Trains a world model on a store of episodes, phase by phase."""

    data: Path  # store written by training.collect
    out: Path  # folder with one run for each phase; what is there goes on
    recipe: StagedRecipe
    init: str | None = None  # start the first phase from the weights of this wm_gym checkpoint
    device: str = "auto"  # "auto" takes the GPU if there is one
    data_device: Literal["auto", "cuda", "cpu", "stream"] = "auto"  # as of a recipe without phases
    data_threads: int = 8  # that read frames
    compile: bool = True  # compile layers; GPU only
    stop_after_minutes: float = 0.0  # end this session with a checkpoint, schedules unchanged; 0: no limit
    stop_after_steps: int = 0  # likewise, after so many steps of the phase that is trained then
    recipe_name: tyro.conf.Suppress[str] = ""

    def run(self, index: int, minutes_left: float) -> RunArguments:
        """The arguments of a phase's run."""
        phase = self.recipe.phases[index]
        own = {one.name for one in dataclasses.fields(RunArguments)}
        shared = {name: value for name, value in vars(self).items() if name in own}
        before = None if not index else self.recipe.phases[index - 1].name
        return RunArguments(
            **shared
            | {
                "out": self.out / phase.name,
                "recipe": self.recipe.phase_recipe(index),
                "init": self.init if before is None else str(self.out / before / "model.safetensors"),
                "stop_after_minutes": minutes_left,
                "recipe_name": f"{self.recipe_name}.{phase.name}",
            }
        )


def train_staged(arguments: StagedArguments) -> Path:
    """Trains phase after phase and then the odometry; goes on where an earlier session was stopped or killed.

    Under torchrun all processes train the phases and the first one trains the odometry.

    Returns:
        The path of the model: RUN/model.safetensors when all is done, else that of the phase that was stopped.

    Raises:
        FileNotFoundError, ValueError: for wrong data, or settings other than those that a phase was trained with.
        FloatingPointError, MemoryError: as by `training.loop.run.train`.
    """
    started, final = time.monotonic(), arguments.out / "model.safetensors"
    exported = final
    for index in range(len(arguments.recipe.phases)):
        minutes_left = arguments.stop_after_minutes and max(
            arguments.stop_after_minutes - (time.monotonic() - started) / 60, 1e-3
        )
        run = arguments.run(index, minutes_left)
        exported = run.out / "model.safetensors"
        if is_finished(run):
            continue
        train(run)
        if not is_finished(run):
            return exported
    if int(os.environ.get("RANK", "0")) == 0 and not final.exists():
        _finish(arguments, exported, final)
        print(f"Finished: {final}")
    return final


def _finish(arguments: StagedArguments, exported: Path, final: Path) -> None:
    """Writes the model of the last phase, with odometry if the recipe has it, as the model of the whole recipe."""
    odometry = arguments.recipe.odometry
    if not max(odometry.training.steps, odometry.bearings.steps, odometry.by_map.steps):
        with atomic_path(final) as temporary:
            shutil.copyfile(exported, temporary)
        return
    settings = {one.name: getattr(odometry, one.name) for one in dataclasses.fields(OdometryRecipe)}
    make_odometry(
        OdometryArguments(
            **settings, out=final, data=arguments.data, checkpoint=str(exported), device=arguments.device
        ),
        ["--checkpoint", str(exported)],
    )


def memory_maze() -> StagedRecipe:
    """The packaged `memory-maze`: recall by pose, views from elsewhere, poses alone, a map, then odometry.

    221M frames in phases as long as those of the packaged model, about 1.5 hours on an H200, and 12 minutes for the
    odometry.
    """
    steps = {
        memory_maze_9x9_pose: 22_000,
        memory_maze_9x9_pose_continued: 17_900,
        memory_maze_9x9_pose_views: 5_900,
        memory_maze_9x9_pose_only: 8_900,
        memory_maze_9x9_map: 14_400,
    }
    return StagedRecipe(
        phases=tuple(
            Phase(make.__name__.removeprefix("memory_maze_9x9_"), dataclasses.replace(make(), steps=count))
            for make, count in steps.items()
        ),
        odometry=OdometryRecipe(
            dreamed_walks=448,
            mapped_walks=500,
            by_map=MapTraining(steps=400_000, minutes=4.0, batch_size=4096),
            bearings=BearingsTraining(steps=200_000, minutes=1.6),
        ),
    )


def memory_maze_tiny() -> StagedRecipe:
    """The phases of `memory_maze` in minutes on a CPU: shows that the pipeline runs, not how well it can get."""

    def small(recipe: Recipe, steps: int) -> Recipe:
        names = "width", "block_sizes", "scan", "window", "num_attention_heads"
        sizes: dict[str, Any] = {name: getattr(tiny().model, name) for name in names}
        sizes["map"] = dataclasses.replace(recipe.model.map, layer=1)
        stages = tuple(dataclasses.replace(stage, length=24, batch_size=4) for stage in recipe.stages)
        changes = {"steps": steps, "warmup_steps": 20, "checkpoint_minutes": 1.0, "ema_decay": 0.99}
        return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **sizes), stages=stages, **changes)

    return StagedRecipe(
        phases=tuple(dataclasses.replace(phase, recipe=small(phase.recipe, 100)) for phase in memory_maze().phases),
        odometry=OdometryRecipe(
            training=OdometryTraining(steps=100, batch_size=16),
            mapped_walks=2,
            by_map=MapTraining(steps=100),
            bearings=BearingsTraining(steps=100, batch_size=64),
        ),
    )


STAGED_RECIPES: dict[str, Callable[[], StagedRecipe]] = {
    make.__name__: make for make in (memory_maze, memory_maze_tiny)
}
