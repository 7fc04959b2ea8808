"""What a policy sees of an observation: an image, with or without the memory of a world model."""

from __future__ import annotations

import gymnasium as gym
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

_CHANNELS = (32, 64, 64, 64)
_POINT_WIDTH, _MAP_WIDTH, _QUESTIONS = 32, 64, 4
_MAP_SCALE = 0.1  # the values of a map are of order 10


class ImageAndMemory(BaseFeaturesExtractor):
    """Convolutions that halve the image until 4 pixels are left, beside a projection of the memory, if there is one.

    Stable-Baselines3's own convolutions take images from 36 pixels on; these take any of 8 and more.

    A memory that is a picture, the map around the agent (`wm_gym.wrappers.features.MapView`), goes through
    convolutions,
    too. What the image asks for (the colour of the target stands on its rim) is looked for at each point of it.

    Args:
        observation_space: an image [C, H, W], or {"image": one, "memory": [size] or [C, n, n]}.
        features_dim: numbers for the image, and as many for the memory.

    Raises:
        ValueError: an image of fewer than 8 pixels, or other observations.
    """

    def __init__(self, observation_space: gym.Space, features_dim: int = 256) -> None:
        spaces = observation_space.spaces if isinstance(observation_space, gym.spaces.Dict) else {}
        image = spaces.get("image", observation_space)
        shape = image.shape or ()
        if (spaces and set(spaces) != {"image", "memory"}) or len(shape) != 3 or min(shape[1:]) < 8:
            raise ValueError(
                f"Expected an image of 8 pixels or more, with or without a memory, got {observation_space}."
            )
        super().__init__(observation_space, features_dim * (2 if spaces else 1))
        layers: list[nn.Module] = []
        channels, size = shape[0], min(shape[1:])
        for width in _CHANNELS:
            if size <= 4:
                break
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()]
            channels, size = width, (size + 1) // 2
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            num_flat = self.convolutions(torch.zeros(1, *shape)).shape[1]
        self.image = nn.Sequential(nn.Linear(num_flat, features_dim), nn.ReLU())
        self.memory = None
        self.asks = False
        if spaces:
            seen = spaces["memory"].shape or ()
            self.asks = len(seen) == 3
            flat = gym.spaces.flatdim(spaces["memory"])
            self.memory = _MapReader(seen, features_dim) if self.asks else _vector_reader(flat, features_dim)

    def forward(self, observations: Tensor | dict[str, Tensor]) -> Tensor:
        """Features [B, features_dim], or twice as many with a memory; images in [0, 1]."""
        if isinstance(observations, Tensor):
            return self.image(self.convolutions(observations))
        assert self.memory is not None
        image = self.image(self.convolutions(observations["image"]))
        seen = observations["memory"]
        return torch.cat([image, self.memory(seen, image) if self.asks else self.memory(seen)], dim=1)


def _vector_reader(size: int, features_dim: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(size), nn.Linear(size, features_dim), nn.ReLU())


class _MapReader(nn.Module):
    """Features [B, D] of maps around agents [B, C, n, n], and of where these have what the features of the image
    [B, D] ask for."""

    def __init__(self, shape: tuple[int, ...], features_dim: int) -> None:
        super().__init__()
        self.points = nn.Sequential(nn.Conv2d(shape[0], _POINT_WIDTH, 3, padding=1), nn.ReLU())
        self.questions = nn.Linear(features_dim, _QUESTIONS * _POINT_WIDTH)
        self.convolutions = nn.Sequential(
            nn.Conv2d(_POINT_WIDTH + _QUESTIONS, _MAP_WIDTH, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(_MAP_WIDTH, _MAP_WIDTH, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        side = ((shape[1] + 1) // 2 + 1) // 2
        self.out = nn.Sequential(nn.Linear(_MAP_WIDTH * side**2, features_dim), nn.ReLU())

    def forward(self, seen: Tensor, image: Tensor) -> Tensor:
        points = self.points(_MAP_SCALE * seen)
        questions = self.questions(image).unflatten(1, (_QUESTIONS, _POINT_WIDTH))
        answers = torch.einsum("bqc,bchw->bqhw", questions, points) / _POINT_WIDTH**0.5
        return self.out(self.convolutions(torch.cat([points, answers], dim=1)))
