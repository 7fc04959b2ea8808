"""A model's long memory as a short vector, for agents that act by it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from wm_gym.array_typing import SSMState
from wm_gym.nn.config import WorldModelConfig

_NUM_READINGS = 4  # numbers that are read from the SSM state of one head in one block


class MemoryFeature:
    """SSM states of all layers, millions of numbers, as `size` numbers of order 1, by fixed random projections.

    Each head's state S in a block, a matrix [d, s], is read by bilinear forms u S v. The readings of a head are divided
    by their root mean square over all blocks, for heads differ in scale by a factor of ten; those of a layer are then
    mixed by a random matrix, which keeps distances (Johnson and Lindenstrauss 1984). Layers have equal shares of the
    vector, in order. One pass over the memory: about what a step of the model reads.

    In the packaged model about half of the squared length is the same for all mazes: centre the vector where that
    matters.

    Args:
        config: of the model whose memory is read.
        size: numbers in the vector, at least one per layer.
        seed: draws the projections; the same seed and configuration give the same vector on every device.
        device: where the states are.

    Raises:
        ValueError: fewer numbers than layers.
    """

    def __init__(
        self, config: WorldModelConfig, size: int = 256, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        num_layers, heads = len(config.block_sizes), config.num_scan_heads
        if size < num_layers:
            raise ValueError(f"A feature of {size} numbers was asked for; the {num_layers} layers need one each.")
        random = np.random.default_rng(seed)
        self.size = size
        self._projections: list[tuple[Tensor, Tensor, Tensor]] = []
        for layer, block_size in enumerate(config.block_sizes):
            num_readings = config.num_tokens // block_size**2 * heads * _NUM_READINGS
            share = size * (layer + 1) // num_layers - size * layer // num_layers
            shapes = (config.state_dim, _NUM_READINGS), (heads, config.head_dim, _NUM_READINGS), (num_readings, share)
            right, left, mix = (
                torch.from_numpy(random.standard_normal(shape, np.float32)).to(device) for shape in shapes
            )
            self._projections.append((right, left, mix / num_readings**0.5))

    @torch.no_grad()
    def __call__(self, ssm_states: Sequence[SSMState]) -> Tensor:
        """float32 [B, size] from the SSM states of all layers, [B, K, h, d, s] each; zeros for an empty memory."""
        parts = []
        for state, (right, left, mix) in zip(ssm_states, self._projections, strict=True):
            readings = ((state @ right.to(state.dtype)).float() * left).sum(-2)  # [B, K, h, readings]
            scale = readings.square().mean((1, 3), keepdim=True).sqrt()
            parts.append((readings / scale.clamp_min(1e-6)).flatten(1) @ mix)
        return torch.cat(parts, dim=1)
