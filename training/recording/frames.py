"""How the frames of a recording are made: which image of an environment, and of which size."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

RENDER = "render"  # the obs_key that stands for render()
MAX_CHANNELS = 4


@dataclass(frozen=True)
class RecordingOptions:
    """What of an environment is recorded. The store's header keeps it, so that a store holds one kind of frames.

    Raises ValueError for a size below 1, or arguments that are no JSON object.
    """

    obs_key: str | None = None
    """Key of a Dict observation that holds the image, or "render": record render(). None: the observation itself."""
    resize: int | None = None
    """Side of the recorded frames in pixels: both sides become this long, by area interpolation. None: as they are."""
    env_kwargs: str = "{}"
    """Further arguments of gym.make, as a JSON object: '{"tile_size": 8}'."""

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < 1:
            raise ValueError(f"resize must be at least 1, got {self.resize}.")
        self.make_arguments()

    def make_arguments(self) -> dict[str, Any]:
        """What `gym.make` is given besides the id and the time limit."""
        try:
            given = json.loads(self.env_kwargs)
        except json.JSONDecodeError as error:
            raise ValueError(f"env_kwargs must be a JSON object, got {self.env_kwargs!r} ({error}).") from error
        if not isinstance(given, dict):
            raise ValueError(f"env_kwargs must be a JSON object, got {self.env_kwargs!r}.")
        return given | ({"render_mode": "rgb_array"} if self.obs_key == RENDER else {})

    def to_json(self) -> dict[str, Any]:
        """The options that differ from the default; `from_json` is the way back."""
        kwargs = json.loads(self.env_kwargs)
        options = {"obs_key": self.obs_key, "resize": self.resize, "env_kwargs": kwargs or None}
        return {name: value for name, value in options.items() if value is not None}

    @classmethod
    def from_json(cls, options: dict[str, Any]) -> RecordingOptions:
        """Inverse of `to_json`."""
        return cls(options.get("obs_key"), options.get("resize"), json.dumps(options.get("env_kwargs", {})))


class FrameSource:
    """Makes the frame to be recorded out of an observation, or of what `env` renders.

    Args:
        env: the environment; with "render" it must have render_mode "rgb_array".
        options: which image, and its size.

    Raises:
        ValueError: the observation space has no such image.
    """

    def __init__(self, env: gym.Env[Any, Any], options: RecordingOptions) -> None:
        self._env = env
        self._options = options
        self._source = "render()" if options.obs_key == RENDER else _describe_key(options.obs_key)
        if options.obs_key == RENDER:
            if env.render_mode != "rgb_array":
                raise ValueError(f"obs_key 'render' needs render_mode 'rgb_array', {env} has {env.render_mode!r}.")
        else:
            space = _image_space(env.observation_space, options.obs_key)
            _check_image(space.shape, space.dtype, f"{self._source} of {env.spec.id if env.spec else env}")

    def space(self) -> gym.spaces.Box:
        """The space of the frames, uint8 [H, W, C]. To find the size of what it renders, it resets the environment.

        Raises ValueError if it renders no image.
        """
        if self._options.obs_key == RENDER:
            obs, _ = self._env.reset(seed=0)
            return gym.spaces.Box(0, 255, self(obs).shape, np.uint8)
        space = _image_space(self._env.observation_space, self._options.obs_key)
        height, width, channels = (*space.shape, 1)[:3]
        if self._options.resize is None and len(space.shape) == 3:
            return space
        if self._options.resize is not None:
            height = width = self._options.resize
        return gym.spaces.Box(0, 255, (height, width, channels), np.uint8)

    def __call__(self, obs: Any) -> np.ndarray:
        """The frame, uint8 [H, W, C]: a copy, for an environment may give the same buffer every time.

        Raises ValueError if it is no image.
        """
        if self._options.obs_key == RENDER:
            image = self._env.render()
        else:
            image = obs if self._options.obs_key is None else obs[self._options.obs_key]
        if not isinstance(image, np.ndarray):
            raise ValueError(f"An image is expected from {self._source}, got {type(image).__name__}.")
        _check_image(image.shape, image.dtype, self._source)
        return resize_frame(image if image.ndim == 3 else image[..., None], self._options.resize)


def resize_frame(frame: np.ndarray, side: int | None) -> np.ndarray:
    """A copy of a frame, uint8 [H, W, C], scaled to [side, side, C] by area interpolation (each pixel is the mean of
    the area that it covers; enlarged, the nearest pixel). None leaves the size alone."""
    if side is None or frame.shape[:2] == (side, side):
        return np.array(frame)
    if frame.shape[2] == 3:
        return np.array(_resize_plane(np.ascontiguousarray(frame), side))
    return np.stack([_resize_plane(np.ascontiguousarray(plane), side) for plane in np.moveaxis(frame, 2, 0)], axis=2)


def _resize_plane(image: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX))


def _image_space(space: gym.Space[Any], key: str | None) -> gym.spaces.Box:
    """The Box behind a key. Raises ValueError that names the keys there are."""
    if isinstance(space, gym.spaces.Dict):
        keys = ", ".join(map(repr, space.spaces))
        if key is None:
            raise ValueError(f"The observation is a Dict: choose the image by --obs-key, one of {keys}, or 'render'.")
        if key not in space.spaces:
            raise ValueError(f"The observation has no key {key!r}: --obs-key is one of {keys}, or 'render'.")
        space = space.spaces[key]
    elif key is not None:
        raise ValueError(f"--obs-key {key!r} needs a Dict observation, got {space}; leave it out, or take 'render'.")
    if not isinstance(space, gym.spaces.Box):
        raise ValueError(f"{_describe_key(key)} is no image, a uint8 Box [H, W, C], but {space}; try --obs-key render.")
    return space


def _check_image(shape: tuple[int, ...], dtype: Any, source: str) -> None:
    channels = (*shape, 1)[2] if len(shape) in (2, 3) else 0
    if dtype != np.uint8 or 0 in shape or not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(
            f"{source} is no image: expected a uint8 Box [H, W, C] with 1 to {MAX_CHANNELS} channels, or [H, W], "
            f"got {dtype} {list(shape)}; --obs-key render records what the environment renders."
        )


def _describe_key(key: str | None) -> str:
    return "The observation" if key is None else f"The observation's {key!r}"
