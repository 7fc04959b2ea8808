"""Options of a pass through the backbone that may not change its result."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_model
from wm_gym.nn.backbone import fused_kernels_fit
from wm_gym.nn.config import ScanConfig, WorldModelConfig


def test_checkpointed_layers_give_the_same_output_and_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(2, 5, 3, 16, 16, generator=generator)
    levels, actions = torch.rand(2, 5, generator=generator), torch.randint(3, (2, 4), generator=generator)
    found = []
    for checkpoint_layers in (False, True):
        model = tiny_model()
        model.backbone.checkpoint_layers = checkpoint_layers
        output = model(frames, levels, actions)
        torch.cat([part.flatten() for part in output]).square().sum().backward()
        found.append([output.frame.detach(), *(p.grad for p in model.parameters())])
    for value, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, value)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_fused_kernels_take_any_number_of_scan_groups(groups: int) -> None:
    pytest.importorskip("triton")
    assert fused_kernels_fit(WorldModelConfig(scan=ScanConfig(num_groups=groups)), torch.device("cuda"))
