"""The world model: a denoiser of frames with a memory that goes in and comes out. Knows nothing of Gymnasium."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from wm_gym.array_typing import (
    Action,
    Actions,
    Frame,
    Frames,
    ModelFrame,
    ModelFrames,
    NoiseLevel,
    NoiseLevels,
    OdometryState,
    Pose,
    Poses,
)
from wm_gym.checkpoint import load_checkpoint, resolve_device
from wm_gym.codec import frames_to_model, quantize
from wm_gym.flow import draw_noise, euler_update, expand_level, feedback_level, linear_schedule
from wm_gym.nn.backbone import Backbone, Output
from wm_gym.nn.checks import check_actions, check_frames, check_model_frame, check_pose, check_weights
from wm_gym.nn.config import WorldModelConfig
from wm_gym.nn.prediction import Prediction
from wm_gym.nn.state import LayerState, ModelState, PendingFrame
from wm_gym.odometry import Odometry, make_odometry
from wm_gym.odometry.tracker import locate

__all__ = ["ModelState", "Output", "Prediction", "WorldModel", "WorldModelConfig", "feedback_level"]

_PREFILL_FRAMES = 128  # frames of context per parallel pass; bounds the memory that a long context takes


class WorldModel(nn.Module):
    """Long-context state-space video world model (arXiv 2505.20171) with reward and termination heads.

    ``action[t]`` is taken at frame t and leads to frame t + 1; frame 0 is conditioned on no action. On a GPU the
    network computes in bfloat16 with float32 weights and SSM states.
    """

    config_type: ClassVar[type[WorldModelConfig]] = WorldModelConfig
    backbone_type: ClassVar[type[Backbone]] = Backbone
    reward_values: Tensor

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_type(config)
        self.odometry: Odometry | None = make_odometry(config)
        self.register_buffer("reward_values", torch.tensor(config.reward_values), persistent=False)

    @classmethod
    def from_checkpoint(cls, name_or_path: str, device: torch.device | str = "cpu") -> WorldModel:
        """Load a trained model: a packaged name, a path, or a Hugging Face Hub id. Weights are frozen.

        Raises:
            FileNotFoundError: if there is no such checkpoint.
            ValueError: if the file is damaged, foreign or does not fit its configuration, or the device is not there.
        """
        target = resolve_device(device)
        checkpoint = load_checkpoint(name_or_path)
        return cls.from_weights(checkpoint.config, checkpoint.tensors, target, name=str(name_or_path))

    @classmethod
    def from_weights(
        cls,
        config: dict[str, Any],
        tensors: dict[str, Tensor],
        device: torch.device | str = "cpu",
        name: str = "checkpoint",
    ) -> WorldModel:
        """Build from a checkpoint's configuration and tensors; raises ValueError if the two do not fit."""
        model = cls(cls.config_type.from_dict(config))
        check_weights(model.state_dict(), tensors, name)
        model.load_state_dict({key: value.float() for key, value in tensors.items()})
        return model.to(device).eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.reward_values.device

    def forward(
        self, frames: ModelFrames, noise_level: NoiseLevels, actions: Actions, pose: Poses | None = None
    ) -> Output:
        """Training pass: predict the clean version of every frame of a segment from it and the frames before it.

        Args:
            frames: ``[B, T, C, H, W]``, each frame at its own noise level.
            noise_level: ``[B, T]`` in [0, 1].
            actions: ``[B, T - 1]`` or ``[B, T - 1, A]``; ``actions[:, t]`` leads from frame t to frame t + 1.
            pose: ``[B, T, P]`` if the configuration has a pose; None gives none.

        Returns:
            Clean frames and event logits; index t + 1 speaks of the transition from t to t + 1.
        """
        batch, length = frames.shape[:2]
        check_actions(self.config, actions, batch, length - 1)
        led = torch.cat([actions.new_zeros(batch, 1, *actions.shape[2:]), actions], dim=1)
        has_action = (torch.arange(length, device=frames.device) > 0).expand(batch, -1)
        check_pose(self.config, pose, (batch, length))
        return self.backbone(frames, noise_level, led, has_action, pose)[0]

    def initial_state(self, batch_size: int) -> ModelState:
        """A memory in which nothing has been seen yet, for ``batch_size`` dreams."""
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        layers = self.backbone.initial_layers(batch_size, self.device, dtype)
        return ModelState(layers, torch.zeros(batch_size, dtype=torch.int64, device=self.device))

    def prefill(self, state: ModelState, frames: Frames, actions: Actions, pose: Poses | None = None) -> ModelState:
        """Read real frames into memory, in parallel; may be called again with the frames that follow.

        Args:
            frames: uint8 ``[B, T, H, W, C]``.
            actions: the actions between the frames: T - 1 of them for an empty state; T for a state that has seen
                frames (the first leads from its newest frame to ``frames[:, 0]``).
            pose: poses of the frames, if the model is conditioned on poses. None to a model with odometry lets it
                predict them itself, relative to the first frame that it reads.

        Raises:
            TypeError, ValueError: if frames, actions or poses do not fit the model or each other.
        """
        return self.prefill_and_locate(state, frames, actions, pose)[0]

    def prefill_and_locate(
        self, state: ModelState, frames: Frames, actions: Actions, pose: Poses | None = None
    ) -> tuple[ModelState, Poses | None]:
        """`prefill`, and the poses ``[B, T, P]`` of the frames as they were given or predicted; None without poses."""
        check_frames(self.config, frames, state.batch_size)
        batch, length = frames.shape[:2]
        empty = state.pending is None
        check_actions(self.config, actions, batch, length - 1 if empty else length)
        check_pose(self.config, pose, (batch, length))
        has_action = torch.ones(batch, length, dtype=torch.bool, device=frames.device)
        if empty:
            actions = torch.cat([actions.new_zeros(batch, 1, *actions.shape[2:]), actions], dim=1)
            has_action[:, 0] = False
        located: list[Poses] = []
        for start in range(0, length, _PREFILL_FRAMES):
            part = slice(start, min(start + _PREFILL_FRAMES, length))
            clean, led = frames_to_model(frames[:, part]), actions[:, part]
            poses, odometry = locate(self.odometry, state, clean, led, None if pose is None else pose[:, part])
            dreamed = torch.zeros_like(has_action[:, part])
            state = self._append(state, PendingFrame(clean, led, has_action[:, part], dreamed, poses), odometry)
            if poses is not None:
                located.append(poses)
        return state, torch.cat(located, dim=1) if located else None

    def denoise(
        self,
        state: ModelState,
        noisy_frame: ModelFrame,
        noise_level: NoiseLevel,
        action: Action,
        pose: Pose | None = None,
    ) -> Prediction:
        """Predict the clean frame that follows the state under ``action``, from a noisy one. The state stays as it is.

        Args:
            noisy_frame: ``[B, C, H, W]`` at ``noise_level`` ``[B]``.
            action: taken at the newest frame, ``[B]`` int64 or ``[B, A]`` float.
            pose: pose of the frame to come, ``[B, P]``; None to a model with odometry, which predicts it then.
        """
        noisy = self._next_frame(state, noisy_frame, action, pose)
        return self._predict(state, noisy, noise_level, num_committed=0)[0]

    def advance(
        self,
        state: ModelState,
        frame: Frame | ModelFrame,
        action: Action,
        pose: Pose | None = None,
        dreamed: bool = False,
    ) -> ModelState:
        """Make ``frame`` the newest frame of the state; the one that was newest enters the memory.

        Args:
            frame: uint8 ``[B, H, W, C]``, or float ``[B, C, H, W]`` in [-1, 1], which is rounded to uint8 levels.
            action: the action that led to it.
            pose: its pose; None to a model with odometry, which predicts it then.
            dreamed: whether it is the model's own (`denoise`) and not a real one; see `PendingFrame`.
        """
        clean = frames_to_model(frame) if frame.dtype == torch.uint8 else quantize(frame)
        fresh = self._next_frame(state, clean, action, pose)
        if dreamed:
            fresh = dataclasses.replace(fresh, dreamed=torch.ones_like(fresh.dreamed))
        return self._append(state, fresh.with_time(), fresh.odometry)

    def step(
        self,
        state: ModelState,
        action: Action,
        noise: Generator | Sequence[Generator] | ModelFrame,
        num_denoising_steps: int = 1,
        pose: Pose | None = None,
    ) -> tuple[Prediction, ModelState]:
        """Imagine one frame and take it into the state: ``denoise`` from noise, then ``advance``.

        The first pass runs the state's newest frame, which enters memory, together with the noise of the next frame,
        which only reads it; so one denoising step costs one pass.

        Args:
            action: taken at the newest frame, ``[B]`` int64 or ``[B, A]`` float.
            noise: the noise that the frame is made from, ``[B, C, H, W]``, such as
                :func:`wm_gym.ops.step.frame_noise` gives; or a generator of it, or one per row; on the model's device
                or on the CPU.
            num_denoising_steps: passes per frame.
            pose: pose of the frame to come; None to a model with odometry, which predicts it then.

        Returns:
            The prediction and the state that has it as its newest frame.
        """
        c, schedule = self.config, linear_schedule(num_denoising_steps)
        shape = (state.batch_size, c.frame_channels, c.frame_height, c.frame_width)
        noisy = self._next_frame(state, draw_noise(shape, noise).to(self.device), action, pose)
        level = noisy.frame.new_ones(state.batch_size)
        prediction, layers = self._predict(state, noisy, level, num_committed=1)
        committed = ModelState(layers, state.num_committed + 1)
        for before, now in itertools.pairwise(schedule[:-1]):
            frame = euler_update(noisy.frame, prediction.frame, before, now)
            noisy = dataclasses.replace(noisy, frame=frame)
            prediction, _ = self._predict(committed, noisy, level * now, num_committed=0)
        dreamed = torch.ones_like(noisy.dreamed)
        newest = dataclasses.replace(noisy, frame=quantize(prediction.frame), dreamed=dreamed)
        return prediction, ModelState(committed.layers, committed.num_committed, newest)

    def _next_frame(self, state: ModelState, frame: ModelFrame, action: Action, pose: Pose | None) -> PendingFrame:
        """A frame that follows the state, real as far as this says, with its pose and odometry."""
        batch = state.batch_size
        check_model_frame(self.config, frame, batch)
        if state.pending is None:
            raise ValueError("the state has seen no frame yet; call prefill with at least one real frame first.")
        check_actions(self.config, action[:, None], batch, 1)
        check_pose(self.config, pose, (batch,))
        has_action = torch.ones(batch, dtype=torch.bool, device=frame.device)
        given = None if pose is None else pose[:, None]
        poses, odometry = locate(self.odometry, state, frame[:, None], action[:, None], given)
        newest_pose = None if poses is None else poses[:, 0]
        return PendingFrame(frame, action, has_action, torch.zeros_like(has_action), newest_pose, odometry)

    def _append(self, state: ModelState, fresh: PendingFrame, odometry: OdometryState | None) -> ModelState:
        """Take in T frames, a sequence: all enter memory but the last, which becomes pending, with `odometry`."""
        state, sequence, levels = self._after_pending(state, fresh, fresh.frame.new_zeros(fresh.frame.shape[:2]))
        num_committed = sequence.frame.shape[1] - 1
        layers = state.layers
        if num_committed:
            entering = sequence.at_time(slice(0, num_committed))
            layers = self._run(state, entering, levels[:, :num_committed], num_committed)[1]
        newest = dataclasses.replace(sequence.at_time(-1), odometry=odometry)
        return ModelState(layers, state.num_committed + num_committed, newest)

    def _predict(
        self, state: ModelState, noisy: PendingFrame, level: NoiseLevel, num_committed: int
    ) -> tuple[Prediction, tuple[LayerState, ...]]:
        """Run the pending frame, if there is one, and then the noisy frame; return the prediction of the latter."""
        state, sequence, levels = self._after_pending(state, noisy.with_time(), level[:, None])
        output, layers = self._run(state, sequence, levels, num_committed)
        return Prediction.of_newest(output, self.reward_values), layers

    def _after_pending(
        self, state: ModelState, fresh: PendingFrame, levels: NoiseLevels
    ) -> tuple[ModelState, PendingFrame, NoiseLevels]:
        """The sequence of the pending frame, if there is one, and `fresh`, with the noise levels of all.

        The pending frame has the level at which it enters memory, and no pixels where memory is to keep nothing of it.
        The map of the state that is returned holds what it shows of unknown places, if it was dreamed (`write_once`).
        """
        c, pending = self.config, state.pending
        if pending is None:
            return state, fresh, levels
        if c.write_once:
            with self._autocast():
                layers = self.backbone.filled_map(pending, state.layers, state.num_committed, c.write_once)
            state = dataclasses.replace(state, layers=layers)
        level = pending.dreamed * feedback_level(state.num_committed, c.feedback_interval, self.device)
        entering = dataclasses.replace(pending, frame=pending.frame * (1 - expand_level(level, pending.frame)))
        return state, entering.with_time().followed_by(fresh), torch.cat([level[:, None], levels], dim=1)

    def _run(
        self, state: ModelState, sequence: PendingFrame, levels: NoiseLevels, num_committed: int
    ) -> tuple[Output, tuple[LayerState, ...]]:
        frames = sequence.frame, levels, sequence.action, sequence.has_action, sequence.pose
        with self._autocast():
            return self.backbone(*frames, state.layers, state.num_committed, num_committed)

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda")
