"""How odometry learns from recorded walks: along whole windows, on its own motion, on clear and on spoilt frames."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from training.dataset import EpisodeDataset
from wm_gym.array_typing import ModelFrames, Motions
from wm_gym.codec import frames_to_model
from wm_gym.nn.odometry import Odometry
from wm_gym.poses import motion_between, moved

ERROR_SCALE = 0.01  # cells and radians; errors that are much larger count in proportion, not squared
WARM_UP = 0.02  # of the training


@dataclass(frozen=True)
class OdometryTraining:
    """How odometry is trained."""

    steps: int = 6000  # at most; 0 trains nothing
    minutes: float | None = None  # ends before, with the whole schedule of the learning rate
    batch_size: int = 128  # windows per step
    length: int = 33  # frames of a window; the first is read like that of a dream, with nothing before it
    learning_rate: float = 2e-3
    spoilt_fraction: float = 0.5  # of the windows, blurred and noisy as dreams are
    seed: int = 0


def train_odometry(odometry: Odometry, dataset: EpisodeDataset, training: OdometryTraining) -> int:
    """Trains in place and returns the number of steps; a dataset on a GPU must be on the network's."""
    device = next(odometry.parameters()).device
    generator = torch.Generator().manual_seed(training.seed)
    noise = torch.Generator(device).manual_seed(training.seed)
    optimizer = torch.optim.AdamW(odometry.parameters(), training.learning_rate, weight_decay=0.01)
    begin, step = time.monotonic(), 0
    with tqdm(total=training.steps, unit="step", desc="training odometry", disable=None) as bar:
        while (done := _progress(step, training, begin)) < 1:
            rate = training.learning_rate * min(1, (done + 1 / training.steps) / WARM_UP)
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * done))
            batch = dataset.sample(training.batch_size, training.length, generator)
            frames = spoilt(frames_to_model(batch.frames.to(device)), training.spoilt_fraction, noise)
            loss = odometry_loss(odometry, frames, batch.actions.to(device), batch.pose.to(device))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(odometry.parameters(), 1.0)
            optimizer.step()
            step += 1
            bar.update()
            if step % 50 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
    return step


def _progress(step: int, training: OdometryTraining, begin: float) -> float:
    """From 0 to 1."""
    by_steps = step / training.steps if training.steps else 1.0
    by_time = 0.0 if training.minutes is None else (time.monotonic() - begin) / (60 * training.minutes)
    return max(by_steps, by_time)


def odometry_loss(odometry: Odometry, frames: ModelFrames, actions: Tensor, poses: Tensor) -> Tensor:
    """Errors of predicted motions and of what is said of them afterwards, in units of `ERROR_SCALE`.

    Args:
        frames: ``[B, T, C, H, W]``.
        actions: ``[B, T - 1]``, between the frames.
        poses: ``[B, T, 4]``, true ones.
    """
    state = odometry.initial_state(len(frames), frames.device)
    corrections, motions, _ = odometry.motions(state, odometry.look(state, frames[:, :-1], actions))
    true = motion_between(poses[:, :-1], poses[:, 1:])
    # What was predicted of the way to a frame is put right with the frame itself, one step later.
    needed = motion_between(_moved_once(motions), _moved_once(true))[:, :-1]
    residual = (needed.detach() - corrections[:, 1:]) / ERROR_SCALE
    predicted = (true - motions) / ERROR_SCALE
    # Errors that cancel over a window do not make a path drift; those that add up do.
    drift = residual.sum(1) / residual.shape[1] ** 0.5
    return sum(
        (F.huber_loss(error, torch.zeros_like(error)) for error in (residual, predicted, drift)), frames.new_zeros(())
    )


def _moved_once(motions: Motions) -> Tensor:
    """Where a motion leads from the origin, ``[B, T, 4]``."""
    origin = torch.tensor([0.0, 0.0, 1.0, 0.0], device=motions.device)
    return moved(origin.expand(*motions.shape[:2], 4), motions)


def spoilt(frames: ModelFrames, fraction: float, generator: torch.Generator) -> ModelFrames:
    """Windows ``[B, T, C, H, W]``, a fraction of them blurred and with noise, each as strongly as it is drawn."""
    draw = torch.rand(3, len(frames), 1, 1, 1, 1, generator=generator, device=frames.device)
    chosen = (draw[0] < fraction).float()
    size = 5
    blurred = F.avg_pool2d(frames.flatten(0, 1), size, 1, size // 2, count_include_pad=False).view_as(frames)
    noise = torch.randn(frames.shape, generator=generator, device=frames.device)
    return frames + chosen * (draw[1] * (blurred - frames) + 0.2 * draw[2].square() * noise)
