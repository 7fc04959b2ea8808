"""Two ways of making frame after frame of several dreams, behind one signature."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from wm_gym.array_typing import Action, Frame, Pose
from wm_gym.codec import frames_to_model, model_to_frames
from wm_gym.engine.graph import StepGraph
from wm_gym.nn.state import ModelState
from wm_gym.ops.step import frame_noise
from wm_gym.world_model import WorldModel

ROWS_PER_PREFILL = 8  # bounds the memory that reading a context in parallel takes

Read = Callable[[Tensor], ModelState]
"""Reads the contexts of some dreams, int64 ``[n]``, into a state of n rows."""


class Stepper(Protocol):
    """B dreams that hold their memories."""

    @property
    def pose(self) -> Pose | None:
        """Poses of the newest frames as the model has them, ``[B, P]``, if any. The next step may overwrite them."""
        ...

    def step(self, action: Action, pose: Pose | None) -> Frame:
        """The next frames, uint8 ``[B, H, W, C]``; they are the newest of the memories."""
        ...

    def correct(self, frame: Frame) -> None:
        """Put real frames in place of the newest ones, before they enter the memories."""
        ...

    def restart(self, read: Read) -> None:
        """Go on from other memories; the noise goes on as it would have."""
        ...


class GraphStepper:
    """Steps models of our own kind by a `StepGraph`.

    Args:
        graph: of at least B rows. Rows to spare dream the first ones again.
        read: gives the memories to start from.
        keys: of the noise, int64 ``[B]`` on the graph's device.
    """

    def __init__(self, graph: StepGraph, read: Read, keys: Tensor) -> None:
        self._graph, self._num_dreams = graph, len(keys)
        self._filled = torch.arange(graph.batch_size, device=keys.device) % len(keys)
        self.restart(read)
        graph.set_noise(keys[self._filled])

    @property
    def pose(self) -> Pose | None:
        """See `Stepper`."""
        pose = self._graph.memory.pose
        return None if pose is None else pose[: self._num_dreams]

    def step(self, action: Action, pose: Pose | None) -> Frame:
        """See `Stepper`. The next step overwrites the frames."""
        pose = None if pose is None else pose[self._filled]
        return self._graph.step(action[self._filled], pose).frame[: self._num_dreams]

    def correct(self, frame: Frame) -> None:
        """See `Stepper`."""
        self._graph.memory.correct(frames_to_model(frame[self._filled]))

    def restart(self, read: Read) -> None:
        """See `Stepper`."""
        filled = self._filled.cpu()
        for places in torch.arange(self._graph.batch_size).split(ROWS_PER_PREFILL):
            self._graph.load(read(filled[places]), places)


class StateStepper:
    """Steps any model by its own `step`, with the noise that a `StepGraph` would draw.

    Args as for `GraphStepper`.
    """

    def __init__(self, model: WorldModel, num_denoising_steps: int, read: Read, keys: Tensor) -> None:
        self._model, self._num_denoising_steps, self._keys = model, num_denoising_steps, keys
        self._counters = torch.zeros_like(keys)
        self.restart(read)

    @property
    def pose(self) -> Pose | None:
        """See `Stepper`."""
        assert self._state.pending is not None
        return self._state.pending.pose

    def step(self, action: Action, pose: Pose | None) -> Frame:
        """See `Stepper`."""
        c = self._model.config
        noise = frame_noise(self._keys, self._counters, (c.frame_channels, c.frame_height, c.frame_width))
        self._counters += 1
        prediction, self._state = self._model.step(self._state, action, noise, self._num_denoising_steps, pose)
        return model_to_frames(prediction.frame)

    def correct(self, frame: Frame) -> None:
        """See `Stepper`."""
        assert self._state.pending is not None
        self._state = dataclasses.replace(self._state, pending=self._state.pending.corrected(frames_to_model(frame)))

    def restart(self, read: Read) -> None:
        """See `Stepper`."""
        self._state = read(torch.arange(len(self._keys)))
