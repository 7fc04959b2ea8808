"""Measures one imagined frame:
``python -m training.benchmarks.step --batches 1 16 64 256 512 1024 --out docs/results/step.json``.

First it holds the graph against `WorldModel.step`, then it times the graph for each number of dreams. ``--profile``
adds the kernels of one step and their times.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from wm_gym.contexts import load_clips
from wm_gym.engine.graph import StepGraph
from wm_gym.files import write_json
from wm_gym.ops.step import frame_noise
from wm_gym.provenance import command_arguments, provenance
from wm_gym.world_model import ModelState, WorldModel

_ROWS_PER_LOAD = 64
_ACTIONS = 64  # different ones, in turn


@dataclass(frozen=True)
class BenchConfig:
    """Latency, throughput and memory of `StepGraph`."""

    batches: tuple[int, ...] = (1, 16, 64, 256)
    """Numbers of dreams."""
    out: Path | None = None
    """JSON file for the result."""
    device: str = "auto"
    """Where to run."""
    checkpoint: str = "memory-maze"
    """A packaged name, a path, or a Hub id."""
    contexts: str = "memory-maze"
    """Clips that fit it."""
    context_frames: int = 100
    """Frames that are read first."""
    steps: int = 10_000
    """Steps of each dream; fewer where they would take longer than `seconds`."""
    seconds: float = 15.0
    """Limit for the long run of each number of dreams; the shorter ones take half as much together."""
    num_denoising_steps: int = 1
    """Passes of the network per frame."""
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    """In which SSM states are kept."""
    profile: bool = False
    """Also list the kernels of a step, for each number of dreams (CUDA only)."""


def prefilled(model: WorldModel, config: BenchConfig) -> ModelState:
    """The memory of one dream after a context."""
    context = load_clips(config.contexts).context(0, config.context_frames)
    frames, actions = (torch.from_numpy(np.array(part))[None] for part in (context.frames, context.actions))
    return model.prefill(model.initial_state(1), frames.to(model.device), actions.to(model.device))


def make_graph(model: WorldModel, state: ModelState, batch: int, config: BenchConfig, **arguments: Any) -> StepGraph:
    """A graph with `batch` dreams that differ in their noise."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.state_dtype]
    graph = StepGraph(model, batch, config.num_denoising_steps, dtype, **arguments)
    for first in range(0, batch, _ROWS_PER_LOAD):
        rows = torch.arange(first, min(batch, first + _ROWS_PER_LOAD))
        graph.load(state.index(torch.zeros_like(rows)), rows)
    graph.set_noise(torch.arange(batch))
    return graph


def make_actions(model: WorldModel, batch: int) -> Tensor:
    """`_ACTIONS` times [B] or [B, A], on the device."""
    c, random = model.config, torch.Generator().manual_seed(0)
    if c.action_kind == "discrete":
        return torch.randint(0, c.action_size, (_ACTIONS, batch), generator=random).to(model.device)
    return (2 * torch.rand(_ACTIONS, batch, c.action_size, generator=random) - 1).to(model.device)


def check(model: WorldModel, state: ModelState, config: BenchConfig) -> dict[str, float]:
    """Relative errors of the graph against the model, the largest of 8 steps of two dreams from the same memories."""
    graph, actions, keys = make_graph(model, state, 2, config), make_actions(model, 2), torch.arange(2)
    state = graph.state()
    c = model.config
    shape = (c.frame_channels, c.frame_height, c.frame_width)
    errors: dict[str, float] = {}
    for t in range(8):
        noise = frame_noise(keys, torch.full((2,), t), shape)
        given = graph.step(actions[t])
        expected, state = model.step(state, actions[t], noise, config.num_denoising_steps)
        pairs = {
            "frame": (given.model_frame, expected.frame),
            "reward_logits": (given.reward_logits, expected.reward_logits),
            "termination_logits": (given.termination_logits, expected.termination_logits),
        }
        after = graph.state()
        for i, (own, other) in enumerate(zip(after.layers, state.layers, strict=True)):
            pairs[f"ssm_state of layer {i}"] = own.ssm_state, other.ssm_state
            pairs[f"conv_state of layer {i}"] = own.conv_state, other.conv_state
            pairs[f"kv_cache of layer {i}"] = own.kv_cache, other.kv_cache
        for name, (own, other) in pairs.items():
            errors[name] = max(errors.get(name, 0.0), relative_error(own, other))
        graph.load(state)
    errors["gelu"] = _gelu_error(model.device)
    return errors


