"""Times and memory of repeated work, on a GPU or a CPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

MIN_STEPS = 5  # however long one takes


@dataclass
class Deadline:
    """The time that a part of the benchmark may take."""

    seconds: float
    started: float = field(default_factory=time.perf_counter)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.perf_counter() - self.started)

    @property
    def has_passed(self) -> bool:
        """Whether no time is left."""
        return self.left <= 0


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def latency(
    step: Callable[[], object], device: torch.device, num_steps: int, seconds: float, num_warm_ups: int = 3
) -> dict[str, Any]:
    """Median and 99th percentile of single steps, each from the call until the device has finished.

    Args:
        num_steps: steps to time, after the warm-up.
        seconds: fewer are timed, but at least `MIN_STEPS`, once so many have passed.
    """
    for _ in range(num_warm_ups):
        step()
    synchronize(device)
    times: list[float] = []
    deadline = Deadline(seconds)
    while len(times) < num_steps and not (deadline.has_passed and len(times) >= MIN_STEPS):
        started = time.perf_counter()
        step()
        synchronize(device)
        times.append(time.perf_counter() - started)
    milliseconds = np.array(times) * 1000
    return {
        "median_ms": round(float(np.median(milliseconds)), 4),
        "p99_ms": round(float(np.quantile(milliseconds, 0.99)), 4),
        "num_steps": len(times),
    }


def seconds_per_step(
    step: Callable[[], object], device: torch.device, num_steps: int, seconds: float, num_warm_ups: int = 3
) -> float:
    """Mean of steps that follow each other without waiting for the device in between."""
    for _ in range(num_warm_ups):
        step()
    synchronize(device)
    started = time.perf_counter()
    step()
    synchronize(device)
    one = time.perf_counter() - started
    num_steps = max(MIN_STEPS, min(num_steps, int(seconds / one)))
    started = time.perf_counter()
    for _ in range(num_steps):
        step()
    synchronize(device)
    return (time.perf_counter() - started) / num_steps


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a copy much larger than any cache."""
    size = (4 if device.type == "cuda" else 0.125) * 2**30
    source = torch.zeros(int(size), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = min(seconds_per_step(lambda: target.copy_(source), device, 10, 0.5) for _ in range(3))
    return 2 * size / best


@dataclass
class Memory:
    """Bytes that a block allocates at its peak; None on a CPU, where nobody counts them."""

    peak_bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Memory]:
    """Fills in the peak when the block ends, which counts from what was there before."""
    memory = Memory()
    gc.collect()
    if device.type != "cuda":
        yield memory
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield memory
    memory.peak_bytes = torch.cuda.max_memory_allocated(device) - before


def is_out_of_memory(error: BaseException) -> bool:
    """PyTorch has an exception of its own on a GPU only."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
