"""Training passes over parts of a segment, each of which starts from the memory that the part before it left.

Truncated backpropagation through time: a segment is run in parts of so many frames, and no gradient passes from one to
the part before. What is computed is the same as in one pass; what is learned is what helps within a part, from
states as they are in the middle of a dream.

State reconstruction: the state at the end of a part has to predict an earlier frame by its pose, without the window of
attention, so that states must keep what they were given ("regularised state propagation").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from training.objective.metrics import Metrics, single
from training.objective.options.hooks import OptionContext, TrainingOption
from wm_gym.array_typing import Actions, FrameMask, ModelFrames, NoiseLevels, Poses, RowCount
from wm_gym.nn.backbone import Output
from wm_gym.nn.config import WorldModelConfig
from wm_gym.nn.state import LayerState
from wm_gym.world_model import WorldModel


@dataclass(frozen=True)
class CarriedStatesSettings:
    """How segments are cut into parts, and what the states at their ends have to predict."""

    part_frames: int = 0  # frames of a part, such as 64; 0: segments are not cut
    reconstruction_weight: float = 0.0  # of predicting an earlier frame from the state after each part

    @property
    def is_on(self) -> bool:
        """Whether a run has the option at all."""
        return self.part_frames > 0

    def check(self, batch_sizes: set[int]) -> None:
        """Raises ValueError for negative numbers, and for reconstruction without parts."""
        if self.part_frames < 0 or self.reconstruction_weight < 0:
            raise ValueError(
                "options.carried_states.part_frames and .reconstruction_weight must not be negative, got "
                f"{self.part_frames} and {self.reconstruction_weight}."
            )
        if self.reconstruction_weight > 0 and not self.is_on:
            raise ValueError(
                "options.carried_states.reconstruction_weight reads states at the end of parts; set .part_frames, such "
                "as to 64."
            )

    def build(self, context: OptionContext) -> CarriedStates:
        """Returns the option of a new run. Raises ValueError as `CarriedPass`."""
        return CarriedStates(context.model, self, context.generator, context.loss.min_frame_level)


class CarriedStates(TrainingOption):
    """Replaces the forward pass of each step by a `CarriedPass`, whose arguments these are."""

    def __init__(
        self, model: WorldModel, settings: CarriedStatesSettings, generator: torch.Generator, max_level: float
    ) -> None:
        self._weight = settings.reconstruction_weight
        self._arguments = settings.part_frames, generator, self._weight > 0, max_level
        self._pass = CarriedPass(model, *self._arguments)

    def forward_pass(self, model: WorldModel) -> WorldModel:
        """A pass over parts, for one step."""
        self._pass = CarriedPass(model, *self._arguments)
        return cast(WorldModel, self._pass)

    def further_loss(self) -> tuple[Tensor, Metrics] | None:
        """The error of reconstruction by its weight, and the error itself as a metric."""
        if self._weight == 0:
            return None
        error = self._pass.reconstruction_loss()
        return self._weight * error, {"state_reconstruction": single(error)}


class CarriedPass:
    """Stands for a model's training pass, ``model(frames, noise_level, actions, pose)``, in `world_model_loss`.

    Args:
        model: of our own kind; a baseline's cache is no state that could be handed on.
        part_frames: of a part.
        generator: draws the frames to reconstruct, and noise; on the model's device.
        reconstruct: whether states have to predict earlier frames.
        max_level: frames with a lower noise level count as known, and may have to be predicted.

    Raises:
        ValueError: a baseline, parts of less than one frame, or reconstruction by a model without poses.
    """

    def __init__(
        self,
        model: WorldModel,
        part_frames: int,
        generator: torch.Generator,
        reconstruct: bool = False,
        max_level: float = 0.1,
    ) -> None:
        if type(model) is not WorldModel:
            raise ValueError("options.carried_states is for our own model; set its part_frames to 0 for this baseline.")
        if part_frames < 1:
            raise ValueError(f"part_frames must be at least 1, got {part_frames}.")
        if reconstruct and not model.config.has_poses:
            raise ValueError("State reconstruction reads states by the pose of a frame; the model has pose.size 0.")
        self._model, self._part_frames, self._generator = model, part_frames, generator
        self._reconstruct, self._max_level = reconstruct, max_level
        self._errors: list[Tensor] = []

    @property
    def config(self) -> WorldModelConfig:
        """The model's."""
        return self._model.config

    def reconstruction_loss(self) -> Tensor:
        """Mean squared error of the frames that states had to predict, in the passes with gradients so far."""
        return torch.stack(self._errors).mean()

    def __call__(
        self, frames: ModelFrames, noise_level: NoiseLevels, actions: Actions, pose: Poses | None = None
    ) -> Output:
        """As `WorldModel.forward`."""
        model, (batch, length) = self._model, frames.shape[:2]
        led = torch.cat([actions.new_zeros(batch, 1, *actions.shape[2:]), actions], dim=1)
        has_action = (torch.arange(length, device=frames.device) > 0).expand(batch, -1)
        dtype = torch.bfloat16 if frames.is_cuda else frames.dtype
        layers = model.backbone.initial_layers(batch, frames.device, dtype)
        num_cached = torch.zeros(batch, dtype=torch.int64, device=frames.device)
        outputs: list[Output] = []
        for start in range(0, length, self._part_frames):
            part = slice(start, min(start + self._part_frames, length))
            num_frames = part.stop - start
            output, layers = model.backbone(
                frames[:, part],
                noise_level[:, part],
                led[:, part],
                has_action[:, part],
                None if pose is None else pose[:, part],
                layers,
                num_cached,
                num_frames,
            )
            outputs.append(output)
            num_cached = num_cached + num_frames
            if self._reconstruct and pose is not None and torch.is_grad_enabled():
                known = noise_level[:, : part.stop] < self._max_level
                self._reconstruct_one(layers, num_cached, frames[:, : part.stop], led, pose[:, : part.stop], known)
            layers = tuple(_detached(layer) for layer in layers)
        return Output(*(torch.cat(parts, dim=1) for parts in zip(*outputs, strict=True)))

    def _reconstruct_one(
        self,
        layers: tuple[LayerState, ...],
        num_cached: RowCount,
        frames: ModelFrames,
        led: Actions,
        poses: Poses,
        known: FrameMask,
    ) -> None:
        """Notes the error of predicting one known frame of each row, drawn uniformly; rows without any do not count."""
        draws = torch.rand(known.shape, generator=self._generator, device=known.device)
        chosen = torch.where(known, draws, -1.0).argmax(1, keepdim=True)
        rows = torch.arange(len(known), device=known.device)[:, None]
        target, pose = frames[rows, chosen], poses[rows, chosen]
        noise = torch.randn(target.shape, generator=self._generator, device=known.device)
        output, _ = self._model.backbone(
            noise,
            torch.ones_like(chosen, dtype=noise.dtype),
            led[:, :1],
            torch.zeros_like(chosen, dtype=torch.bool),
            pose,
            layers,
            torch.zeros_like(num_cached),  # as if the window of attention were empty: only the states answer
            0,
        )
        error = (output.frame.float() - target).square().mean((1, 2, 3, 4))
        has_known = known.any(1)
        self._errors.append((error * has_known).sum() / has_known.sum().clamp(min=1))


def _detached(layer: LayerState) -> LayerState:
    """The same memory, through which no gradient passes."""
    place_map = None if layer.place_map is None else layer.place_map.detach()
    return LayerState(layer.ssm_state.detach(), layer.conv_state.detach(), layer.kv_cache.detach(), place_map)
