"""Long dreams of many mazes at once, each under the actions (and poses) of its real walk."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from training.recall.options import Memory
from training.rollouts import Rollouts
from wm_gym.array_typing import Action, Pose
from wm_gym.codec import model_to_frames
from wm_gym.nn.state import ModelState
from wm_gym.ops.step import frame_noise
from wm_gym.step_graph import StepGraph
from wm_gym.world_model import WorldModel

ROWS_PER_PREFILL = 8  # bounds the memory that reading a context in parallel takes

Stepper = Callable[[Action, Pose | None], Tensor]


class Dreamer:
    """Dreams on from the context of real walks.

    The noise of a dream depends on the seed of its maze, on `noise_seed` and on the frame's number alone: not on the
    batch, nor on what memory is kept. Models of our own kind step through a `StepGraph`, others through their `step`.

    Args:
        model: frozen.
        batch_size: dreams at a time.
        cleared_frames: frames of the context that a cleared memory still reads; 0: window + 1.
    """

    def __init__(
        self,
        model: WorldModel,
        batch_size: int,
        num_denoising_steps: int = 1,
        noise_seed: int = 0,
        cleared_frames: int = 0,
    ) -> None:
        self.model = model
        # As many as local attention and the pending frame hold: the newest past is known, everything else is gone.
        self._cleared_frames = cleared_frames or model.config.window + 1
        self.batch_size = batch_size
        self._num_denoising_steps = num_denoising_steps
        self._noise_seed = noise_seed
        # Subclasses have memories of other kinds, which a graph does not hold.
        has_graph = type(model) is WorldModel
        self._graph = StepGraph(model, batch_size, num_denoising_steps) if has_graph else None

    def num_frames_read(self, memory: Memory, num_context: int) -> int:
        """How many of the last frames of the context the model is given."""
        return num_context if memory == "kept" else min(num_context, self._cleared_frames)

    @torch.no_grad()
    def imagine(self, walks: Rollouts, num_context: int, memory: Memory) -> Tensor:
        """uint8 [M, F, H, W, C] on the CPU: the frames after the context, imagined.

        Args:
            walks: M walks of `num_context` + F frames. Poses are given to models that are conditioned on them.
            memory: "kept": all of the context is read; "cleared": see `num_frames_read`.
        """
        batches = torch.arange(len(walks.seeds)).split(self.batch_size)
        return torch.cat([self._imagine_batch(walks, rows, num_context, memory) for rows in batches])

    def _imagine_batch(self, walks: Rollouts, rows: Tensor, num_context: int, memory: Memory) -> Tensor:
        device, num_frames = self.model.device, walks.frames.shape[1] - num_context
        step = self._start(walks, rows, num_context, memory)
        # All on the device at once: a copy for every step would wait for it.
        actions = walks.actions[rows, num_context - 1 :].to(device)
        poses = walks.pose[rows, num_context:].to(device) if self.model.config.pose_size else None
        frames = torch.empty(len(rows), num_frames, *walks.frames.shape[2:], dtype=torch.uint8, device=device)
        for t in tqdm(range(num_frames), desc=f"dreaming, memory {memory}", unit="frame", leave=False):
            frames[:, t] = step(actions[:, t], None if poses is None else poses[:, t])
        return frames.cpu()

    def _start(self, walks: Rollouts, rows: Tensor, num_context: int, memory: Memory) -> Stepper:
        """Reads the contexts and returns what makes frame after frame."""
        keys = torch.tensor([self._noise_seed + walks.seeds[row] for row in rows.tolist()], device=self.model.device)
        graph = self._graph
        if graph is None:
            return self._start_eager(self._read(walks, rows, num_context, memory), keys)
        # A last, smaller batch dreams its first rows again where the graph has rows to spare.
        filled = torch.arange(graph.batch_size) % len(rows)
        for start in range(0, graph.batch_size, ROWS_PER_PREFILL):
            places = torch.arange(start, min(start + ROWS_PER_PREFILL, graph.batch_size))
            graph.load(self._read(walks, rows[filled[places]], num_context, memory), places)
        take = filled.to(keys.device)
        graph.set_noise(keys[take])

        def step(action: Action, pose: Pose | None) -> Tensor:
            return graph.step(action[take], None if pose is None else pose[take]).frame[: len(rows)]

        return step

    def _start_eager(self, state: ModelState, keys: Tensor) -> Stepper:
        c = self.model.config
        shape = (c.frame_channels, c.frame_height, c.frame_width)
        counters = torch.zeros_like(keys)

        def step(action: Action, pose: Pose | None) -> Tensor:
            nonlocal state
            noise = frame_noise(keys, counters, shape)
            prediction, state = self.model.step(state, action, noise, self._num_denoising_steps, pose)
            counters.add_(1)
            return model_to_frames(prediction.frame)

        return step

    def _read(self, walks: Rollouts, rows: Tensor, num_context: int, memory: Memory) -> ModelState:
        device = self.model.device
        first = num_context - self.num_frames_read(memory, num_context)
        frames = walks.frames[rows, first:num_context].to(device)
        actions = walks.actions[rows, first : num_context - 1].to(device)
        pose = walks.pose[rows, first:num_context].to(device) if self.model.config.pose_size else None
        return self.model.prefill(self.model.initial_state(len(rows)), frames, actions, pose)
