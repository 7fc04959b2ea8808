"""The loop "load a context, dream on": evaluation, measures of rewards and odometry's training dream through it.

Dreams hold their memories and are stepped together. The noise of a dream depends on its key and on the number of its
imagined frames alone (`wm_gym.ops.step.frame_noise`): neither on the batch, nor on the device, nor on which of the two
kinds below steps it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from wm_gym.array_typing import Action, Actions, Frame, Pose, Poses
from wm_gym.codec import frames_to_model, model_to_frames
from wm_gym.engine.graph import StepGraph, StepOutput
from wm_gym.nn.state import ModelState
from wm_gym.ops.step import frame_noise
from wm_gym.world_model import WorldModel

ROWS_PER_PREFILL = 8  # bounds the memory that reading a context in parallel takes

Read = Callable[[Tensor], ModelState]
"""Reads the contexts of some dreams, int64 ``[n]``, into a state of n rows."""


class Dreams(Protocol):
    """B dreams that hold their memories."""

    @property
    def pose(self) -> Pose | None:
        """Poses of the newest frames as the model has them, ``[B, P]``, if any. The next step may overwrite them."""
        ...

    def step(self, action: Action, pose: Pose | None = None) -> StepOutput:
        """Imagines the next frames, which are then the newest of the memories. The next step may overwrite them."""
        ...

    def correct(self, frame: Frame) -> None:
        """Put real frames in place of the newest ones, before they enter the memories."""
        ...

    def restart(self, read: Read) -> None:
        """Go on from other memories; the noise goes on as it would have."""
        ...


class GraphDreams:
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
        """See `Dreams`."""
        pose = self._graph.memory.pose
        return None if pose is None else pose[: self._num_dreams]

    def step(self, action: Action, pose: Pose | None = None) -> StepOutput:
        """See `Dreams`."""
        pose = None if pose is None else pose[self._filled]
        return StepOutput(*(part[: self._num_dreams] for part in self._graph.step(action[self._filled], pose)))

    def correct(self, frame: Frame) -> None:
        """See `Dreams`."""
        self._graph.memory.correct(frames_to_model(frame[self._filled]))

    def restart(self, read: Read) -> None:
        """See `Dreams`."""
        filled = self._filled.cpu()
        for places in torch.arange(self._graph.batch_size).split(ROWS_PER_PREFILL):
            self._graph.load(read(filled[places]), places)


class StateDreams:
    """Steps any model by its own `step`, with the noise that a `StepGraph` would draw.

    Args as for `GraphDreams`.
    """

    def __init__(self, model: WorldModel, num_denoising_steps: int, read: Read, keys: Tensor) -> None:
        self._model, self._num_denoising_steps, self._keys = model, num_denoising_steps, keys
        self._counters = torch.zeros_like(keys)
        self.restart(read)

    @property
    def pose(self) -> Pose | None:
        """See `Dreams`."""
        assert self._state.pending is not None
        return self._state.pending.pose

    def step(self, action: Action, pose: Pose | None = None) -> StepOutput:
        """See `Dreams`."""
        c = self._model.config
        noise = frame_noise(self._keys, self._counters, (c.frame_channels, c.frame_height, c.frame_width))
        self._counters += 1
        one, self._state = self._model.step(self._state, action, noise, self._num_denoising_steps, pose)
        logits = one.reward_logits, one.termination_logits
        return StepOutput(model_to_frames(one.frame), one.reward, one.termination, one.frame, *logits)

    def correct(self, frame: Frame) -> None:
        """See `Dreams`."""
        assert self._state.pending is not None
        self._state = dataclasses.replace(self._state, pending=self._state.pending.corrected(frames_to_model(frame)))

    def restart(self, read: Read) -> None:
        """See `Dreams`."""
        self._state = read(torch.arange(len(self._keys)))


def make_graph(model: WorldModel, batch_size: int, num_denoising_steps: int = 1) -> StepGraph | None:
    """The graph that steps a model of our own kind; None for one with a memory of another kind, as baselines have."""
    return StepGraph(model, batch_size, num_denoising_steps) if type(model) is WorldModel else None


def load_contexts(
    model: WorldModel, read: Read, keys: Tensor, graph: StepGraph | None = None, num_denoising_steps: int = 1
) -> Dreams:
    """Dreams that begin with the memories that `read` gives.

    Args:
        keys: of the noise, int64 ``[B]`` on the model's device.
        graph: of `make_graph`, with at least B rows; None steps the model by its own `step`.
        num_denoising_steps: passes per frame, where there is no graph.
    """
    return StateDreams(model, num_denoising_steps, read, keys) if graph is None else GraphDreams(graph, read, keys)


def rollout(dreams: Dreams, actions: Actions, poses: Poses | None = None) -> Iterator[StepOutput]:
    """Dreams on under actions; yields the frames of each step, which the next step may overwrite.

    Args:
        actions: ``[B, T]`` int64 or ``[B, T, A]`` float; the first is taken at the newest frame.
        poses: of the frames to come, ``[B, T, P]``, for a model that is given them.
    """
    for t in range(actions.shape[1]):
        yield dreams.step(actions[:, t], None if poses is None else poses[:, t])
