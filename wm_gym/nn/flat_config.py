"""Configurations of checkpoints before version 0.2, which were flat, in the form of today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Fields of flat configurations and where they are now; "bearings" is the odometry's kind "grid".
FLAT_NAMES: dict[str, str] = {
    "head_dim": "scan.head_dim",
    "state_dim": "scan.state_dim",
    "expand": "scan.expand",
    "num_scan_groups": "scan.num_groups",
    "pose_size": "pose.size",
    "pose_kind": "pose.kind",
    "ray_lines": "pose.ray_lines",
    "hide_actions": "pose.hide_actions",
    "map_size": "map.size",
    "map_cell": "map.cell",
    "map_width": "map.width",
    "map_layer": "map.layer",
    "odometry": "odometry.kind",
}
# What the earliest of them lack; the values are what those versions did.
_DEFAULTS: dict[str, Any] = {
    "num_scan_groups": 1,
    "pose_kind": "vector",
    "ray_lines": False,
    "hide_noise": False,
    "hide_actions": False,
    "map_size": 0,
    "map_cell": 0.3,
    "map_width": 24,
    "map_layer": 2,
    "feedback_interval": 1,
    "write_once": 0.0,
    "sample_noise": False,
    "odometry": False,
    "bearings": False,
}


def nested_from_flat(values: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A flat configuration with its fields in the parts where they are now; one that is not flat is returned as it is.

    Args:
        values: the configuration as JSON types.
        parts: values of the fields of all parts, for those that flat configurations did not have.

    Raises:
        ValueError: if a key is missing, or values contradict each other.
    """
    if not (FLAT_NAMES.keys() - {"odometry"}) & values.keys():
        return dict(values)
    flat = _DEFAULTS | dict(values)
    if missing := sorted(FLAT_NAMES.keys() - flat.keys()):
        raise ValueError(f"configuration lacks {missing}; the checkpoint is of another version or damaged.")
    if flat["bearings"] and not flat["odometry"]:
        raise ValueError("the configuration has bearings, which odometry takes, and no odometry.")
    if flat["pose_kind"] == "vector" and not flat["pose_size"]:
        flat["pose_kind"] = "none"
    flat["odometry"] = "grid" if flat.pop("bearings") else "learned" if flat["odometry"] else "none"
    nested: dict[str, Any] = {name: dict(fields) for name, fields in parts.items()}
    for key, value in flat.items():
        part, _, name = FLAT_NAMES.get(key, "").partition(".")
        if part:
            nested[part][name] = value
        elif key in nested:  # of a configuration that is half flat and half nested
            raise ValueError(f"the configuration has {key!r} beside keys of a flat one.")
        else:
            nested[key] = value
    return nested
