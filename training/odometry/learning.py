"""How odometry learns from recorded walks: along whole windows, on its own motion, on clear and on spoilt frames, and
on frames that it looks at alone, as it does in dreams."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from training.data.dataset import Batch
from training.odometry.progress import PartProgress
from wm_gym.array_typing import ModelFrames
from wm_gym.codec import frames_to_model
from wm_gym.odometry.visual import VisualOdometry
from wm_gym.poses import MOTION_SIZE, motion_between

ERROR_SCALE = 0.002  # cells; errors that are much larger count in proportion, not squared
TURN_WEIGHT = 2.0  # cells for a radian: a turn that is off leads astray with every step that follows
LARGE_ERROR = 50.0  # in units of ERROR_SCALE, as contacts make them; these count in part squared
WARM_UP = 0.02  # of the training
KNOWN_FRAMES = 4  # which show how fast the agent is, before all others are looked at alone


@dataclass(frozen=True)
class OdometryTraining:
    """How odometry is trained."""

    steps: int = 6000  # at most; 0 trains nothing
    minutes: float | None = None  # ends before, with the whole schedule of the learning rate
    batch_size: int = 256  # windows per step
    length: int = 17  # frames of a window; the first is read like that of a dream, with nothing before it
    learning_rate: float = 3e-3
    spoilt_fraction: float = 0.5  # of the windows, blurred and noisy as dreams are
    alone_fraction: float = 0.5  # of the windows: after a few frames each one is looked at alone, as dreamed ones are
    dreamed_fraction: float = 0.3  # of the windows, if there are dreams: dreamed frames, looked at alone
    seed: int = 0

    def __post_init__(self) -> None:
        fractions = self.spoilt_fraction, self.alone_fraction, self.dreamed_fraction
        if not all(0 <= fraction <= 1 for fraction in fractions):
            raise ValueError(
                f"spoilt_fraction, alone_fraction and dreamed_fraction must be in [0, 1], got {fractions}."
            )


class WindowSource(Protocol):
    """An `EpisodeDataset`, or what gives windows as it does."""

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Batch:
        """Draws `batch_size` windows of `length` frames."""
        ...


def train_odometry(
    odometry: VisualOdometry,
    dataset: WindowSource,
    training: OdometryTraining,
    dreams: WindowSource | None = None,
    progress: PartProgress | None = None,
) -> int:
    """Trains in place and returns the number of steps; a dataset on a GPU must be on the network's.

    Args:
        dataset: real walks.
        dreams: walks whose frames were dreamed, each for its true pose.
        progress: see `minimise`.
    """
    device = next(odometry.parameters()).device
    generator = torch.Generator(device).manual_seed(training.seed)  # on the device, so that nothing waits for it
    num_dreamed = 0 if dreams is None else round(training.dreamed_fraction * training.batch_size)
    num_real = training.batch_size - num_dreamed
    sources = [(dataset, num_real)] + ([(dreams, num_dreamed)] if dreams is not None and num_dreamed else [])
    real = looked_at_beside(_alone(num_real, num_dreamed, training.alone_fraction).to(device), training.length - 1)

    def loss() -> Tensor:
        return odometry_loss(odometry, *_windows(sources, training, generator, device), real)

    return minimise(list(odometry.parameters()), loss, training, "training odometry", generator, progress)


class Schedule(Protocol):
    """How long something is trained, and how fast."""

    @property
    def steps(self) -> int:
        """Steps at most."""
        ...

    @property
    def minutes(self) -> float | None:
        """Minutes at most, with the whole schedule of the learning rate; None: any time."""
        ...

    @property
    def learning_rate(self) -> float:
        """Highest learning rate."""
        ...


def minimise(
    parameters: list[nn.Parameter],
    loss_of_a_batch: Callable[[], Tensor],
    training: Schedule,
    what: str,
    generator: torch.Generator,
    progress: PartProgress | None = None,
) -> int:
    """Trains parameters in place: AdamW, a short warm-up, then a cosine to 0. Returns the number of steps.

    Args:
        what: for the progress bar.
        generator: that the batches are drawn with.
        progress: where the training is kept, and from where it goes on; None keeps nothing.

    Raises:
        ValueError: if what is kept is damaged or of other settings.
    """
    optimizer = torch.optim.AdamW(parameters, training.learning_rate, weight_decay=0.01)
    step, minutes = (0, 0.0) if progress is None else progress.load(parameters, optimizer, generator)
    begin = time.monotonic() - 60 * minutes
    with tqdm(total=training.steps, initial=step, unit="step", desc=what, disable=None) as bar:
        while (done := _progress(step, training, begin)) < 1:
            rate = training.learning_rate * min(1, (done + 1 / training.steps) / WARM_UP)
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * done))
            loss = loss_of_a_batch()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            step += 1
            bar.update()
            if step % 50 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
            if progress is not None and progress.is_due():
                minutes = (time.monotonic() - begin) / 60
                progress.save(parameters, optimizer, generator, step, minutes, finished=False)
    if progress is not None:
        progress.save(parameters, optimizer, generator, step, (time.monotonic() - begin) / 60, finished=True)
    return step


def _progress(step: int, training: Schedule, begin: float) -> float:
    """From 0 to 1."""
    by_steps = step / training.steps if training.steps else 1.0
    by_time = 0.0 if training.minutes is None else (time.monotonic() - begin) / (60 * training.minutes)
    return max(by_steps, by_time)


def _windows(
    sources: list[tuple[WindowSource, int]],
    training: OdometryTraining,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[ModelFrames, Tensor, Tensor]:
    """Frames, actions and poses of so many windows of each source; those of the first one are spoilt."""
    batches = [source.sample(count, training.length, generator) for source, count in sources]
    frames = [frames_to_model(batch.frames.to(device)) for batch in batches]
    frames[0] = spoilt(frames[0], training.spoilt_fraction, generator)
    actions, poses = (torch.cat([getattr(batch, name).to(device) for batch in batches]) for name in ("actions", "pose"))
    return torch.cat(frames), actions, poses


def looked_at_beside(alone: Tensor, length: int) -> Tensor:
    """Which frames are looked at beside the one before them, bool ``[B, length]``.

    Args:
        alone: windows in which only the first few are, bool ``[B]``.
    """
    return (torch.arange(length, device=alone.device) < KNOWN_FRAMES) | ~alone[:, None]


def _alone(num_real: int, num_dreamed: int, fraction: float) -> Tensor:
    """bool ``[num_real + num_dreamed]``: a fraction of the real windows, spread evenly, and all dreamed ones."""
    spread = (torch.arange(num_real + 1) * fraction).round().diff() > 0
    return torch.cat([spread, torch.ones(num_dreamed, dtype=torch.bool)])


def odometry_loss(
    odometry: VisualOdometry, frames: ModelFrames, actions: Tensor, poses: Tensor, real: Tensor | None = None
) -> Tensor:
    """Errors of predicted motions, of motions as they look and of what is made of both, in units of `ERROR_SCALE`.

    Args:
        frames: ``[B, T, C, H, W]``.
        actions: ``[B, T - 1]``, between the frames.
        poses: ``[B, T, 4]``, true ones.
        real: which frames are looked at as real ones are, ``[B, T - 1]``; None: all of them.
    """
    state = odometry.initial_state(len(frames), frames.device)
    looked = odometry.look(state, frames[:, :-1], actions, real)
    changes, motions, _ = odometry.motions(state, looked)
    true = motion_between(poses[:, :-1], poses[:, 1:])
    scale = motion_unit(true.device)
    predicted = (true - motions) / scale
    # What is left of it once the frame is seen.
    residual = predicted[:, :-1].detach() - changes[:, 1:] / scale
    seen = (true[:, :-1] - looked.seen[:, 1:]) / scale * looked.has_previous[:, 1:]
    # Errors that cancel over a window do not make a path drift; those that add up do.
    drift = residual.sum(1) / residual.shape[1] ** 0.5
    errors = (residual, predicted, seen, drift)
    return torch.stack([motion_cost(error) for error in errors]).sum()


def motion_unit(device: torch.device) -> Tensor:
    """By which errors of motions are divided, ``[3]``; made on the device, which a copy would have to wait for."""
    unit = torch.full((MOTION_SIZE,), ERROR_SCALE, device=device)
    unit[-1:].div_(TURN_WEIGHT)
    return unit


def motion_cost(error: Tensor) -> Tensor:
    """Squares of small errors; of large ones the size, so that they still differ, and in part their squares."""
    return (
        F.huber_loss(error, torch.zeros_like(error))
        + F.huber_loss(error, torch.zeros_like(error), delta=LARGE_ERROR) / LARGE_ERROR
    )


def spoilt(frames: ModelFrames, fraction: float, generator: torch.Generator) -> ModelFrames:
    """Windows ``[B, T, C, H, W]``, a fraction of them blurred and with noise, each as strongly as it is drawn."""
    count = round(fraction * len(frames))
    # The first ones, for windows are drawn in no order; others would have to be counted, and a GPU waited for.
    clear = frames[:count]
    blur, noise = torch.rand(2, count, 1, 1, 1, 1, generator=generator, device=frames.device)
    blurred = F.avg_pool2d(clear.flatten(0, 1), 5, 1, 2, count_include_pad=False).view_as(clear)
    grain = torch.randn(clear.shape, generator=generator, device=frames.device)
    return torch.cat([clear + blur * (blurred - clear) + 0.2 * noise.square() * grain, frames[count:]])
