"""Checks and times the kernels of one inference step on a GPU: ``python -m training.benchmarks.step_ops --out
FILE.json``.

Sizes are those of the packaged model, two frames to a pass, activations in bfloat16. Each kernel is compared with its
plain twin on the same values in float32, and timed by replaying a CUDA graph of many calls, beside the time that the
bytes which it must move would take. With few dreams the buffers stay in the GPU's cache, so the floor can be beaten.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from training.benchmarks.step_cases import Draw, adaln_case, attention_case, clone, relative_error, scan_case, upcast
from wm_gym.files import write_json
from wm_gym.ops import step
from wm_gym.provenance import command_arguments, provenance

MAX_ERROR = 2e-2
MAX_CHECKED_BATCH = 64  # the twin's copies in float32 of more would not fit


@dataclass(frozen=True)
class BenchStepOps:
    """Checks and times the kernels of a step."""

    batch: tuple[int, ...] = (1, 256)
    """Numbers of dreams."""
    state_dtypes: tuple[str, ...] = ("float32", "bfloat16")
    """Types of the SSM states."""
    num_scan_groups: int = 1
    """Groups of scan heads."""
    copy_bandwidth: float = 4.3e12
    """Bytes read and written per second by a large copy on this GPU."""
    calls: int = 20
    """Calls in a graph."""
    rounds: int = 20
    """Replays of the graph; the median counts."""
    out: Path | None = None
    """JSON file of the results."""


@dataclass(frozen=True)
class Case:
    """One operation at one size.

    Attributes:
        name: with what distinguishes it.
        operation: function of :mod:`wm_gym.ops.step`.
        arguments: draws them for a number of dreams.
        changed: names of the arguments that are changed in place.
        num_bytes: bytes that must be moved, from the arguments and the result.
    """

    name: str
    operation: Callable[..., Tensor]
    arguments: Callable[[int], dict[str, Any]]
    changed: tuple[str, ...]
    num_bytes: Callable[[dict[str, Any], Tensor], int]


def cases(config: BenchStepOps) -> Iterator[Case]:
    """All operations of a step at the packaged model's size."""
    draw = Draw("cuda", torch.bfloat16)
    for block_size in (1, 2, 4, 8):
        for name in config.state_dtypes:
            yield scan(draw, block_size, name, config.num_scan_groups)
    yield Case(
        "ring_attention",
        step.ring_attention,
        lambda batch: {**attention_case(draw, batch, grid=(8, 8), heads=4, dim=64, window=8), **full_rings(batch)},
        ("kv_ring",),
        # The ring is read, and one frame of it written.
        lambda a, y: size(a["qkv"]) + size(y) + size(a["kv_ring"]) * 9 // 8,
    )
    yield Case(
        "gated_norm",
        step.gated_norm,
        lambda batch: {"y": draw(batch, 2, 8, 8, 512), "weight": draw(512)},
        (),
        lambda a, y: size(a["y"]) + size(y),
    )
    yield Case(
        "residual_adaln",
        step.residual_adaln,
        lambda batch: adaln_case(draw, 2 * batch, 64, 256),
        ("tokens",),
        lambda a, y: 2 * size(a["tokens"]) + size(a["branch"]) + size(y),
    )
    yield Case(
        "frame_noise",
        step.frame_noise,
        lambda batch: {"keys": indices(batch) * 12345, "counters": indices(batch) * 7, "shape": (3, 64, 64)},
        (),
        lambda a, y: size(y),
    )


def scan(draw: Draw, block_size: int, state_dtype: str, groups: int) -> Case:
    """The scan with one block size, type of state and number of groups."""
    sizes: dict[str, Any] = {"grid": (8, 8), "heads": 8, "groups": groups, "dim": 64, "state_dim": 64}
    return Case(
        f"scan_step block {block_size}, {state_dtype} state",
        step.scan_step,
        lambda batch: scan_case(draw, batch, block_size=block_size, state_dtype=getattr(torch, state_dtype), **sizes),
        ("ssm_state", "conv_state"),
        lambda a, y: size(a["projected"]) + size(y) + 2 * size(a["ssm_state"]) + 2 * size(a["conv_state"]),
    )


def indices(batch: int) -> Tensor:
    """Row numbers, int64 ``[batch]``."""
    return torch.arange(batch, device="cuda")


def full_rings(batch: int) -> dict[str, Any]:
    """Arguments of dreams whose windows are full."""
    return {"num_cached": 8 + indices(batch)}


def size(tensor: Tensor) -> int:
    """Bytes of a tensor."""
    return tensor.numel() * tensor.element_size()


def error_of(case: Case, batch: int) -> float:
    """Largest relative error (of norms) of the result and of what is changed in place, against the twin in float32."""
    arguments = case.arguments(batch)
    fast, slow = clone(arguments), upcast(arguments)
    y, expected = case.operation(**fast, backend="triton"), case.operation(**slow, backend="plain")
    errors = [relative_error(y, expected)]
    errors += [relative_error(fast[name], slow[name]) for name in case.changed]
    return max(errors)


def microseconds_per_call(call: Callable[[], object], calls: int, rounds: int) -> float:
    """Median over replays of a graph of ``calls`` calls."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    graph.replay()
    times = []
    for _ in range(rounds):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after) * 1e3 / calls)
    return statistics.median(times)


def measure(case: Case, batch: int, config: BenchStepOps) -> dict[str, Any]:
    """One row of the table."""
    error = error_of(case, min(batch, MAX_CHECKED_BATCH))
    arguments = case.arguments(batch)
    result = case.operation(**arguments, backend="triton")
    num_bytes = case.num_bytes(arguments, result)
    del result
    time = microseconds_per_call(lambda: case.operation(**arguments, backend="triton"), config.calls, config.rounds)
    return {
        "operation": case.name,
        "batch": batch,
        "microseconds": time,
        "floor_microseconds": num_bytes / config.copy_bandwidth * 1e6,
        "bytes": num_bytes,
        "relative_error": error,
    }


def main(config: BenchStepOps) -> None:
    """The command."""
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device; this measures the kernels on one.")
    torch.set_grad_enabled(False)
    print(f"{'operation':40} {'B':>5} {'us':>9} {'floor us':>9} {'of floor':>9} {'rel. error':>10}")
    rows = []
    for batch in config.batch:
        for case in cases(config):
            row = measure(case, batch, config)
            rows.append(row)
            time, floor = row["microseconds"], row["floor_microseconds"]
            verdict = "" if row["relative_error"] <= MAX_ERROR else "  WRONG"
            print(
                f"{row['operation']:40} {batch:5} {time:9.2f} {floor:9.2f} {floor / time:9.0%} "
                f"{row['relative_error']:10.1e}{verdict}",
                flush=True,
            )
            torch.cuda.empty_cache()
    if config.out is not None:
        record = {**provenance("training.benchmarks.step_ops", command_arguments()), "seed": 0, "rows": rows}
        write_json(config.out, {**record, "copy_bandwidth": config.copy_bandwidth})
        print(f"{config.out}")
    if wrong := [row["operation"] for row in rows if row["relative_error"] > MAX_ERROR]:
        raise SystemExit(f"These differ from their twins by more than {MAX_ERROR}: {wrong}.")


if __name__ == "__main__":
    main(tyro.cli(BenchStepOps))
