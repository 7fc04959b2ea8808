"""The parts of a configuration: scan, pose, map and odometry. The defaults are those of the packaged model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from wm_gym.poses import POSE_SIZE

PoseKind = Literal["none", "vector", "planar"]
OdometryKind = Literal["none", "learned", "grid"]


@dataclass(frozen=True)
class ScanConfig:
    """Mamba2's scan, which every layer runs over the tokens of a block and over time.

    Attributes:
        head_dim: channels of a head.
        state_dim: numbers that a head keeps for each of its channels.
        expand: inner channels over the width of a token.
        num_groups: groups of heads with keys and queries (B and C) of their own; at equal state size more groups
            remember more different places. It must divide the number of heads.
    """

    head_dim: int = 64
    state_dim: int = 64
    expand: int = 2
    num_groups: int = 4


@dataclass(frozen=True)
class PoseConfig:
    """The pose that conditions each frame. Its lengths are in the world's own unit, such as metres.

    Attributes:
        size: numbers of a pose; 0 for none, 4 for a planar one.
        kind: "none"; "vector" conditions whole frames on the pose; "planar" reads it as (x, y, cos heading, sin
            heading) and gives each token the direction that it looks in.
        ray_lines: whether tokens of planar poses also get the line that they look along, which they share with every
            other pose on it: its distance from the first pose, and how far along it they stand.
        hide_actions: whether a frame gets its pose and not the action that led to it. The pose says all that the action
            does, but for one thing: that whoever goes on finds the way free, which a model then takes for granted.
        field_of_view: horizontal angle that a frame covers, in degrees: the directions of a planar pose's columns.
        wavelengths: of the sines and cosines that planar positions are embedded by, in units of the poses; the longest
            is about twice the extent of the world as seen from inside.
    """

    size: int = POSE_SIZE
    kind: PoseKind = "planar"
    ray_lines: bool = True
    hide_actions: bool = True
    field_of_view: float = 80.0
    wavelengths: tuple[float, ...] = (40.0, 20.0, 10.0, 5.0, 2.5, 1.25)

    def __post_init__(self) -> None:
        if self.kind not in get_args(PoseKind):
            raise ValueError(f"pose.kind is {self.kind!r}; expected one of {', '.join(get_args(PoseKind))}.")
        if not {"none": self.size == 0, "vector": self.size > 0, "planar": self.size == POSE_SIZE}[self.kind]:
            raise ValueError(
                f"pose.size is {self.size} and pose.kind {self.kind!r}; expected size 0 for 'none', at least 1 for "
                "'vector' and 4 for 'planar' (x, y, cos heading, sin heading)."
            )
        if self.ray_lines and self.kind != "planar":
            raise ValueError(f"pose.ray_lines needs pose.kind 'planar', got {self.kind!r}.")
        if self.hide_actions and not self.size:
            raise ValueError("pose.hide_actions needs poses: nothing else would say where a frame is seen from.")
        if not 0 < self.field_of_view < 180 or not self.wavelengths or min(self.wavelengths) <= 0:
            raise ValueError(
                "pose.field_of_view must be above 0 and below 180 degrees, and pose.wavelengths at least one length "
                f"above 0, got {self.field_of_view} and {self.wavelengths}."
            )


@dataclass(frozen=True)
class MapConfig:
    """The map that tokens are written into, and read from, by place (`wm_gym.nn.map_memory`); it needs planar poses.

    Attributes:
        size: cells of a side; 0: no map.
        cell: side of a cell, in units of the poses. The map wraps around after ``size * cell``.
        width: values that a cell holds.
        layer: layers before the tokens are written and the map is read.
        rays: of a frame, over the poses' field of view; at least one for each column of tokens.
        distances: of the points of a ray, in units of the poses.
    """

    size: int = 48
    cell: float = 0.3
    width: int = 24
    layer: int = 2
    rays: int = 16
    distances: tuple[float, ...] = (0.2, 0.5, 0.8, 1.1, 1.4, 1.7, 2.1, 2.5, 2.9, 3.4, 3.9, 4.5, 5.2, 6.0, 7.0, 8.0)

    def __post_init__(self) -> None:
        if self.size < 0 or self.width < 1 or self.cell <= 0 or self.rays < 1 or not self.distances:
            raise ValueError(
                "map.size must be at least 0, map.width and map.rays at least 1, map.cell above 0 and map.distances "
                f"not empty, got {self}."
            )


@dataclass(frozen=True)
class OdometryConfig:
    """How the model predicts the pose of the next frame where none is given (`wm_gym.odometry`).

    Attributes:
        kind: "none"; "learned" from frames, actions and, in dreams, the map; "grid" also uses a prior that is written
            by hand and true of one world (`wm_gym.odometry.grid`).
        largest_shift: sideways shifts, to both sides, at which the views of two frames are compared; a view has a
            quarter of a frame's resolution. A quick turn should not move the picture farther.
        motion_scale: factor that brings motions from frame to frame, in units of the poses and radians, to order 1.
        surprise: difference between the motion that is seen and the one that was predicted, in the same units, above
            which its size says little.
        touch_spacing: distance between the points around the agent at which the map is read, in units of the poses.
        touch_reach: points on each side of the agent.
    """

    kind: OdometryKind = "grid"
    largest_shift: int = 4
    motion_scale: float = 5.0
    surprise: float = 0.01
    touch_spacing: float = 0.2
    touch_reach: int = 3

    def __post_init__(self) -> None:
        if self.kind not in get_args(OdometryKind):
            raise ValueError(f"odometry.kind is {self.kind!r}; expected one of {', '.join(get_args(OdometryKind))}.")
        counts, scales = (self.largest_shift, self.touch_reach), (self.motion_scale, self.surprise, self.touch_spacing)
        if min(counts) < 1 or min(scales) <= 0:
            raise ValueError(f"the numbers of odometry must be above 0, got {self}.")


NO_POSE = PoseConfig(size=0, kind="none", ray_lines=False, hide_actions=False)
NO_MAP = MapConfig(size=0)
NO_ODOMETRY = OdometryConfig(kind="none")
