"""Part 1: a single dream's step at several ages, ours beside networks of the same size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from training.benchmarks.speed.steppers import (
    FunctionalStepper,
    GraphStepper,
    Step,
    mamba_stepper,
    seen_state,
    state_bytes,
    transformer_stepper,
)
from training.benchmarks.speed.timing import Deadline, is_out_of_memory, latency, peak_memory, synchronize
from wm_gym.world_model import WorldModel

OURS, FULL, SLIDING, MAMBA = "ours", "full-cache transformer", "sliding-window transformer", "mamba-ssm modules"
FUNCTIONAL = "ours, WorldModel.step"


@dataclass(frozen=True)
class LatencySettings:
    """What is timed of a single dream."""

    frames: tuple[int, ...]  # ages of the dream, rising
    frames_beyond: tuple[int, ...] = ()  # more of them, of the transformer with a full cache alone
    num_steps: int = 100
    seconds: float = 150.0  # for the whole part
    step_seconds: float = 3.0  # for the steps of one row


def measure_latency(model: WorldModel, settings: LatencySettings) -> Iterator[dict[str, Any]]:
    """One row per model, age and place of the frame (left on the device, or taken to the host as numpy)."""
    deadline = Deadline(settings.seconds)
    yield from _measure_ours(model, settings, deadline)
    makers: dict[str, Callable[[int], Any]] = {
        FUNCTIONAL: lambda age: FunctionalStepper(model, seen_state(model, age)),
        MAMBA: lambda age: mamba_stepper(model, age),
        FULL: lambda age: transformer_stepper(model, "causal_transformer", age),
        SLIDING: lambda age: transformer_stepper(model, "sliding_transformer", age),
    }
    for name, make in makers.items():
        for age in _ages(name, settings):
            if deadline.has_passed:
                yield {"model": name, "frame": age, "skipped": "the time limit of this part was reached"}
                continue
            try:
                with peak_memory(model.device) as memory:
                    stepper = make(age)
                    rows = _rows(name, stepper, age, model.device, settings)
                    size = state_bytes(stepper)
                    del stepper
                yield from (row | {"state_bytes": size, "peak_bytes": memory.peak_bytes} for row in rows)
            except Exception as error:  # a baseline that cannot run here must not cost the rest
                reason = "not enough memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
                yield {"model": name, "frame": age, "skipped": reason}


def _measure_ours(model: WorldModel, settings: LatencySettings, deadline: Deadline) -> Iterator[dict[str, Any]]:
    """Ours really dreams up to every age."""
    age = settings.frames[0]
    on_gpu = model.device.type == "cuda"
    with peak_memory(model.device) as memory:
        stepper = GraphStepper(model, seen_state(model, age))
        stepper()
    for target in settings.frames:
        while age < target and not deadline.has_passed:
            stepper()
            age += 1
        synchronize(model.device)
        if age < target:
            yield {"model": OURS, "frame": target, "skipped": "the time limit of this part was reached"}
            continue
        allocated = torch.cuda.memory_allocated(model.device) if on_gpu else None
        first = age
        for row in _rows(OURS, stepper, target, model.device, settings):
            age += row["num_steps"]
            yield row | {
                "first_frame": first,  # a young dream grows older than its next age while it is measured
                "state_bytes": state_bytes(stepper),
                "peak_bytes": memory.peak_bytes,
                "allocated_bytes": allocated,  # by the whole process: what counts is that it stays
            }


def _ages(name: str, settings: LatencySettings) -> tuple[int, ...]:
    """Those at which a model is measured: one, where its work does not depend on the age."""
    if name in (FUNCTIONAL, MAMBA):
        return settings.frames[:1]
    return settings.frames + (settings.frames_beyond if name == FULL else ())


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
