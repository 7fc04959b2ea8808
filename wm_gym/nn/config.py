"""The configuration that a checkpoint carries and that every part of the network reads.

The defaults are those of the packaged model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from wm_gym.nn.config_parts import (
    NO_MAP,
    NO_ODOMETRY,
    NO_POSE,
    MapConfig,
    OdometryConfig,
    PoseConfig,
    ScanConfig,
)
from wm_gym.nn.flat_config import nested_from_flat

__all__ = [
    "NO_MAP",
    "NO_ODOMETRY",
    "NO_POSE",
    "MapConfig",
    "OdometryConfig",
    "PoseConfig",
    "ScanConfig",
    "WorldModelConfig",
    "nested_config",
]

_PARTS: dict[str, type[Any]] = {
    "scan": ScanConfig,
    "pose": PoseConfig,
    "map": MapConfig,
    "odometry": OdometryConfig,
}


@dataclass(frozen=True)
class WorldModelConfig:
    """Shape of a world model; the default is that of the packaged model, and `plain` one of frames and actions alone.

    Attributes:
        frame_height, frame_width, frame_channels: pixels of a frame.
        patch_size: side of the square of pixels that makes one token.
        width: channels of a token, D.
        block_sizes: one layer per entry; side, in tokens, of the layer's scan blocks.
        scan: of every layer.
        window: previous frames that frame-local attention sees (k of the paper).
        num_attention_heads: heads of the local attention; ``width`` must be divisible by it.
        feed_forward_multiplier: hidden width of the feed-forward part over ``width``.
        condition_width: width of the embedding of noise level, action and pose.
        action_kind, action_size: "discrete" with the number of actions, or "continuous" with the number of dimensions.
        pose: that conditions each frame.
        map: in memory, written and read by place.
        odometry: that predicts poses.
        hide_noise: whether a frame at noise level l enters the network times 1 - l, so that pure noise is a query of
            memory and nothing else.
        feedback_interval: every how many frames one that was dreamed enters memory; the others enter as pure noise, so
            that nothing of them is kept and no error is built upon. 1: all enter; 0: none. Real frames always do.
        write_once: weight below which a place of the map counts as unknown: a dreamed frame that does not enter memory
            is written there, and only there. So what was seen is never painted over, and what was imagined is found
            again. 0: dreamed frames write nothing.
        sample_noise: whether the network sees the pure noise of a frame to come, by an embedding of its own
            (`wm_gym.nn.noise_embedding`), so that one pass may draw a sample in place of the mean.
        reward_values: the rewards that the head distinguishes.
    """

    frame_height: int = 64
    frame_width: int = 64
    frame_channels: int = 3
    patch_size: int = 8
    width: int = 256
    block_sizes: tuple[int, ...] = (2, 1, 4, 1, 8, 1, 2, 1)
    scan: ScanConfig = field(default_factory=ScanConfig)
    window: int = 8
    num_attention_heads: int = 4
    feed_forward_multiplier: int = 3
    condition_width: int = 128
    action_kind: Literal["discrete", "continuous"] = "discrete"
    action_size: int = 6
    pose: PoseConfig = field(default_factory=PoseConfig)
    map: MapConfig = field(default_factory=MapConfig)
    odometry: OdometryConfig = field(default_factory=OdometryConfig)
    hide_noise: bool = True
    feedback_interval: int = 0
    write_once: float = 0.0
    sample_noise: bool = False
    reward_values: tuple[float, ...] = (0.0, 1.0)

    @classmethod
    def plain(cls, **changes: Any) -> Self:
        """A model without poses, map and odometry, whose dreamed frames enter memory as they are; `changes` to it."""
        plain = {"pose": NO_POSE, "map": NO_MAP, "odometry": NO_ODOMETRY, "hide_noise": False, "feedback_interval": 1}
        return cls(**(plain | changes))

    def __post_init__(self) -> None:
        self._check_tokens()
        self._check_memory()
        if self.width % self.num_attention_heads or (self.width // self.num_attention_heads) % 2:
            raise ValueError(
                f"width {self.width} cannot be split into {self.num_attention_heads} attention heads of even size."
            )
        if self.action_kind not in ("discrete", "continuous"):
            raise ValueError(f"action_kind is {self.action_kind!r}; expected 'discrete' or 'continuous'.")
        if self.action_size < 1 or self.window < 1:
            raise ValueError("action_size and window must be at least 1.")
        if not self.reward_values or len(set(self.reward_values)) != len(self.reward_values):
            raise ValueError(f"reward_values are {self.reward_values}; expected at least one value, all different.")

    def _check_tokens(self) -> None:
        if self.frame_height % self.patch_size or self.frame_width % self.patch_size:
            raise ValueError(
                f"frames of {self.frame_height}x{self.frame_width} cannot be cut into patches of {self.patch_size}; "
                "choose a patch_size that divides both sides."
            )
        if not self.block_sizes:
            raise ValueError("block_sizes is empty; give one block size per layer.")
        for size in self.block_sizes:
            if size < 1 or self.token_rows % size or self.token_columns % size:
                raise ValueError(
                    f"block size {size} does not divide the token grid {self.token_rows}x{self.token_columns}; "
                    "choose block_sizes that divide both sides."
                )

    def _check_memory(self) -> None:
        inner, scan = self.scan.expand * self.width, self.scan
        if inner % scan.head_dim:
            raise ValueError(f"scan.head_dim {scan.head_dim} does not divide scan.expand * width = {inner}.")
        if scan.num_groups < 1 or self.num_scan_heads % scan.num_groups:
            raise ValueError(f"scan.num_groups {scan.num_groups} does not divide the {self.num_scan_heads} scan heads.")
        if (self.has_map or self.has_odometry) and self.pose.kind != "planar":
            raise ValueError(f"a map and odometry need pose.kind 'planar', got {self.pose.kind!r}.")
        if self.has_map and not 0 <= self.map.layer < len(self.block_sizes):
            raise ValueError(f"map.layer is {self.map.layer}; expected 0 to {len(self.block_sizes) - 1}.")
        if self.feedback_interval < 0 or (self.feedback_interval != 1 and not self.hide_noise):
            raise ValueError(
                "feedback_interval must be at least 0, and needs hide_noise unless it is 1, got "
                f"{self.feedback_interval} and hide_noise {self.hide_noise}."
            )
        if self.write_once < 0 or (self.write_once and not (self.has_map and self.feedback_interval == 0)):
            raise ValueError(
                "write_once must be at least 0, and needs a map (map.size) and feedback_interval 0 unless it is 0, got "
                f"{self.write_once:g}, map.size {self.map.size} and feedback_interval {self.feedback_interval}."
            )
        if self.sample_noise and not self.hide_noise:
            raise ValueError("sample_noise needs hide_noise: else the noise of a frame to come is seen as pixels.")

    @property
    def has_poses(self) -> bool:
        """Whether frames are conditioned on poses."""
        return self.pose.kind != "none"

    @property
    def has_map(self) -> bool:
        """Whether memory has a map."""
        return self.map.size > 0

    @property
    def has_odometry(self) -> bool:
        """Whether the model predicts poses that are not given."""
        return self.odometry.kind != "none"

    @property
    def needs_poses(self) -> bool:
        """Whether poses have to be given: frames are conditioned on them, and no odometry predicts them."""
        return self.has_poses and not self.has_odometry

    @property
    def token_rows(self) -> int:
        """Rows of tokens of a frame."""
        return self.frame_height // self.patch_size

    @property
    def token_columns(self) -> int:
        """Columns of tokens of a frame."""
        return self.frame_width // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Tokens per frame, N."""
        return self.token_rows * self.token_columns

    @property
    def num_scan_heads(self) -> int:
        """Heads of a layer's scan."""
        return self.scan.expand * self.width // self.scan.head_dim

    @property
    def num_scan_channels(self) -> int:
        """Convolved channels of a layer's scan: x, then B of all groups, then C of all groups."""
        return self.scan.expand * self.width + 2 * self.scan.num_groups * self.scan.state_dim

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON types, nested as the fields are."""
        return _as_json(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`; also reads the flat configurations of checkpoints before version 0.2.

        Raises:
            ValueError: if a key is unknown or missing, or a value does not fit.
        """
        return _built(cls, nested_config(values), "")


