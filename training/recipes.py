"""Training runs as functions: each returns a `Recipe`, whose fields `training.train` can override."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from training.objective.config import LossConfig
from training.objective.options import Options, sampling_options
from wm_gym.nn.config import NO_MAP, NO_ODOMETRY, MapConfig, PoseConfig, ScanConfig
from wm_gym.world_model import WorldModelConfig


@dataclass(frozen=True)
class Stage:
    """A part of the length curriculum."""

    length: int  # frames of a segment
    batch_size: int  # segments per process and step
    fraction: float  # of the whole run; the fractions of all stages add up to 1
    self_context: float = 0.0  # see training.objective.diffusion_forcing.world_model_loss


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training run computes.

    `progress` below is the finished part of the run in [0, 1], by steps or by wall clock, whichever is ahead. With
    `max_minutes` two runs are therefore never alike to the last bit; a resumed one still has every state restored.
    """

    stages: tuple[Stage, ...]
    steps: int
    model: WorldModelConfig = field(default_factory=WorldModelConfig)  # frame and action sizes come from the data
    loss: LossConfig = field(default_factory=LossConfig)
    max_minutes: float = 0.0  # wall-clock budget including compilation and earlier sessions; 0: none
    memory_frames: tuple[float, float] | None = None  # decay times of the scans' heads at step 0; None: Mamba2's own
    reward_window_fraction: float = 0.0  # of the segments, drawn around a reward; for data with hardly any
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 6e-4
    warmup_steps: int = 500
    decay: Literal["cosine", "linear"] = "cosine"  # to 0 over the whole run, or over its last `decay_fraction`
    decay_fraction: float = 0.5
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    options: Options = field(default_factory=Options)  # all off by default; see training.objective.options
    ema_decay: float = 0.999
    checkpoint_layers: bool = (
        False  # recompute layers in the backward pass: a third more time, a fraction of the memory
    )
    seed: int = 0
    log_steps: int = 50
    checkpoint_minutes: float = 5.0
    checkpoint_steps: int = 0  # in addition to checkpoint_minutes; 0: by time alone
    num_checkpoints: int = 2  # the latest ones are kept
    refresh_minutes: float = 0.0  # look for new episodes in the store; 0: never
    export_dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the weights in RUN/model.safetensors

    def __post_init__(self) -> None:
        if not self.stages or abs(sum(stage.fraction for stage in self.stages) - 1) > 1e-6:
            raise ValueError(f"The fractions of all stages must add up to 1, got {[s.fraction for s in self.stages]}.")
        for stage in self.stages:
            if stage.length < 2 or stage.batch_size < 1 or stage.fraction <= 0 or not 0 <= stage.self_context <= 1:
                raise ValueError(
                    f"A stage needs length >= 2, batch_size >= 1, fraction > 0 and self_context in [0, 1], got {stage}."
                )
        self.options.check({stage.batch_size for stage in self.stages})
        if self.steps < 1 or self.log_steps < 1 or self.num_checkpoints < 1:
            raise ValueError(
                "steps, log_steps and num_checkpoints must be at least 1, got "
                f"{self.steps}, {self.log_steps} and {self.num_checkpoints}."
            )

    def progress(self, step: int, elapsed_minutes: float) -> float:
        """The finished part of the run in [0, 1], by steps or by wall clock, whichever is ahead."""
        by_clock = elapsed_minutes / self.max_minutes if self.max_minutes > 0 else 0.0
        return min(max(step / self.steps, by_clock), 1.0)

    def stage_at(self, progress: float) -> Stage:
        """The stage of the curriculum at a progress in [0, 1]."""
        end = 0.0
        for stage in self.stages:
            end += stage.fraction
            if progress < end:
                return stage
        return self.stages[-1]

    def learning_rate_at(self, step: int, progress: float) -> float:
        """Linear warm-up over steps, times a decay to 0 over `progress`."""
        warmup = min((step + 1) / max(self.warmup_steps, 1), 1.0)
        if self.decay == "cosine":
            remaining = (1 + math.cos(math.pi * progress)) / 2
        else:
            remaining = min((1 - progress) / self.decay_fraction, 1.0)
        return self.learning_rate * warmup * remaining