def relative_error(given: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of `expected`; NaN if either holds one."""
    return ((given.double() - expected.double()).norm() / expected.double().norm()).item()


def measure(graph: StepGraph, model: WorldModel, config: BenchConfig) -> dict[str, Any]:
    """Times of one batch size. Latencies are seen from the host, from the call to the finished frame."""
    actions = make_actions(model, graph.batch_size)

    def on_device(t: int) -> None:
        graph.step(actions[t % _ACTIONS])
        _synchronize(model.device)

    def on_host(t: int) -> None:
        graph.step(actions[t % _ACTIONS]).frame.cpu().numpy()

    def many(t: int) -> None:
        for i in range(10):
            graph.step(actions[(t + i) % _ACTIONS])
        _synchronize(model.device)

    memory = graph.memory.num_bytes
    early = _times(on_device, 10)[5:]
    early += _times(on_device, 100, config.seconds / 8)
    allocated = _allocated(model.device)
    num_steps, started = int(graph.noise_counters[0]), time.perf_counter()
    while num_steps < config.steps - 100 and time.perf_counter() - started < config.seconds:
        many(num_steps)
        num_steps += 10
    late = _times(on_device, 100, config.seconds / 8)
    grown = _allocated(model.device) - allocated
    host = _times(on_host, 200, config.seconds / 8)
    rate = 10 * graph.batch_size / np.median(_times(many, 20, config.seconds / 8))
    every = early + late
    return {
        "batch": graph.batch_size,
        "ms_on_device": {"median": _ms(np.median(every)), "p99": _ms(np.percentile(every, 99))},
        "ms_on_host": {"median": _ms(np.median(host)), "p99": _ms(np.percentile(host, 99))},
        "frames_per_second": round(float(rate), 1),
        "ms_early": _ms(np.median(early)),
        "ms_late": _ms(np.median(late)),
        "late_steps": [int(graph.noise_counters[0]) - len(late) - len(host), int(graph.noise_counters[0])],
        "state_bytes_per_dream": memory // graph.batch_size,
        "bytes_grown": grown + graph.memory.num_bytes - memory,
        "bytes_reserved": torch.cuda.memory_reserved() if model.device.type == "cuda" else None,
    }


def profile(graph: StepGraph, model: WorldModel) -> list[dict[str, Any]]:
    """Kernels of one step by name, the most expensive first."""
    actions = make_actions(model, graph.batch_size)
    for t in range(3):
        graph.step(actions[t])
    _synchronize(model.device)
    count = 5
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for t in range(count):
            graph.step(actions[t])
        _synchronize(model.device)
    rows = [
        {
            "kernel": event.key,
            "launches": event.count / count,
            "us": round(event.self_device_time_total / count, 1),
        }
        for event in profiler.key_averages()
        if event.self_device_time_total > 0
    ]
    return sorted(rows, key=lambda row: -row["us"])


def print_profile(rows: list[dict[str, Any]], batch: int) -> None:
    """Prints the kernels that take most of the time."""
    total, launches = sum(row["us"] for row in rows), sum(row["launches"] for row in rows)
    print(f"\n{batch} dream(s): {launches:.0f} kernels, {total:.0f} us")
    for row in rows[:30]:
        print(f"{row['us']:10.1f} us {row['us'] / total:6.1%} {row['launches']:6.1f} x  {row['kernel'][:90]}")


def run(config: BenchConfig) -> dict[str, Any]:
    """All measurements, printed as they come."""
    model = WorldModel.from_checkpoint(config.checkpoint, config.device)
    with torch.no_grad():
        state = prefilled(model, config)
        errors = check(model, state, config)
        worst = max(errors, key=lambda name: errors[name])
        print(f"largest relative error against WorldModel.step: {errors[worst]:.1e} ({worst})", flush=True)
        results, profiles = [], {}
        for batch in config.batches:
            graph = make_graph(model, state, batch, config)
            results.append(measure(graph, model, config))
            print(json.dumps(results[-1]), flush=True)
            if config.profile and model.device.type == "cuda":
                profiles[batch] = profile(graph, model)
                print_profile(profiles[batch], batch)
            del graph
            if model.device.type == "cuda":
                torch.cuda.empty_cache()
        reference = _measure_functional(model, state, config)
    return {
        "captured": model.device.type == "cuda",
        "state_dtype": config.state_dtype,
        "num_denoising_steps": config.num_denoising_steps,
        "relative_errors": {name: float(f"{error:.2e}") for name, error in errors.items()},
        "ms_of_model_step": reference,
        "batches": results,
        **({"profiles": profiles} if profiles else {}),
    }


def _measure_functional(model: WorldModel, state: ModelState, config: BenchConfig) -> float:
    """Median time of `WorldModel.step` for one dream."""
    actions, generator = make_actions(model, 1), torch.Generator(model.device).manual_seed(0)

    def step(t: int) -> None:
        model.step(state, actions[t % _ACTIONS], generator, config.num_denoising_steps)
        _synchronize(model.device)

    _times(step, 5)
    return _ms(np.median(_times(step, 50, config.seconds / 8)))


def _gelu_error(device: torch.device) -> float:
    """Of the GELU in the epilogue of a matrix product against its definition (the tanh form)."""
    random = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=random).to(device) for shape in ((64, 32), (48, 32), (48,)))
    weight = weight / 4
    if device.type != "cuda":
        return 0.0
    x, weight, bias = (part.bfloat16() for part in (x, weight, bias))
    fused = torch.ops.aten._addmm_activation(bias, x, weight.t(), use_gelu=True)
    return relative_error(fused, F.gelu(F.linear(x.double(), weight.double(), bias.double()), approximate="tanh"))


def _times(function: Callable[[int], None], count: int, seconds: float = float("inf")) -> list[float]:
    """Seconds of each call, at least five, until `seconds` have passed."""
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < count and (len(times) < 5 or time.perf_counter() - started < seconds):
        begin = time.perf_counter()
        function(len(times))
        times.append(time.perf_counter() - begin)
    return times


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _ms(seconds: Any) -> float:
    return round(1e3 * float(seconds), 4)


def main() -> None:
    """The command."""
    config = tyro.cli(BenchConfig, prog="python -m training.benchmarks.step")
    record = {**provenance("training.benchmarks.step", command_arguments()), **run(config)}
    if config.out is not None:
        write_json(config.out, record)


if __name__ == "__main__":
    main()