def nested_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """A flat configuration nested as :meth:`WorldModelConfig.to_dict` does; anything else as it is.

    Raises:
        ValueError: if a key of a flat configuration is missing, or its values contradict each other.
    """
    return nested_from_flat(values, {name: _as_json(dataclasses.asdict(part())) for name, part in _PARTS.items()})


def _built(kind: type[Any], values: Any, where: str) -> Any:
    """A configuration, or the part of it whose keys begin with `where`, from JSON types."""
    if not isinstance(values, Mapping):
        raise ValueError(f"configuration key {where.rstrip('.')!r} is {values!r}; expected a mapping.")
    names = {each.name for each in dataclasses.fields(kind)}
    if unknown := sorted(where + name for name in values.keys() - names):
        raise ValueError(
            f"unknown configuration keys {unknown}; this version knows {sorted(where + name for name in names)}."
        )
    if missing := sorted(where + name for name in names - values.keys()):
        raise ValueError(f"configuration lacks {missing}; the checkpoint is of another version or damaged.")
    fields: dict[str, Any] = {}
    for name, value in values.items():
        if not where and name in _PARTS:
            fields[name] = _built(_PARTS[name], value, name + ".")
        else:
            fields[name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(f"a value of the configuration does not fit: {error}.") from error


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, tuple | list) else value
