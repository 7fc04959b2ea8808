"""The fused training pass against the plain layers: on the CPU in Triton's interpreter, and on a GPU."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch

from tests.ops.layer_cases import errors as errors_of
from wm_gym.nn.config import ScanConfig, WorldModelConfig

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[str, float]]:
    """Relative errors of output and gradients by case. Another process: Triton decides at import to interpret."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.ops.fused_cases"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


CASES = ["block 1", "block 2 in segments", "block 2 in one piece, checkpointed"]
CASES += ["something added before the second layer"]
CASES += ["two groups, block 2 in segments", "four groups, block 2 in one piece"]


@pytest.mark.parametrize("case", CASES)
def test_fused_pass_equals_plain_layers_in_output_and_all_gradients(
    errors: dict[str, dict[str, float]], case: str
) -> None:
    assert len(errors[case]) == (39 if "second layer" in case else 21)
    wrong = {name: error for name, error in errors[case].items() if not error < 1e-4}
    assert not wrong


def test_two_fused_layers_in_bfloat16_stays_close_to_float32(errors: dict[str, dict[str, float]]) -> None:
    assert errors["two layers in bfloat16"]["output"] < 3e-2
    wrong = {name: error for name, error in errors["two layers in bfloat16"].items() if not error < 0.1}
    assert not wrong


def test_compiled_gradient_of_the_convolution_carries_inputs_and_gradients_along() -> None:
    """Triton 3.6 replaces a carried value that is only handed on by its initial value; its interpreter does not."""
    from tests.ops.compiled import compile_launch, launches_of
    from wm_gym.ops.scan.conv_kernel import conv_silu_backward

    projected, grad = torch.empty(1, 4, 2, 2, 52), torch.empty(1, 4, 2, 2, 32)
    launches = launches_of(
        conv_silu_backward, (grad,), projected, torch.empty(4, 32), torch.empty(32), 16, 2, torch.empty_like(projected)
    )
    loops = re.findall(r"scf\.for .*? iter_args\((.*?)\)", compile_launch(launches[0]).ttir)
    assert [loop.count("=") for loop in loops] == [3 + 3 + 5]  # inputs, gradients, sums for four taps and the bias


@pytest.mark.gpu
@pytest.mark.parametrize(("block_size", "groups"), [(1, 1), (2, 1), (4, 1), (8, 1), (1, 4), (2, 8), (4, 2), (8, 4)])
def test_fused_layer_of_real_size_on_a_gpu_stays_close_to_float32(block_size: int, groups: int) -> None:
    config = WorldModelConfig.plain(block_sizes=(block_size,), scan=ScanConfig(num_groups=groups))
    found = errors_of(config, 21, torch.bfloat16, "cuda")
    assert found["output"] < 3e-2
    assert not {name: error for name, error in found.items() if not error < 0.1}