def memory_maze_9x9() -> Recipe:
    """The first checkpoint: Memory Maze 9x9, frames of 64x64, 12.4M parameters, for GPUs with 80 GB or more.

    The last stage lets the model read its own frames as context, against drift.
    """
    return Recipe(
        model=WorldModelConfig.plain(
            block_sizes=(2, 4, 8, 1, 2, 4, 8, 1), scan=ScanConfig(num_groups=1), feed_forward_multiplier=4
        ),
        stages=(
            Stage(length=160, batch_size=20, fraction=0.3),
            Stage(length=400, batch_size=8, fraction=0.3),
            Stage(length=400, batch_size=8, fraction=0.4, self_context=0.5),
        ),
        steps=40_000,
        learning_rate=1.5e-3,
        warmup_steps=400,
        decay="linear",
        decay_fraction=0.6,
        checkpoint_minutes=2.5,
    )


def memory_maze_9x9_continued() -> Recipe:
    """Goes on from a checkpoint of `memory_maze_9x9` (``--init``), on long segments and on its own frames.

    The first checkpoint: 790 steps of `memory_maze_9x9`, 6.85 minutes of this, 4 H200s, 42.6M frames: 24.26 dB over 20
    dreamed frames in held-out mazes (docs/LOG.md).
    """
    return dataclasses.replace(
        memory_maze_9x9(),
        stages=(
            Stage(length=400, batch_size=8, fraction=0.5),
            Stage(length=400, batch_size=8, fraction=0.5, self_context=0.5),
        ),
        warmup_steps=100,
        decay_fraction=0.85,
    )


def memory_maze_9x9_pose() -> Recipe:
    """The checkpoint that recalls: conditioned on planar poses, half of its sequences turn round.

    Poses are what a memory is asked by: first the network learns to find what it saw at a pose, then to go on from it.
    Without poses an odometry (`training.odometry`) tells them from the actions.
    """
    recipe = memory_maze_9x9()
    return dataclasses.replace(
        recipe,
        model=WorldModelConfig(pose=PoseConfig(ray_lines=False, hide_actions=False), map=NO_MAP, odometry=NO_ODOMETRY),
        loss=LossConfig(revisit_probability=0.5, noise_after_prefix=0.5),
        stages=(
            Stage(length=400, batch_size=8, fraction=0.55),
            Stage(length=800, batch_size=4, fraction=0.2),
            Stage(length=800, batch_size=4, fraction=0.25, self_context=0.5),
        ),
        memory_frames=(16.0, 8000.0),
        optimizer="muon",
    )


def memory_maze_9x9_pose_continued() -> Recipe:
    """Goes on from a checkpoint of `memory_maze_9x9_pose` (``--init``): mostly what is to be told from memory alone.

    A dream sees pure noise behind its context (`feedback_interval`), and so does most of these sequences; in the last
    stage some go on with frames of the model's own, should they ever enter.
    """
    recipe = memory_maze_9x9_pose()
    return dataclasses.replace(
        recipe,
        loss=LossConfig(prefix_probability=0.75, revisit_probability=0.4, noise_after_prefix=0.7, own_generations=1),
        stages=(
            Stage(length=400, batch_size=8, fraction=0.25),
            Stage(length=800, batch_size=4, fraction=0.45),
            Stage(length=800, batch_size=4, fraction=0.3, self_context=0.5),
        ),
        learning_rate=1.2e-3,
        warmup_steps=100,
        decay_fraction=0.8,
    )


def memory_maze_9x9_pose_views() -> Recipe:
    """Goes on from a checkpoint of `memory_maze_9x9_pose_continued` (``--init``): views from poses never taken.

    Walks go on rather than turn round, and prefixes end near the middle, so that half of the frames are told from
    memory alone, most of them seen from elsewhere than before. Tokens are told their line of sight.
    """
    recipe = memory_maze_9x9_pose_continued()
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, pose=PoseConfig(hide_actions=False)),
        loss=dataclasses.replace(
            recipe.loss,
            prefix_probability=0.9,
            shortest_prefix=0.3,
            longest_prefix=0.7,
            revisit_probability=0.15,
            noise_after_prefix=0.9,
        ),
        stages=(Stage(length=400, batch_size=8, fraction=0.3), Stage(length=800, batch_size=4, fraction=0.7)),
        learning_rate=9e-4,
    )


