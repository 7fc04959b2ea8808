"""Part 1: a single dream's step at several ages, ours beside networks of the same size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from training.speed.steppers import (
    FunctionalStepper,
    GraphStepper,
    Step,
    mamba_stepper,
    seen_state,
    state_bytes,
    transformer_stepper,
)
from training.speed.timing import Deadline, is_out_of_memory, latency, peak_memory, synchronize
from wm_gym.world_model import WorldModel

OURS, FULL, SLIDING, MAMBA = "ours", "full-cache transformer", "sliding-window transformer", "mamba-ssm modules"
FUNCTIONAL = "ours, WorldModel.step"


@dataclass(frozen=True)
class LatencySettings:
    frames: tuple[int, ...]  # ages of the dream, rising
    num_steps: int = 100
    seconds: float = 150.0  # for the whole part
    step_seconds: float = 3.0  # for the steps of one row


def measure_latency(model: WorldModel, settings: LatencySettings) -> list[dict[str, Any]]:
    """One row per model, age and place of the frame (left on the device, or taken to the host as numpy)."""
    deadline = Deadline(settings.seconds)
    rows = _measure_ours(model, settings, deadline)
    makers: dict[str, Callable[[int], Any]] = {
        SLIDING: lambda age: transformer_stepper(model, "sliding_transformer", age),
        FULL: lambda age: transformer_stepper(model, "causal_transformer", age),
        MAMBA: lambda age: mamba_stepper(model, age),
    }
    for name, make in makers.items():
        for age in settings.frames:
            if deadline.has_passed:
                rows.append({"model": name, "frame": age, "skipped": "the time limit of this part was reached"})
                continue
            if name == MAMBA and age > min(settings.frames):
                continue  # its work does not depend on the age
            try:
                with peak_memory(model.device) as memory:
                    stepper = make(age)
                    timed = _rows(name, stepper, age, model.device, settings)
                    size = state_bytes(stepper)
                rows += [row | {"state_bytes": size, "peak_bytes": memory.peak_bytes} for row in timed]
                del stepper
            except (ImportError, RuntimeError) as error:
                reason = "not enough memory" if is_out_of_memory(error) else str(error).splitlines()[0]
                rows.append({"model": name, "frame": age, "skipped": reason})
    return rows


def _measure_ours(model: WorldModel, settings: LatencySettings, deadline: Deadline) -> list[dict[str, Any]]:
    """Ours really dreams up to every age."""
    rows = []
    first = settings.frames[0]
    with peak_memory(model.device) as memory:
        stepper = GraphStepper(model, seen_state(model, first))
        age = first
        for target in settings.frames:
            while age < target and not deadline.has_passed:
                stepper()
                age += 1
            synchronize(model.device)
            if age < target:
                rows.append({"model": OURS, "frame": target, "skipped": "the time limit of this part was reached"})
                continue
            # Other things of this process may lie in memory: what counts is that the figure stays the same.
            allocated = torch.cuda.memory_allocated() if model.device.type == "cuda" else None
            timed = _rows(OURS, stepper, target, model.device, settings)
            age += sum(row["num_steps"] + 3 for row in timed)
            rows += [row | {"state_bytes": state_bytes(stepper), "allocated_bytes": allocated} for row in timed]
    for row in rows:
        row["peak_bytes"] = memory.peak_bytes
    for target in settings.frames[:1]:
        functional = FunctionalStepper(model, seen_state(model, target))
        size = state_bytes(functional)
        rows += [row | {"state_bytes": size} for row in _rows(FUNCTIONAL, functional, target, model.device, settings)]
    return rows


def _rows(name: str, step: Any, age: int, device: torch.device, settings: LatencySettings) -> list[dict[str, Any]]:
    """The frame left on the device, and as numpy on the host."""
    on_host: Step = lambda: step().cpu().numpy()  # noqa: E731
    kinds = {"device": step, "host": on_host} if device.type == "cuda" else {"host": on_host}
    return [
        {
            "model": name,
            "frame": age,
            "output": output,
            **latency(call, device, settings.num_steps, settings.step_seconds),
            "implementation": step.implementation,
        }
        for output, call in kinds.items()
    ]
