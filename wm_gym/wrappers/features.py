"""What a model remembers, as agents take it: all of it as a short vector, or its map around the agent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from wm_gym.array_typing import FrameMap, Pose, SSMState
from wm_gym.engine.memory import StepMemory
from wm_gym.nn.config import WorldModelConfig
from wm_gym.nn.map_memory import map_shape, read_map, seen_of
from wm_gym.nn.state import ModelState

MemoryKind = Literal["states", "map"]

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
            shapes = (
                (config.scan.state_dim, _NUM_READINGS),
                (heads, config.scan.head_dim, _NUM_READINGS),
                (num_readings, share),
            )
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


class MapView:
    """A model's map as the agent has it around itself: a square picture with the agent in its middle, looking up.

    Of each point it has what `wm_gym.nn.map_memory.read_map` finds there: mean values, and the logarithm of how much
    was written. So walls and objects keep their places in the picture while the agent turns and walks on, also those
    behind it, and what nobody saw is told from what is free. An agent that reads a map around itself is that of arXiv
    1702.08360.

    Args:
        config: of a model with a map.
        side: points in a row and in a column; odd, for one is the agent's own.
        step: between two points, in cells.
        device: where the maps are.

    Raises:
        ValueError: a model without a map.
    """

    def __init__(
        self, config: WorldModelConfig, side: int = 21, step: float = 0.5, device: torch.device | str = "cpu"
    ) -> None:
        if not config.has_map:
            raise ValueError("A model without a map was given; its memory is seen as kind 'states'.")
        self._config = config
        self.shape = map_shape(config)[1], side, side
        beside = step * (side // 2 - torch.arange(side, device=device))
        self._ahead, self._left = (part.flatten() for part in torch.meshgrid(beside, beside, indexing="ij"))

    @torch.no_grad()
    def __call__(self, place_map: FrameMap, pose: Pose) -> Tensor:
        """float32 [B, V + 1, side, side] from maps [B, G * G, V + 1] and the poses [B, 4] of the newest frames."""
        x, y, cos, sin = pose[..., None].unbind(1)
        points = torch.stack([x + cos * self._ahead - sin * self._left, y + sin * self._ahead + cos * self._left], -1)
        return seen_of(read_map(self._config, place_map, points)).movedim(-1, 1).reshape(len(pose), *self.shape)


class Remembered:
    """What an agent sees of a memory beside the image: a `MemoryFeature` of all states, or a `MapView`.

    Attributes:
        space: of one row: a vector [size], or a picture [V + 1, side, side].

    Args:
        config: of the model whose memory it is.
        kind: "states" or "map".
        size, seed: of a `MemoryFeature`.
        device: where the memory is.

    Raises:
        ValueError: an unknown kind, a map of a model that has none, or fewer numbers than layers.
    """

    def __init__(
        self,
        config: WorldModelConfig,
        kind: MemoryKind = "states",
        size: int = 256,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if kind not in ("states", "map"):
            raise ValueError(f"A memory is seen as 'states' or 'map', got {kind!r}.")
        self._view = MapView(config, device=device) if kind == "map" else None
        self._feature = None if kind == "map" else MemoryFeature(config, size, seed, device)
        shape = (size,) if self._view is None else self._view.shape
        self.space = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)

    def with_image(self, image_space: gym.Space) -> gym.spaces.Dict:
        """The space of {"image", "memory"}."""
        return gym.spaces.Dict({"image": image_space, "memory": self.space})

    def __call__(self, memory: ModelState | StepMemory) -> Tensor:
        """float32 [B, ...] of a memory whose newest frame is the image; what is seen is of the frames before it."""
        if self._view is not None:
            assert memory.place_map is not None and memory.pose is not None
            return self._view(memory.place_map, memory.pose)
        assert self._feature is not None
        return self._feature([layer.ssm_state for layer in memory.layers])
