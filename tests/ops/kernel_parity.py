"""The Triton kernels against their plain twins: on a GPU, or in Triton's interpreter on the CPU.

Not collected by itself: the interpreter has to be chosen before Triton is first imported, so ``test_step_kernels.py``
runs this file in a process of its own, with TRITON_INTERPRET=1 or without.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from training.benchmarks.step_cases import (
    Draw,
    adaln_case,
    attention_case,
    bearings_case,
    clone,
    odometry_case,
    relative_error,
    scan_case,
    upcast,
)
from wm_gym.ops import step
from wm_gym.ops.odometry.bearings import filtered_poses
from wm_gym.ops.odometry.motions import odometry_scan

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    import tests.ops.interpreter  # noqa: F401 (mends it)
DEVICE = "cpu" if INTERPRETED else "cuda"
F32, BF16 = torch.float32, torch.bfloat16
DTYPES = [F32, BF16]
# Frames in the pass, frames committed, dtype. The interpreter is slow: some passes in bfloat16 are left to the GPU.
PASSES = [(1, 0, F32), (1, 1, F32), (2, 0, F32), (2, 1, F32), (2, 1, BF16)]
PASSES += [] if INTERPRETED else [(1, 0, BF16), (1, 1, BF16), (2, 0, BF16)]
on_gpu = pytest.mark.skipif(INTERPRETED, reason="too large for the interpreter")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


GUARD = 4096  # elements on each side of a tensor that no kernel may use
UNREADABLE = -(2**62)  # of int64; NaN in floating point


class Guards:
    """Memory around tensors that, if a kernel reads it, spoils the result, and shows if a kernel writes it.

    On a GPU an access beyond a tensor is mostly silent, for the allocator's neighbours lie there, and in the
    interpreter it always is.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """A tensor between two guards, unreadable until it is written."""
        size = math.prod(shape)
        poison = math.nan if dtype.is_floating_point else UNREADABLE
        buffer = torch.full((size + 2 * GUARD,), poison, dtype=dtype, device=device)
        self._buffers.append(buffer)
        return buffer[GUARD : GUARD + size].view(shape)

    def copy(self, case: dict[str, Any]) -> dict[str, Any]:
        """The same arguments between guards; views of larger tensors stay what they are."""
        return {
            k: self.empty(tuple(v.shape), v.dtype, v.device).copy_(v)
            if isinstance(v, Tensor) and v.is_contiguous()
            else v
            for k, v in case.items()
        }

    @contextmanager
    def around_new_tensors(self) -> Iterator[None]:
        """Within the context, what ``new_empty`` makes is guarded too."""

        new_empty_of_torch = Tensor.new_empty

        def new_empty(tensor: Tensor, *shape: Any, dtype: torch.dtype | None = None, **others: Any) -> Tensor:
            if others:  # Triton's interpreter asks, not a kernel's launcher
                return new_empty_of_torch(tensor, *shape, dtype=dtype, **others)
            sizes = shape[0] if isinstance(shape[0], torch.Size) else shape
            return self.empty(sizes, tensor.dtype if dtype is None else dtype, tensor.device)

        with mock.patch.object(Tensor, "new_empty", new_empty):
            yield

    def are_untouched(self) -> bool:
        sides = [side for buffer in self._buffers for side in (buffer[:GUARD], buffer[-GUARD:])]
        return all(bool((side.isnan() if side.is_floating_point() else side == UNREADABLE).all()) for side in sides)


def assert_equal_to_twin(operation: Any, case: dict[str, Any], changed: tuple[str, ...], tolerance: float) -> None:
    """Run kernel and twin on the same arguments; compare the result and what is changed in place."""
    guards = Guards()
    fast, slow = guards.copy(case), upcast(case)
    with guards.around_new_tensors():
        y = operation(**fast, backend="triton")
    expected = operation(**slow, backend="plain")
    assert y.shape == expected.shape
    pairs: dict[str, tuple[Tensor, Tensor]] = {"result": (y, expected)}
    pairs |= {name: (fast[name], slow[name]) for name in changed}
    for name, (value, wanted) in pairs.items():
        assert relative_error(value, wanted) <= tolerance, name
    assert guards.are_untouched(), "something was written beyond a tensor"


@pytest.mark.parametrize(("frames", "num_committed", "dtype"), PASSES)
@pytest.mark.parametrize(("block_size", "grid"), [(1, (1, 2)), (2, (2, 4)), (4, (4, 4))])
def test_scan_step(block_size: int, grid: tuple[int, int], frames: int, num_committed: int, dtype: torch.dtype) -> None:
    draw = Draw(DEVICE, dtype)
    case = scan_case(draw, 2, grid=grid, frames=frames, block_size=block_size, num_committed=num_committed)
    assert_equal_to_twin(step.scan_step, case, ("ssm_state", "conv_state"), TOLERANCE[dtype])


