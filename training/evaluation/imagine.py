"""Long dreams of many mazes at once, each under the actions (and poses) of its real walk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from training.data.pose_input import Conditioning, model_poses
from training.evaluation.options import Feedback, Memory
from training.evaluation.pose_drift import PoseLog
from training.recording.rollouts import Rollouts
from wm_gym.array_typing import Actions, Frames, Poses
from wm_gym.engine.rollout import Dreams, Read, load_contexts, make_graph
from wm_gym.nn.state import ModelState
from wm_gym.world_model import WorldModel


@dataclass(frozen=True)
class Dream:
    """What was imagined after the contexts of M walks, on the CPU.

    Attributes:
        frames: uint8 [M, F, H, W, C].
        pose_errors: float32 [M, F + 1, 2], cells and degrees between the pose that the model tells itself and the true
            one, both seen from the first frame that its memory read: of the last frame of the context, then of those
            imagined. None of a model that tells no poses or is given them.
    """

    frames: Tensor
    pose_errors: Tensor | None


class Dreamer:
    """Dreams on from the context of real walks.

    The noise of a dream depends on the seed of its maze, on `noise_seed` and on the frame's number alone: not on the
    batch, nor on what memory is kept. Models of our own kind step through a `StepGraph`, others through their `step`.

    Args:
        model: frozen.
        batch_size: dreams at a time.
        cleared_frames: frames of the context that a cleared memory still reads; 0: window + 1.
        feedback: what enters the memories after each step, the imagined frame or the real one.
        conditioning: whether a model that takes poses is given them; see `training.data.pose_input.model_poses`.
        refresh_steps: every so many imagined frames the memory is made anew (state refresh); 0: never.
        refresh_frames: from how many of the newest frames, of the context or fed back; 0: `refresh_steps`.
        graph: False steps every model through its `step`, which a few dreams on a CPU are faster with.
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
        refresh_steps: int = 0,
        refresh_frames: int = 0,
        graph: bool = True,
    ) -> None:
        self.model = model
        self._conditioning: Conditioning = conditioning
        # As many as local attention and the pending frame hold: the newest past is known, everything else is gone.
        self._cleared_frames = cleared_frames or model.config.window + 1
        self._feedback: Feedback = feedback
        self._refresh_steps, self._refresh_frames = refresh_steps, refresh_frames or refresh_steps
        self.batch_size = batch_size
        self._num_denoising_steps = num_denoising_steps
        self._noise_seed = noise_seed
        self._graph = make_graph(model, batch_size, num_denoising_steps) if graph else None

    def num_frames_read(self, memory: Memory, num_context: int) -> int:
        """How many of the last frames of the context the model is given."""
        return num_context if memory == "kept" else min(num_context, self._cleared_frames)

    def imagine(self, walks: Rollouts, num_context: int, memory: Memory) -> Tensor:
        """The frames of `dream`."""
        return self.dream(walks, num_context, memory).frames

    @torch.no_grad()
    def dream(self, walks: Rollouts, num_context: int, memory: Memory) -> Dream:
        """Imagines what comes after the context.

        Args:
            walks: M walks of `num_context` + F frames.
            memory: "kept": all of the context is read; "cleared": see `num_frames_read`.
        """
        batches = torch.arange(len(walks.seeds)).split(self.batch_size)
        parts = [self._dream_batch(walks, rows, num_context, memory) for rows in batches]
        errors = [part.pose_errors for part in parts if part.pose_errors is not None]
        return Dream(torch.cat([part.frames for part in parts]), torch.cat(errors) if errors else None)

    def _dream_batch(self, walks: Rollouts, rows: Tensor, num_context: int, memory: Memory) -> Dream:
        device, num_frames = self.model.device, walks.frames.shape[1] - num_context
        first = num_context - self.num_frames_read(memory, num_context)  # that the memory has read
        # All on the device at once: a copy for every step would wait for it.
        actions = walks.actions[rows].to(device)
        seen = walks.frames[rows].to(device)  # the context, then what memory is given in the dream
        poses = self._poses(walks, rows, first)
        dreams = self._start(walks, rows, self._reader(seen, actions, poses, first, num_context))
        log = self._pose_log(walks, rows, num_context)
        log.begin(0, first)
        log.note(0, dreams.pose)
        frames = torch.empty_like(seen[:, num_context:])
        for t in tqdm(range(num_frames), desc=f"dreaming, memory {memory}", unit="frame", leave=False):
            now = num_context + t
            if self._refresh_steps and t and t % self._refresh_steps == 0:
                first = max(now - self._refresh_frames, 0)
                poses = self._poses(walks, rows, first)
                dreams.restart(self._reader(seen, actions, poses, first, now))
                log.begin(t + 1, first)
            frames[:, t] = dreams.step(actions[:, now - 1], None if poses is None else poses[:, now - first]).frame
            log.note(t + 1, dreams.pose)
            if self._feedback == "real":
                dreams.correct(seen[:, now])
            else:
                seen[:, now] = frames[:, t]
        return Dream(frames.cpu(), log.errors())

    def _pose_log(self, walks: Rollouts, rows: Tensor, num_context: int) -> PoseLog:
        tells_poses = self.model.config.has_odometry and self._conditioning == "action"
        return PoseLog(walks.pose[rows].to(self.model.device) if tells_poses else None, num_context)

    def _start(self, walks: Rollouts, rows: Tensor, read: Read) -> Dreams:
        keys = torch.tensor([self._noise_seed + walks.seeds[row] for row in rows.tolist()], device=self.model.device)
        return load_contexts(self.model, read, keys, self._graph, self._num_denoising_steps)

    def _reader(self, frames: Frames, actions: Actions, poses: Poses | None, first: int, end: int) -> Read:
        """Reads frames `first` to `end` - 1 of some of the dreams into a new memory; `poses` begin at `first`."""

        def read(dreams: Tensor) -> ModelState:
            picked = dreams.to(frames.device)
            pose = None if poses is None else poses[picked, : end - first]
            state = self.model.initial_state(len(dreams))
            return self.model.prefill(state, frames[picked, first:end], actions[picked, first : end - 1], pose)

        return read

    def _poses(self, walks: Rollouts, rows: Tensor, first: int) -> Poses | None:
        """What the model is told of frame `first` and of all that follow, on its device."""
        poses = model_poses(self.model.config, walks.pose[rows, first:], self._conditioning)
        return None if poses is None else poses.to(self.model.device)
