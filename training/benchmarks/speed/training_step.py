"""Part 3: time and memory of training against the length of segments, ours against full causal attention."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from training.baselines import build_model, matching_config
from training.baselines.recipes import make_recipe
from training.benchmarks.speed.latency import FULL, OURS
from training.benchmarks.speed.timing import Deadline, is_out_of_memory, latency, peak_memory
from training.data.dataset import Batch
from training.loop.distributed import Processes
from training.loop.ema import ExponentialMovingAverage
from training.loop.run_state import RunState
from training.loop.step import make_optimizer, prepare_gpu, train_step
from training.objective.diffusion_forcing import ClassWeights, LossConfig, world_model_loss
from training.recipes import Recipe, Stage
from wm_gym.world_model import WorldModel, WorldModelConfig


@dataclass(frozen=True)
class TrainingSettings:
    """What is timed of training."""

    lengths: tuple[int, ...]
    frames_per_step: int  # the batch has as many segments as make up so many frames
    num_steps: int = 10
    step_seconds: float = 5.0  # for the steps of one row


def random_batch(config: WorldModelConfig, size: int, length: int, device: torch.device) -> Batch:
    """Noise of the right shapes: what a frame shows costs no time."""
    generator = torch.Generator().manual_seed(0)
    shape = (size, length, config.frame_height, config.frame_width, config.frame_channels)
    if config.action_kind == "discrete":
        actions = torch.randint(0, config.action_size, (size, length - 1), generator=generator)
    else:
        actions = torch.randn(size, length - 1, config.action_size, generator=generator)
    batch = Batch(
        frames=torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        actions=actions,
        rewards=torch.full((size, length - 1), config.reward_values[0]),
        terminations=torch.zeros(size, length - 1, dtype=torch.bool),
        pose=torch.zeros(size, length, config.pose.size),
    )
    return Batch(**{name: tensor.to(device) for name, tensor in vars(batch).items()})


def equal_weights(config: WorldModelConfig, device: torch.device) -> ClassWeights:
    """Loss weights under which all classes count alike."""
    values = torch.tensor(config.reward_values, device=device)
    return ClassWeights(values, torch.ones_like(values), torch.ones((), device=device))


def measure_lengths(
    config: WorldModelConfig, device: torch.device, settings: TrainingSettings, deadline: Deadline
) -> Iterator[dict[str, Any]]:
    """Forward and backward pass of the loss as training runs it: on a GPU ours on its fused kernels, the transformer's
    layers compiled, with FlexAttention."""
    configs = {OURS: config, FULL: matching_config("causal_transformer", config)}
    models = {name: build_model(each).to(device).train() for name, each in configs.items()}
    if device.type == "cuda":
        for model in models.values():
            prepare_gpu(model, True)
    for length in settings.lengths:
        if device.type == "cuda":
            torch.compiler.reset()  # what earlier lengths left takes memory and counts as recompilation
        for name, model in models.items():
            batch_size = max(1, settings.frames_per_step // length)
            row: dict[str, Any] = {"model": name, "length": length}
            for size in dict.fromkeys((batch_size, 1)):
                if deadline.has_passed:
                    row["skipped"] = "the time limit of this part was reached"
                    break
                timed = _measure_length(model, size, length, device, settings)
                if timed is not None:
                    row |= timed
                    break
            else:
                row["skipped"] = "not enough memory"
            yield row


def _measure_length(
    model: WorldModel, size: int, length: int, device: torch.device, settings: TrainingSettings
) -> dict[str, Any] | None:
    """None if the memory does not suffice."""
    try:
        with peak_memory(device) as memory:
            step = loss_step(model, size, length, device)
            timed = latency(step, device, settings.num_steps, settings.step_seconds, num_warm_ups=2)
            del step
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        model.zero_grad(set_to_none=True)
    seconds = timed["median_ms"] / 1000
    rate = round(size * length / seconds, 1)
    return {"batch": size, **timed, "frames_per_second": rate, "peak_bytes": memory.peak_bytes}


def loss_step(model: WorldModel, size: int, length: int, device: torch.device) -> Callable[[], None]:
    """The loss of one random batch and its gradients."""
    batch, weights = random_batch(model.config, size, length, device), equal_weights(model.config, device)
    generator = torch.Generator(device).manual_seed(0)
    on_gpu = device.type == "cuda"

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16) if on_gpu else contextlib.nullcontext():
            loss, _ = world_model_loss(model, batch, LossConfig(), generator, weights)
        loss.backward()

    return step


def measure_recipe(name: str, device: torch.device, settings: TrainingSettings) -> dict[str, Any]:
    """Whole optimizer steps of a recipe's longest stage as `training.train` makes them, on frames that are noise."""
    recipe = make_recipe(name)
    stage = max(recipe.stages, key=lambda stage: (stage.length, -stage.self_context))
    with peak_memory(device) as memory:
        step = recipe_step(recipe, stage, device)
        timed = latency(step, device, 2 * settings.num_steps, settings.step_seconds)
        del step
    frames = stage.batch_size * stage.length
    return {
        "recipe": name,
        "batch": stage.batch_size,
        "length": stage.length,
        **timed,
        "frames_per_second": round(frames / timed["median_ms"] * 1000, 1),
        "peak_bytes": memory.peak_bytes,
    }


def recipe_step(recipe: Recipe, stage: Stage, device: torch.device) -> Callable[[], None]:
    """A new run and one random batch, on which it steps again and again."""
    torch.manual_seed(0)
    model = build_model(recipe.model).to(device).train()
    if device.type == "cuda":
        prepare_gpu(model, True)
    state = RunState(
        model=model,
        ema=ExponentialMovingAverage(dict(model.named_parameters()), recipe.ema_decay),
        optimizer=make_optimizer(model, recipe, device),
        noise_generator=torch.Generator(device).manual_seed(0),
        data_seeds=[],
    )
    batch = random_batch(recipe.model, stage.batch_size, stage.length, device)
    weights, processes = equal_weights(recipe.model, device), Processes(0, 1, device, None)

    def step() -> None:
        train_step(state, batch, recipe, stage, weights, recipe.learning_rate, processes)

    return step
