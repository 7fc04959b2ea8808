"""What is tried: one recipe that recalls the ring, and the same with one option changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from training.objective.config import LossConfig
from training.objective.options import Options
from training.objective.options.carried_states import CarriedStatesSettings
from training.objective.options.hooks import OptionSettings
from training.objective.options.learned_weights import LearnedWeightsSettings
from training.objective.options.memory_replay import MemoryReplaySettings
from training.objective.options.stochastic_depth import StochasticDepthSettings
from training.recipes import Recipe, Stage
from wm_gym.nn.config import NO_MAP, NO_ODOMETRY, PoseConfig, ScanConfig
from wm_gym.world_model import WorldModelConfig

LENGTH = 32  # frames of a segment, four times those of a way round the ring
BATCH_SIZE = 16
CARRIED_FRAMES = 8  # once round


def baseline(steps: int, seed: int) -> Recipe:
    """`memory_maze_9x9_pose` in small: planar poses, hidden noise, long decay times, Muon; no option of those tried."""
    return Recipe(
        model=WorldModelConfig(
            patch_size=16,
            width=64,
            block_sizes=(1, 1),
            scan=ScanConfig(head_dim=32, state_dim=32, num_groups=2),
            window=2,
            num_attention_heads=2,
            feed_forward_multiplier=2,
            condition_width=64,
            pose=PoseConfig(ray_lines=False, hide_actions=False),
            map=NO_MAP,
            odometry=NO_ODOMETRY,
        ),
        loss=LossConfig(noise_after_prefix=0.5),
        stages=(Stage(LENGTH, BATCH_SIZE, 1.0),),
        steps=steps,
        memory_frames=(8.0, 500.0),
        optimizer="muon",
        learning_rate=4e-3,
        warmup_steps=50,
        decay="linear",
        decay_fraction=0.6,
        ema_decay=0.99,
        seed=seed,
        checkpoint_minutes=1.0,
        export_dtype="float32",
    )


def _with(recipe: Recipe, **settings: OptionSettings) -> Recipe:
    """The recipe with settings of one option."""
    return dataclasses.replace(recipe, options=Options(**settings))  # pyright: ignore[reportArgumentType]


def carried_frames(recipe: Recipe) -> Recipe:
    """Segments in parts with the state carried over, and truncated backpropagation through time."""
    return _with(recipe, carried_states=CarriedStatesSettings(CARRIED_FRAMES))


def carried_frames_twice(recipe: Recipe) -> Recipe:
    """The same in parts that are twice as long: within one of them the way leads back to more of what was seen."""
    return _with(recipe, carried_states=CarriedStatesSettings(2 * CARRIED_FRAMES))


def state_reconstruction(recipe: Recipe) -> Recipe:
    """States are asked for earlier frames after each part; the parts are those of `carried_frames`."""
    return _with(recipe, carried_states=CarriedStatesSettings(CARRIED_FRAMES, 0.5))


def state_reconstruction_whole(recipe: Recipe) -> Recipe:
    """The same in one part: nothing is truncated, and the state at the end of each segment is asked."""
    return _with(recipe, carried_states=CarriedStatesSettings(LENGTH, 0.5))


def attention_drop(recipe: Recipe) -> Recipe:
    """Stochastic depth on local attention."""
    return _with(recipe, stochastic_depth=StochasticDepthSettings(0.3))


def memory_replay(recipe: Recipe) -> Recipe:
    """A quarter of each batch was seen before, in the last 20 steps or so."""
    return _with(recipe, memory_replay=MemoryReplaySettings(0.25, 256))


def learned_weights(recipe: Recipe) -> Recipe:
    """Weights between the losses of frames, rewards and terminations are learned."""
    return _with(recipe, learned_weights=LearnedWeightsSettings(True))


OPTIONS: dict[str, Callable[[Recipe], Recipe]] = {
    option.__name__: option
    for option in (
        carried_frames,
        carried_frames_twice,
        state_reconstruction,
        state_reconstruction_whole,
        attention_drop,
        memory_replay,
        learned_weights,
    )
}
