"""Part 2: many dreams in one batch, beside what memory bandwidth allows, the vector environment and the real one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import torch

from training.benchmarks.collect import BenchConfig, measure
from training.benchmarks.speed.steppers import GraphStepper, no_actions, seen_state
from training.benchmarks.speed.timing import Deadline, is_out_of_memory, peak_memory, seconds_per_step
from wm_gym.nn.state import ModelState
from wm_gym.world_model import WorldModel


@dataclass(frozen=True)
class BatchSettings:
    """What is timed of batches of dreams."""

    sizes: tuple[int, ...]
    num_steps: int = 100
    seconds: float = 120.0  # for the whole part
    step_seconds: float = 3.0  # for the steps of one row


def bytes_per_step(model: WorldModel, state: ModelState, batch_size: int) -> int:
    """What one step with one pass cannot but move: each state in and out, keys and values in, weights in.

    Keys and values of one frame are written. Weights are bfloat16 on a GPU, float32 elsewhere.

    Args:
        state: of a single dream.
    """
    moved = 0
    for layer in state.layers:
        moved += 2 * (layer.ssm_state.nbytes + layer.conv_state.nbytes)
        moved += layer.kv_cache.nbytes + layer.kv_cache[:, :1].nbytes
    weight_bytes = 2 if model.device.type == "cuda" else 4
    return batch_size * moved + weight_bytes * sum(parameter.numel() for parameter in model.parameters())


def measure_batches(model: WorldModel, settings: BatchSettings, bandwidth: float) -> Iterator[dict[str, Any]]:
    """Frames per second of all rows together, for each batch size, and the share of the roofline that this is.

    Args:
        bandwidth: bytes per second that a copy reads and writes.
    """
    deadline = Deadline(settings.seconds)
    one = seen_state(model, 2 * model.config.window)
    for size in settings.sizes:
        if deadline.has_passed:
            yield {"batch": size, "skipped": "the time limit of this part was reached"}
            continue
        try:
            with peak_memory(model.device) as memory:
                stepper = GraphStepper(model, one, size)
                seconds = seconds_per_step(stepper, model.device, settings.num_steps, settings.step_seconds)
            implementation = stepper.implementation
            del stepper
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            yield {"batch": size, "skipped": "not enough memory"}
            continue
        moved = bytes_per_step(model, one, size)
        yield {
            "batch": size,
            "step_ms": round(seconds * 1000, 4),
            "frames_per_second": round(size / seconds, 1),
            "state_bytes": size * one.num_bytes(),
            "peak_bytes": memory.peak_bytes,
            "moved_bytes": moved,
            "roofline_frames_per_second": round(size * bandwidth / moved, 1),
            "share_of_roofline": round(moved / bandwidth / seconds, 4),
            "implementation": implementation,
        }


def measure_env(
    model: WorldModel, checkpoint: str, size: int, num_steps: int = 200, seconds: float = 5.0
) -> dict[str, Any]:
    """`gym.make_vec` with actions and frames as tensors on the device, against the bare step of the same batch.

    Episodes do not end within the measurement.
    """
    env = gym.make_vec(
        "LSSVWM-MemoryMaze-v0",
        num_envs=size,
        vectorization_mode="vector_entry_point",
        checkpoint=checkpoint,
        context_frames=2 * model.config.window,
        device=str(model.device),
        output="torch",
        horizon=1_000_000,
    )
    actions = no_actions(model, size)
    env.reset(seed=0)
    env_seconds = seconds_per_step(lambda: env.step(actions), model.device, num_steps, seconds)
    env.close()
    stepper = GraphStepper(model, seen_state(model, 2 * model.config.window), size)
    step_seconds = seconds_per_step(stepper, model.device, num_steps, seconds)
    return {
        "num_envs": size,
        "env_step_ms": round(env_seconds * 1000, 4),
        "model_step_ms": round(step_seconds * 1000, 4),
        "overhead": round(env_seconds / step_seconds - 1, 4),
        "frames_per_second": round(size / env_seconds, 1),
    }


def measure_real_env(device: torch.device) -> dict[str, Any]:
    """Frames per second of the real Memory Maze 9x9, resets included: one process of this project's fast
    implementation, one per core, and one process as published."""
    cores = os.cpu_count() or 1
    renderers: tuple[Literal["egl", "osmesa"], ...] = ("egl", "osmesa") if device.type == "cuda" else ("osmesa",)
    cases: dict[str, tuple[Literal["direct", "upstream"], int]] = {
        "one_process": ("direct", 1),
        "one_per_core": ("direct", cores),
    }
    if device.type == "cuda":  # it takes half a minute in software rendering, and is judged on a GPU only
        cases["one_process_as_published"] = ("upstream", 1)
    reasons = []
    for renderer in renderers:
        try:
            rates = {
                name: measure(BenchConfig(episodes=1, workers=workers, gl=renderer), implementation)[
                    "frames_per_second"
                ]
                for name, (implementation, workers) in cases.items()
            }
            return {"env": "wm_gym/MemoryMaze-9x9-v0", "renderer": renderer, "cores": cores, **rates}
        except Exception as error:  # whatever rendering fails with in another process
            reasons.append(f"{renderer}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    return {"skipped": "the real environment does not run here (" + "; ".join(reasons) + ")"}
