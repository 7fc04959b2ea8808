"""How odometry learns its bearings from recorded walks through mazes whose walls stand on whole numbers of cells."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.odometry.learning import WindowSource, minimise
from training.odometry.progress import PartProgress
from wm_gym.codec import frames_to_model
from wm_gym.odometry.bearings import sight_cost
from wm_gym.odometry.visual import VisualOdometry
from wm_gym.ops.odometry.bearings import counted_angles, grid_angles


@dataclass(frozen=True)
class BearingsTraining:
    """How bearings are learned. Poses must be positions in cells, with walls on whole numbers."""

    steps: int = 0  # at most; 0 trains nothing
    minutes: float | None = None  # ends before, with the whole schedule of the learning rate
    batch_size: int = 2048  # frames per step
    learning_rate: float = 3e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 1:
            raise ValueError(
                f"steps must be at least 0 and batch_size at least 1, got {self.steps} and {self.batch_size}."
            )


def train_bearings(
    odometry: VisualOdometry, dataset: WindowSource, training: BearingsTraining, progress: PartProgress | None = None
) -> int:
    """Trains the network of bearings in place, and nothing else; returns the number of steps. See `minimise`."""
    bearings = odometry.bearings
    assert bearings is not None, "the odometry takes no bearings"
    parameters = list(bearings.parameters())
    device = parameters[0].device
    generator = torch.Generator(device).manual_seed(training.seed)

    def loss() -> Tensor:
        batch = dataset.sample(training.batch_size, 1, generator)
        poses = batch.pose.to(device).float()
        sights = bearings(frames_to_model(batch.frames.to(device)))
        return sight_cost(sights, grid_angles(poses), counted_angles(poses))

    return minimise(parameters, loss, training, "training bearings", generator, progress)
