"""Which poses a model is given: none, as they were recorded, or as seen from the first frame that its memory read."""

from __future__ import annotations

from typing import Literal

from wm_gym.array_typing import Poses
from wm_gym.nn.config import WorldModelConfig
from wm_gym.poses import relative_to_first

Conditioning = Literal["action", "pose"]


def model_poses(config: WorldModelConfig, poses: Poses, conditioning: Conditioning = "pose") -> Poses | None:
    """What `WorldModel.prefill` and `step` take for frames that follow each other.

    Args:
        poses: as recorded, ``[..., T, P]``; the first of the T frames is the first that the memory reads.
        conditioning: "action": a model with odometry gets none, and predicts its poses itself.

    Raises:
        ValueError: conditioning by action of a model that needs poses, or poses of another size.
    """
    if not config.has_poses:
        return None
    if conditioning == "action":
        if config.needs_poses:
            raise ValueError(
                f"The checkpoint is conditioned on poses of {config.pose.size} numbers and has no odometry that would "
                "predict them from actions; take --conditioning pose."
            )
        return None
    if poses.shape[-1] != config.pose.size:
        raise ValueError(f"The checkpoint takes poses of {config.pose.size} numbers, and {poses.shape[-1]} are given.")
    return relative_to_first(poses) if config.pose.kind == "planar" else poses
