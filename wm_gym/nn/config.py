"""The configuration that a checkpoint carries and that every part of the network reads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

# What checkpoints of earlier versions lack; the defaults are what those versions did.
_NEWER_FIELDS = {
    "num_scan_groups",
    "pose_kind",
    "ray_lines",
    "hide_noise",
    "hide_actions",
    "map_size",
    "map_cell",
    "map_width",
    "map_layer",
    "feedback_interval",
    "write_once",
    "sample_noise",
    "odometry",
    "bearings",
}


@dataclass(frozen=True)
class WorldModelConfig:
    """Shape of a world model.

    Attributes:
        frame_height, frame_width, frame_channels: pixels of a frame.
        patch_size: side of the square of pixels that makes one token.
        width: channels of a token, D.
        block_sizes: one layer per entry; side, in tokens, of the layer's scan blocks.
        head_dim, state_dim, expand: Mamba2's head size, state size per head and inner expansion.
        window: previous frames that frame-local attention sees (k of the paper).
        num_attention_heads: heads of the local attention; ``width`` must be divisible by it.
        feed_forward_multiplier: hidden width of the feed-forward part over ``width``.
        condition_width: width of the embedding of noise level, action and pose.
        action_kind, action_size: "discrete" with the number of actions, or "continuous" with the number of dimensions.
        num_scan_groups: groups of scan heads with keys and queries (B and C) of their own; at equal state size more
            groups remember more different places. ``num_scan_heads`` must be divisible by it.
        pose_size: dimensions of the pose that conditions each frame; 0 for none.
        pose_kind: "vector" conditions whole frames on the pose; "planar" reads it as (x, y, cos heading, sin heading)
            and also tells each token the direction that it looks in.
        ray_lines: whether tokens of planar poses are also told the line that they look along, which they share with
            every other pose on it: its distance from the first pose, and how far along it they stand.
        hide_noise: whether a frame at noise level l enters the network times 1 - l, so that pure noise is a question
            and nothing else.
        hide_actions: whether frames are told their pose and not the action that led to them. The pose says all that the
            action does, but for one thing: that whoever walks on finds no wall, which is then taken for granted.
        map_size: cells of a side of the map that tokens are written into by place (`wm_gym.nn.map_memory`); 0: no map.
        map_cell: side of a cell, in units of the poses. A map wraps around after ``map_size * map_cell``.
        map_width: values that a cell holds.
        map_layer: layers before the tokens are written and the map is read.
        feedback_interval: every how many frames one that was dreamed enters memory; the others enter as pure noise, so
            that nothing of them is kept and no error is built upon. 1: all enter; 0: none. Real frames always do.
        write_once: weight below which a place of the map counts as unknown: a dreamed frame that does not enter memory
            is written there, and only there. So what was seen is never painted over, and what was imagined is found
            again. 0: dreamed frames write nothing.
        sample_noise: whether the network sees the pure noise of a frame to come, by an embedding of its own
            (`wm_gym.nn.noise_embedding`), so that one pass may draw a sample in place of the mean.
        odometry: whether the model predicts the pose of the next frame from its action where none is given.
        bearings: whether odometry also tells from single frames where in its cell it is, and at which angle to the
            walls, which then have to stand on a grid of unit cells, as those of Memory Maze do
            (`wm_gym.odometry.bearings`).
        reward_values: the rewards that the head tells apart.
    """

    frame_height: int = 64
    frame_width: int = 64
    frame_channels: int = 3
    patch_size: int = 8
    width: int = 256
    block_sizes: tuple[int, ...] = (2, 4, 8, 1, 2, 4, 8, 1)
    head_dim: int = 64
    state_dim: int = 64
    expand: int = 2
    num_scan_groups: int = 1
    window: int = 8
    num_attention_heads: int = 4
    feed_forward_multiplier: int = 4
    condition_width: int = 128
    action_kind: Literal["discrete", "continuous"] = "discrete"
    action_size: int = 6
    pose_size: int = 0
    pose_kind: Literal["vector", "planar"] = "vector"
    ray_lines: bool = False
    hide_noise: bool = False
    hide_actions: bool = False
    map_size: int = 0
    map_cell: float = 0.3
    map_width: int = 24
    map_layer: int = 2
    feedback_interval: int = 1
    write_once: float = 0.0
    sample_noise: bool = False
    odometry: bool = False
    bearings: bool = False
    reward_values: tuple[float, ...] = (0.0, 1.0)

    def __post_init__(self) -> None:
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
        if (self.expand * self.width) % self.head_dim:
            raise ValueError(f"head_dim {self.head_dim} does not divide expand * width = {self.expand * self.width}.")
        if self.num_scan_groups < 1 or self.num_scan_heads % self.num_scan_groups:
            raise ValueError(
                f"num_scan_groups {self.num_scan_groups} does not divide the {self.num_scan_heads} scan heads."
            )
        if self.pose_kind not in ("vector", "planar"):
            raise ValueError(f"pose_kind is {self.pose_kind!r}; expected 'vector' or 'planar'.")
        if (self.pose_kind == "planar" or self.odometry) and (self.pose_kind, self.pose_size) != ("planar", 4):
            raise ValueError(
                "planar poses and odometry need pose_kind 'planar' and pose_size 4 (x, y, cos heading, sin heading), "
                f"got {self.pose_kind!r} and {self.pose_size}."
            )
        if self.bearings and not self.odometry:
            raise ValueError("bearings are taken by odometry: set odometry too.")
        if self.ray_lines and self.pose_kind != "planar":
            raise ValueError(f"ray_lines needs pose_kind 'planar', got {self.pose_kind!r}.")
        if self.hide_actions and not self.pose_size:
            raise ValueError(
                "hide_actions needs poses (pose_size): nothing else would tell where a frame is seen from."
            )
        if self.map_size and self.pose_kind != "planar":
            raise ValueError(f"a map needs pose_kind 'planar', got {self.pose_kind!r}.")
        if self.map_size < 0 or self.map_width < 1 or self.map_cell <= 0:
            raise ValueError(
                "map_size must be at least 0, map_width at least 1 and map_cell above 0, got "
                f"{self.map_size}, {self.map_width} and {self.map_cell}."
            )
        if self.map_size and not 0 <= self.map_layer < len(self.block_sizes):
            raise ValueError(f"map_layer is {self.map_layer}; expected 0 to {len(self.block_sizes) - 1}.")
        if self.feedback_interval < 0 or (self.feedback_interval != 1 and not self.hide_noise):
            raise ValueError(
                "feedback_interval must be at least 0, and needs hide_noise unless it is 1, got "
                f"{self.feedback_interval} and hide_noise {self.hide_noise}."
            )
        if self.write_once < 0 or (self.write_once and not (self.map_size and self.feedback_interval == 0)):
            raise ValueError(
                "write_once must be at least 0, and needs a map (map_size) and feedback_interval 0 unless it is 0, got "
                f"{self.write_once:g}, map_size {self.map_size} and feedback_interval {self.feedback_interval}."
            )
        if self.sample_noise and not self.hide_noise:
            raise ValueError("sample_noise needs hide_noise: else the noise of a frame to come is seen as pixels.")
        if self.width % self.num_attention_heads or (self.width // self.num_attention_heads) % 2:
            raise ValueError(
                f"width {self.width} cannot be split into {self.num_attention_heads} attention heads of even size."
            )
        if self.action_kind not in ("discrete", "continuous"):
            raise ValueError(f"action_kind is {self.action_kind!r}; expected 'discrete' or 'continuous'.")
        if self.action_size < 1 or self.window < 1 or self.pose_size < 0:
            raise ValueError("action_size and window must be at least 1, and pose_size at least 0.")
        if not self.reward_values or len(set(self.reward_values)) != len(self.reward_values):
            raise ValueError(f"reward_values are {self.reward_values}; expected at least one value, all different.")

    @property
    def token_rows(self) -> int:
        return self.frame_height // self.patch_size

    @property
    def token_columns(self) -> int:
        return self.frame_width // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Tokens per frame, N."""
        return self.token_rows * self.token_columns

    @property
    def num_scan_heads(self) -> int:
        return self.expand * self.width // self.head_dim

    @property
    def num_scan_channels(self) -> int:
        """Convolved channels of a layer's scan: x, then B of all groups, then C of all groups."""
        return self.expand * self.width + 2 * self.num_scan_groups * self.state_dim

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON types."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WorldModelConfig:
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: if a key is unknown or missing, or a value does not fit.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(values.keys() - names):
            raise ValueError(f"unknown configuration keys {unknown}; this version knows {sorted(names)}.")
        if missing := sorted(names - values.keys() - _NEWER_FIELDS):
            raise ValueError(f"configuration lacks {missing}; the checkpoint is of another version or damaged.")
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**fields)
