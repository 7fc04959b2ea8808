"""Options of a pass through the backbone that may not change its result."""

from __future__ import annotations

import torch

from tests.tiny import tiny_model


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