def memory_maze_9x9_pose_only() -> Recipe:
    """Goes on from a checkpoint of `memory_maze_9x9_pose_views` (``--init``): frames are told no actions.

    A model that is told both follows the actions, and takes a way for free because somebody walks on. Told the pose
    alone, it has to look up what is there.
    """
    recipe = memory_maze_9x9_pose_views()
    return dataclasses.replace(
        recipe, model=dataclasses.replace(recipe.model, pose=PoseConfig()), learning_rate=7e-4, warmup_steps=200
    )


def memory_maze_9x9_map() -> Recipe:
    """Goes on from a checkpoint of `memory_maze_9x9_pose_only` (``--init``) with a map beside the states.

    States answer what was asked there before; a map is asked from anywhere (`wm_gym.nn.map_memory`). Half of the mazes
    are seen in a mirror.
    """
    recipe = memory_maze_9x9_pose_only()
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, map=MapConfig()),
        loss=dataclasses.replace(recipe.loss, mirror_probability=0.5),
        learning_rate=9e-4,
    )


def memory_maze_9x9_samples() -> Recipe:
    """Goes on from `memory-maze` (``--init``): one pass draws the sample that three would draw.

    What frames write into the map stays as it is, so the checkpoint's odometry goes on reading it.
    """
    recipe = memory_maze_9x9_map()
    return dataclasses.replace(
        recipe,
        model=WorldModelConfig(sample_noise=True),
        loss=dataclasses.replace(
            recipe.loss, shortest_prefix=0.05, noise_after_prefix=0.8, scatter_probability=0.6, own_generations=0
        ),
        options=sampling_options(),
        stages=(Stage(length=400, batch_size=8, fraction=1.0),),
        steps=6000,
        learning_rate=6e-4,
        warmup_steps=50,
    )


def memory_maze_9x9_comparison() -> Recipe:
    """What the rows of the comparison are trained by: `memory_maze_9x9_pose` with 16 tokens per frame in place of 64.

    So attention over all frames is affordable, and every row sees enough frames to learn recall; and most of what
    follows a prefix is to be told from memory alone.
    """
    recipe = memory_maze_9x9_pose()
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, patch_size=16, block_sizes=(2, 1, 4, 1, 2, 1, 4, 1)),
        loss=LossConfig(prefix_probability=0.75, revisit_probability=0.5, noise_after_prefix=0.7),
        stages=(Stage(length=400, batch_size=16, fraction=1.0),),
        steps=2000,
        warmup_steps=100,
        decay_fraction=0.8,
    )


def tiny() -> Recipe:
    """Two minutes on a CPU: shows that the pipeline learns, not how well."""
    return Recipe(
        model=WorldModelConfig.plain(
            width=64,
            block_sizes=(2, 1),
            scan=ScanConfig(head_dim=32, state_dim=16, num_groups=1),
            window=4,
            num_attention_heads=2,
            feed_forward_multiplier=4,
        ),
        stages=(Stage(length=12, batch_size=8, fraction=0.5), Stage(length=24, batch_size=4, fraction=0.5)),
        steps=2000,
        max_minutes=2.0,
        learning_rate=2e-3,
        warmup_steps=20,
        ema_decay=0.99,
        checkpoint_minutes=1.0,
        export_dtype="float32",
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        memory_maze_9x9,
        memory_maze_9x9_continued,
        memory_maze_9x9_pose,
        memory_maze_9x9_pose_continued,
        memory_maze_9x9_pose_views,
        memory_maze_9x9_pose_only,
        memory_maze_9x9_map,
        memory_maze_9x9_samples,
        memory_maze_9x9_comparison,
        tiny,
    )
}