@pytest.mark.parametrize(
    "sizes",
    [
        {"grid": (8, 8), "block_size": 8, "batch": 1},  # two pieces of 64 tokens
        {"grid": (6, 6), "block_size": 6, "batch": 1},  # pieces that are no power of two
        {"grid": (3, 1), "block_size": 1, "heads": 3, "dim": 32, "batch": 1},
        {"grid": (2, 2), "block_size": 2, "dim": 24, "state_dim": 8},
        {"grid": (1, 1), "block_size": 1, "dim": 8, "state_dim": 12},
        {"grid": (12, 12), "block_size": 12, "batch": 1, "heads": 1, "state_dim": 32},  # several pieces per frame
        {"grid": (2, 2), "block_size": 2, "heads": 4, "groups": 2},
        {"grid": (1, 2), "block_size": 1, "heads": 4, "groups": 4, "frames": 1},
        {"grid": (8, 8), "block_size": 8, "batch": 1, "heads": 2, "groups": 2},  # two pieces of 64 tokens
        {"grid": (2, 2), "block_size": 2, "state_dtype": torch.bfloat16},
        {"grid": (1, 1), "block_size": 1, "state_dtype": torch.bfloat16},
    ],
)
def test_scan_step_of_other_sizes(sizes: dict[str, Any]) -> None:
    tolerance = 1e-2 if "state_dtype" in sizes else 1e-4
    assert_equal_to_twin(step.scan_step, scan_case(Draw(DEVICE), **sizes), ("ssm_state", "conv_state"), tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 512), (1027, 8)])
def test_gated_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    draw = Draw(DEVICE, dtype)
    case = {"y": draw(*shape), "weight": draw(shape[-1], dtype=torch.float32)}
    assert_equal_to_twin(step.gated_norm, case, (), TOLERANCE[dtype])


@pytest.mark.parametrize(("frames", "num_committed", "dtype"), PASSES)
def test_ring_attention(frames: int, num_committed: int, dtype: torch.dtype) -> None:
    case = attention_case(Draw(DEVICE, dtype), batch=4, frames=frames, num_committed=num_committed)
    assert case["num_cached"].tolist() == [0, 2, 4, 6], "empty, part filled and wrapped rings"
    assert_equal_to_twin(step.ring_attention, case, ("kv_ring",), TOLERANCE[dtype])


@pytest.mark.parametrize(
    "sizes",
    [
        {"grid": (8, 9), "dim": 8, "heads": 1, "batch": 1, "window": 2},  # more than one tile of keys
        {"window": 1, "grid": (1, 1)},
        {"heads": 3, "dim": 64, "window": 5},
        {"ring_dtype": torch.bfloat16},
    ],
)
def test_ring_attention_of_other_sizes(sizes: dict[str, Any]) -> None:
    tolerance = 1e-2 if "ring_dtype" in sizes else 1e-4
    assert_equal_to_twin(step.ring_attention, attention_case(Draw(DEVICE), **sizes), ("kv_ring",), tolerance)


def test_the_newest_frame_does_not_see_the_slot_that_is_overwritten() -> None:
    case = attention_case(Draw(DEVICE), batch=1)
    case["num_cached"][:] = 3
    poisoned = clone(case)
    poisoned["kv_ring"][:, 0] = 1e4  # the oldest frame, out of reach for frame 1
    y, other = step.ring_attention(**case, backend="triton"), step.ring_attention(**poisoned, backend="triton")
    assert torch.equal(y[:, 1], other[:, 1])
    assert not torch.equal(y[:, 0], other[:, 0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [{}, {"with_branch": False}, {"rows": 15, "tokens": 71, "width": 16}])
def test_residual_adaln(sizes: dict[str, Any], dtype: torch.dtype) -> None:
    case = adaln_case(Draw(DEVICE, dtype), **sizes)
    assert not case["shift"].is_contiguous()
    assert_equal_to_twin(step.residual_adaln, case, ("tokens",), TOLERANCE[dtype])


def test_residual_adaln_gives_the_dtype_that_is_asked_for() -> None:
    y = step.residual_adaln(**adaln_case(Draw(DEVICE)), out_dtype=torch.bfloat16, backend="triton")
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 3, 5)])
def test_frame_noise(shape: tuple[int, int, int]) -> None:
    keys = torch.tensor([0, -1, 2**40 + 17, -(2**63)], device=DEVICE)
    counters = torch.tensor([0, 2**33 + 5, 1, 2**62], device=DEVICE)
    guards = Guards()
    with guards.around_new_tensors():
        noise = step.frame_noise(keys, counters, shape, backend="triton").cpu()
    assert guards.are_untouched()
    expected = step.frame_noise(keys.cpu(), counters.cpu(), shape, backend="plain")
    torch.testing.assert_close(noise, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("batch", "length", "width"), [(3, 1, 16), (1, 7, 16), (2, 3, 12)])
