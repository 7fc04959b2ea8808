"""Training passes over parts of a segment, each of which starts from the memory that the part before it left.

Truncated backpropagation through time: a segment is run in parts of so many frames, and no gradient passes from one to
the part before. What is computed is the same as in one pass; what is learned is what helps within a part, from
states as they are in the middle of a dream.

State reconstruction: the state at the end of a part is asked for an earlier frame by its pose, without the window of
attention, so that states must keep what they were given ("regularised state propagation").
"""

from __future__ import annotations

import torch
from torch import Tensor

from wm_gym.array_typing import Actions, FrameMask, ModelFrames, NoiseLevels, Poses, RowCount
from wm_gym.nn.backbone import Output
from wm_gym.nn.config import WorldModelConfig
from wm_gym.nn.state import LayerState
from wm_gym.world_model import WorldModel


class CarriedPass:
    """Stands for a model's training pass, ``model(frames, noise_level, actions, pose)``, in `world_model_loss`.

    Args:
        model: of our own kind; a baseline's cache is no state that could be handed on.
        part_frames: of a part.
        generator: draws the frames that are asked for, and noise; on the model's device.
        reconstruct: whether states are asked for earlier frames.
        max_level: frames with a lower noise level count as known, and may be asked for.

    Raises:
        ValueError: a baseline, parts of less than one frame, or questions to a model without poses.
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
            raise ValueError("carried_frames is for our own model; set it to 0 for this baseline.")
        if part_frames < 1:
            raise ValueError(f"part_frames must be at least 1, got {part_frames}.")
        if reconstruct and not model.config.pose_size:
            raise ValueError("state_reconstruction asks for frames by their pose; the model has pose_size 0.")
        self._model, self._part_frames, self._generator = model, part_frames, generator
        self._reconstruct, self._max_level = reconstruct, max_level
        self._errors: list[Tensor] = []

    @property
    def config(self) -> WorldModelConfig:
        """The model's."""
        return self._model.config

    def reconstruction_loss(self) -> Tensor:
        """Mean squared error of the frames that states were asked for, in the passes with gradients so far."""
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
                self._ask(layers, num_cached, frames[:, : part.stop], led, pose[:, : part.stop], known)
            layers = tuple(detached(layer) for layer in layers)
        return Output(*(torch.cat(parts, dim=1) for parts in zip(*outputs, strict=True)))

    def _ask(
        self,
        layers: tuple[LayerState, ...],
        num_cached: RowCount,
        frames: ModelFrames,
        led: Actions,
        poses: Poses,
        known: FrameMask,
    ) -> None:
        """Asks for one known frame of each row, drawn uniformly; rows without any do not count."""
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


def detached(layer: LayerState) -> LayerState:
    """The same memory, through which no gradient passes."""
    place_map = None if layer.place_map is None else layer.place_map.detach()
    return LayerState(layer.ssm_state.detach(), layer.conv_state.detach(), layer.kv_cache.detach(), place_map)
