"""Stochastic depth on local attention: training sometimes without it, so that the past has to go through the states.

Stochastic depth (Huang et al. 2016, arXiv 1603.09382), of the branch of one layer and one sequence at a time; the
branches that stay count more, so that the mean is that of the full network, which is what dreams.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wm_gym.nn.layers import Layer
from wm_gym.world_model import WorldModel

GATE_OF_ATTENTION = 5  # which ninth of a layer's modulation scales its attention branch


@contextmanager
def dropped_attention(
    model: WorldModel, probability: float, batch_size: int, generator: torch.Generator
) -> Iterator[None]:
    """While this lasts, each layer leaves out its local attention for some rows of the batch.

    It must outlast the backward pass too, which may compute layers again.

    Args:
        model: its passes take `batch_size` rows.
        probability: of leaving out; 0 changes nothing and draws nothing.
        generator: on the model's device.

    Raises:
        ValueError: a network whose layers have no local attention beside other paths into the past.
    """
    if probability == 0:
        yield
        return
    layers = list(model.backbone.layers)
    if not all(isinstance(layer, Layer) for layer in layers):
        raise ValueError("attention_drop is for our own layers; set it to 0 for this baseline.")
    kept = torch.rand(len(layers), batch_size, generator=generator, device=generator.device) >= probability
    with ExitStack() as stack:
        for layer, rows in zip(layers, kept, strict=True):
            modulation = layer.modulation
            assert isinstance(modulation, nn.Linear)
            handle = modulation.register_forward_hook(_scaling(rows / (1 - probability)))
            stack.callback(handle.remove)
        yield


def _scaling(scale: Tensor) -> Any:
    """A forward hook of a layer's modulation, which multiplies the attention branch of each row by `scale` [B]."""

    def hook(module: nn.Module, inputs: Any, modulation: Tensor) -> Tensor:
        parts = list(modulation.chunk(9, dim=-1))
        # The branch is multiplied by one plus the gate.
        factor = scale.to(modulation.dtype)[:, None, None]
        parts[GATE_OF_ATTENTION] = (1 + parts[GATE_OF_ATTENTION]) * factor - 1
        return torch.cat(parts, dim=-1)

    return hook