def test_odometry_scan(batch: int, length: int, width: int) -> None:
    case = odometry_case(Draw(DEVICE), batch, length, width)
    expected = odometry_scan(**case, backend="plain")
    guards = Guards()
    case = guards.copy(case)
    with guards.around_new_tensors():
        poses, recent = odometry_scan(**case, backend="triton")
    assert guards.are_untouched()
    torch.testing.assert_close(poses, expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(recent, expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("batch", "length"), [(3, 1), (4, 40)])
def test_filtered_poses(batch: int, length: int) -> None:
    case = bearings_case(Draw(DEVICE), batch, length)
    expected = filtered_poses(**case, backend="plain")
    guards = Guards()
    case = guards.copy(case)
    with guards.around_new_tensors():
        poses, state = filtered_poses(**case, backend="triton")
    assert guards.are_untouched()
    torch.testing.assert_close(poses, expected[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(state, expected[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("groups", "members"), [(1, 4), (2, 2), (4, 1)])
def test_heads_that_share_their_products_are_of_one_group(
    groups: int, members: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wm_gym.ops.scan import step_kernel as scan_step

    monkeypatch.setattr(scan_step, "_MANY", 1)  # so that few states are launched as many
    assert scan_step._chunk_launch(8, 1, 16, 4, groups, 4)["MEMBERS"] == members
    case = scan_case(Draw(DEVICE), 1, grid=(2, 4), heads=4, groups=groups)
    assert_equal_to_twin(step.scan_step, case, ("ssm_state", "conv_state"), 1e-4)


@on_gpu
@pytest.mark.parametrize("batch", [1, 5, 130])
@pytest.mark.parametrize(("groups", "state_dtype"), [(1, F32), (1, BF16), (2, F32), (4, F32), (4, BF16), (8, F32)])
@pytest.mark.parametrize("block_size", [1, 2, 4, 8])
def test_scan_step_at_the_models_size(block_size: int, groups: int, state_dtype: torch.dtype, batch: int) -> None:
    sizes = {"grid": (8, 8), "heads": 8, "dim": 64, "state_dim": 64, "state_dtype": state_dtype, "groups": groups}
    case = scan_case(Draw(DEVICE, BF16), batch, block_size=block_size, **sizes)
    assert_equal_to_twin(step.scan_step, case, ("ssm_state", "conv_state"), TOLERANCE[BF16])


@on_gpu
@pytest.mark.parametrize(("block_size", "dim"), [(2, 16), (2, 128), (4, 32), (8, 16), (8, 32), (8, 128)])
def test_scan_step_of_many_states_of_other_widths(block_size: int, dim: int) -> None:
    case = scan_case(Draw(DEVICE, BF16), 80, grid=(8, 8), heads=8, dim=dim, state_dim=32, block_size=block_size)
    assert_equal_to_twin(step.scan_step, case, ("ssm_state", "conv_state"), TOLERANCE[BF16])


@on_gpu
@pytest.mark.parametrize("batch", [1, 5, 130])
def test_ring_attention_at_the_models_size(batch: int) -> None:
    case = attention_case(Draw(DEVICE, BF16), batch, grid=(8, 8), heads=4, dim=64, window=8)
    assert_equal_to_twin(step.ring_attention, case, ("kv_ring",), TOLERANCE[BF16])


@on_gpu
def test_operations_of_a_step_are_captured_in_a_graph_and_replayed() -> None:
    draw = Draw(DEVICE, BF16)
    scan = scan_case(draw, 2, grid=(8, 8), heads=8, dim=64, state_dim=64, block_size=2)
    attention = attention_case(draw, 2, grid=(8, 8), heads=4, dim=64, window=8)
    keys, counters = torch.arange(2, device=DEVICE), torch.zeros(2, dtype=torch.int64, device=DEVICE)

    def run(scan: dict[str, Any], attention: dict[str, Any]) -> list[Tensor]:
        noise = step.frame_noise(keys, counters, (3, 64, 64))
        return [step.scan_step(**scan), step.ring_attention(**attention), noise]

    eager_scan, eager_attention = clone(scan), clone(attention)
    expected = [run(eager_scan, eager_attention) for _ in range(3)][-1]
    run(scan, attention)  # compiles, and is the first of three
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run(scan, attention)
    graph.replay()
    graph.replay()
    torch.cuda.synchronize()
    for value, wanted in zip(outputs, expected, strict=True):
        assert torch.equal(value, wanted)
    assert torch.equal(scan["ssm_state"], eager_scan["ssm_state"])
    assert torch.equal(attention["kv_ring"], eager_attention["kv_ring"])
