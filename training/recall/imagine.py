"""Long dreams of many mazes at once, each under the actions (and poses) of its real walk."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from training.pose_input import Conditioning, model_poses
from training.recall.options import Feedback, Memory
from training.recall.steppers import GraphStepper, StateStepper, Stepper
from training.rollouts import Rollouts
from wm_gym.nn.state import ModelState
from wm_gym.step_graph import StepGraph
from wm_gym.world_model import WorldModel


class Dreamer:
    """Dreams on from the context of real walks.

    The noise of a dream depends on the seed of its maze, on `noise_seed` and on the frame's number alone: not on the
    batch, nor on what memory is kept. Models of our own kind step through a `StepGraph`, others through their `step`.

    Args:
        model: frozen.
        batch_size: dreams at a time.
        cleared_frames: frames of the context that a cleared memory still reads; 0: window + 1.
        feedback: what enters the memories after each step, the imagined frame or the real one.
        conditioning: whether a model that takes poses is given them; see `training.pose_input.model_poses`.
    """

    def __init__(
        self,
        model: WorldModel,
        batch_size: int,
        num_denoising_steps: int = 1,
        noise_seed: int = 0,
        cleared_frames: int = 0,
        feedback: Feedback = "dreamed",
        conditioning: Conditioning = "pose",
    ) -> None:
        self.model = model
        self._conditioning: Conditioning = conditioning
        # As many as local attention and the pending frame hold: the newest past is known, everything else is gone.
        self._cleared_frames = cleared_frames or model.config.window + 1
        self._feedback: Feedback = feedback
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
            walks: M walks of `num_context` + F frames.
            memory: "kept": all of the context is read; "cleared": see `num_frames_read`.
        """
        batches = torch.arange(len(walks.seeds)).split(self.batch_size)
        return torch.cat([self._imagine_batch(walks, rows, num_context, memory) for rows in batches])

    def _imagine_batch(self, walks: Rollouts, rows: Tensor, num_context: int, memory: Memory) -> Tensor:
        device, num_frames = self.model.device, walks.frames.shape[1] - num_context
        stepper = self._start(walks, rows, num_context, memory)
        # All on the device at once: a copy for every step would wait for it.
        actions = walks.actions[rows, num_context - 1 :].to(device)
        poses = self._poses(walks, rows, num_context, memory)
        poses = None if poses is None else poses[:, -num_frames:].to(device)
        real = walks.frames[rows, num_context:].to(device) if self._feedback == "real" else None
        frames = torch.empty(len(rows), num_frames, *walks.frames.shape[2:], dtype=torch.uint8, device=device)
        for t in tqdm(range(num_frames), desc=f"dreaming, memory {memory}", unit="frame", leave=False):
            frames[:, t] = stepper.step(actions[:, t], None if poses is None else poses[:, t])
            if real is not None:
                stepper.correct(real[:, t])
        return frames.cpu()

    def _start(self, walks: Rollouts, rows: Tensor, num_context: int, memory: Memory) -> Stepper:
        keys = torch.tensor([self._noise_seed + walks.seeds[row] for row in rows.tolist()], device=self.model.device)

        def read(dreams: Tensor) -> ModelState:
            return self._read(walks, rows[dreams], num_context, memory)

        if self._graph is None:
            return StateStepper(self.model, self._num_denoising_steps, read, keys)
        return GraphStepper(self._graph, read, keys)

    def _read(self, walks: Rollouts, rows: Tensor, num_context: int, memory: Memory) -> ModelState:
        device = self.model.device
        first = num_context - self.num_frames_read(memory, num_context)
        frames = walks.frames[rows, first:num_context].to(device)
        actions = walks.actions[rows, first : num_context - 1].to(device)
        pose = self._poses(walks, rows, num_context, memory)
        pose = None if pose is None else pose[:, : frames.shape[1]].to(device)
        return self.model.prefill(self.model.initial_state(len(rows)), frames, actions, pose)

    def _poses(self, walks: Rollouts, rows: Tensor, num_context: int, memory: Memory) -> Tensor | None:
        """Poses from the first frame that is read to the last one that is dreamed."""
        first = num_context - self.num_frames_read(memory, num_context)
        return model_poses(self.model.config, walks.pose[rows, first:], self._conditioning)
