"""Several denoising steps in one: a frame of pure noise is to be what more passes make of the same noise.

The model as it was when the run began is the teacher (knowledge distillation of a sampler, arXiv 2101.02388). Some
frames of pure noise see it (`WorldModelConfig.sample_noise`) and are compared with what the teacher makes of it in
several steps; all others are trained as without the option, so that what memory knows stays known.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from training.objective.metrics import Metrics, masked
from training.objective.options.hooks import OptionContext, TrainingOption
from wm_gym.array_typing import Actions, FrameMask, ModelFrames, NoiseLevels, Poses
from wm_gym.flow import euler_update, expand_level, linear_schedule
from wm_gym.nn.backbone import Output
from wm_gym.world_model import WorldModel

_SEEN_SHARE = 0.25  # of the noise in what the network sees at level 1/2: noise embeddings of zeros begin with it
_EPSILON = 1e-6  # added to mean squares under roots
_SMALL = 2  # pixels along a side of the squares that patches are made of


@dataclass(frozen=True)
class DistilledStepsSettings:
    """How many steps become one, and for which frames."""

    denoising_steps: int = 0  # of the teacher; 0: no teacher
    fraction: float = 0.3  # of the frames of pure noise that see it
    weight: float = 0.5  # of the distance to the teacher, beside the squared error of the other frames
    keep_writing: bool = True  # leave alone all that decides what a frame writes into the map

    @property
    def is_on(self) -> bool:
        """Whether a run has the option at all."""
        return self.denoising_steps > 0

    def check(self, batch_sizes: set[int]) -> None:
        """Raises ValueError for a single step, a fraction outside (0, 1] or a weight that is not positive."""
        if self.is_on and (self.denoising_steps < 2 or not 0 < self.fraction <= 1 or self.weight <= 0):
            raise ValueError(
                "options.distilled_steps needs at least two denoising_steps, a fraction above 0 and at most 1 and a "
                f"weight above 0, got {self.denoising_steps}, {self.fraction} and {self.weight}."
            )

    def build(self, context: OptionContext) -> DistilledSteps:
        """Returns the option of a new run. Raises ValueError for a model that does not see its noise."""
        return DistilledSteps(context.model, self, context.generator)


class DistilledSteps(TrainingOption):
    """Compares some frames of pure noise with what a teacher makes of the same noise.

    Args:
        model: with `sample_noise`, as the run begins. A noise embedding of zeros becomes what the patch embedding makes
            of noise at level 1/2, for there the network knows what to do with it.
        settings: of the option.
        generator: on the model's device.
    """

    def __init__(self, model: WorldModel, settings: DistilledStepsSettings, generator: torch.Generator) -> None:
        noise = model.backbone.noise
        if noise is None:
            raise ValueError("options.distilled_steps needs a model that sees its noise: set model.sample_noise.")
        self._settings, self._generator = settings, generator
        with torch.no_grad():
            if not noise.proj.weight.any():
                noise.proj.weight.copy_(_SEEN_SHARE * model.backbone.embedding.proj.weight)
        self._teacher = type(model)(model.config).to(model.device)
        self._teacher.load_state_dict(model.state_dict())
        self._teacher.requires_grad_(False)
        self._pass: _Distilled | None = None
        self._metrics: Metrics = {}
        if settings.keep_writing:
            _freeze_writing(model)

    def forward_pass(self, model: WorldModel) -> WorldModel:
        """A pass of the model beside those of the teacher."""
        self._pass = _Distilled(model, self._teacher, self._settings, self._generator)
        return cast(WorldModel, self._pass)

    def frame_errors(self, predicted: ModelFrames, target: ModelFrames) -> NoiseLevels | None:
        """The distance to the teacher where noise was seen, and the squared error of the others, ``[B, T]``."""
        assert self._pass is not None and self._pass.target is not None
        seen, taught = self._pass.seen, self._pass.target
        distance = patch_distance(predicted.float(), taught)
        squared = (predicted.float() - target).square().mean((2, 3, 4))
        energies = [gradient_energy(frames.detach()) for frames in (predicted, taught, target)]
        self._metrics = {
            "distilled/distance": masked(distance.detach(), seen),
            "distilled/sharpness": torch.stack([(energies[0] * seen).sum(), (energies[2] * seen).sum()]),
            "distilled/teacher_sharpness": torch.stack([(energies[1] * seen).sum(), (energies[2] * seen).sum()]),
        }
        self._pass = None
        return torch.where(seen, self._settings.weight * distance, squared)

    def metrics(self) -> Metrics:
        """Distance to the teacher; gradient energy of both over that of real frames."""
        return self._metrics

    def state_dict(self) -> dict[str, Tensor]:
        """The teacher: a run that goes on has the one that it began with."""
        return {f"teacher.{name}": tensor for name, tensor in self._teacher.state_dict().items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        self._teacher.load_state_dict({name.removeprefix("teacher."): tensor for name, tensor in tensors.items()})


class _Distilled:
    """Stands for the model in the loss: chooses frames that see their noise, and asks the teacher about them."""

    def __init__(
        self, model: WorldModel, teacher: WorldModel, settings: DistilledStepsSettings, generator: torch.Generator
    ) -> None:
        self._model, self._teacher, self._settings, self._generator = model, teacher, settings, generator
        self.seen: FrameMask = torch.zeros(0)
        self.target: ModelFrames | None = None

    def __call__(self, noisy: ModelFrames, levels: NoiseLevels, actions: Actions, poses: Poses | None) -> Output:
        if not torch.is_grad_enabled():  # own frames as a context
            return self._model(noisy, levels, actions, poses)
        pure = levels == 1
        chosen = torch.rand(levels.shape, generator=self._generator, device=levels.device) < self._settings.fraction
        self.seen = pure & chosen
        blank = noisy * expand_level(~pure, noisy)
        self.target = self._taught(noisy, blank, levels, actions, poses)
        return self._model(torch.where(expand_level(self.seen, noisy), noisy, blank), levels, actions, poses)

    @torch.no_grad()
    def _taught(
        self, noisy: ModelFrames, blank: ModelFrames, levels: NoiseLevels, actions: Actions, poses: Poses | None
    ) -> ModelFrames:
        """What the teacher makes of the noise of the frames that see it; the others stay pure noise to it."""
        seen = expand_level(self.seen, noisy)
        clean = self._teacher(blank, levels, actions, poses).frame.float()
        for before, now in itertools.pairwise(linear_schedule(self._settings.denoising_steps)[:-1]):
            noisy = euler_update(noisy, clean, before, now)
            shown = torch.where(seen, noisy, blank)
            clean = self._teacher(shown, torch.where(self.seen, now, levels), actions, poses).frame.float()
        return clean.clamp(-1, 1)


def patch_distance(one: ModelFrames, other: ModelFrames) -> Tensor:
    """Distance of frames, ``[B, T]``: the mean over patches, and over their sizes, of roots of mean squares.

    Patches of 4, 8 and 16 pixels and the whole frame, of pixels; of 4, 8 and 16 of differences of neighbours. Unlike a
    squared error it does not prefer the mean of two answers to either.
    """
    batch, length = one.shape[:2]
    d = (one - other).flatten(0, 1)
    pixels = F.avg_pool2d(d.square().mean(1, keepdim=True), _SMALL)
    down, right = F.pad(d.diff(dim=2), (0, 0, 0, 1)), F.pad(d.diff(dim=3), (0, 1))
    edges = F.avg_pool2d((down.square() + right.square()).mean(1, keepdim=True), _SMALL)
    total = (pixels.mean((1, 2, 3)) + _EPSILON).sqrt()
    sizes = [size for size in (2, 4, 8) if size <= min(pixels.shape[-2:])]
    for squares, size in itertools.product((pixels, edges), sizes):
        patches = F.avg_pool2d(squares, size, stride=max(size // 2, 1))
        total = total + (patches + _EPSILON).sqrt().mean((1, 2, 3))
    return (total / (2 * len(sizes) + 1)).view(batch, length)


def gradient_energy(frames: ModelFrames) -> Tensor:
    """Mean absolute difference of neighbouring pixels, ``[B, T]``."""
    return frames.diff(dim=-1).abs().mean((2, 3, 4)) + frames.diff(dim=-2).abs().mean((2, 3, 4))


def _freeze_writing(model: WorldModel) -> None:
    """What a frame writes into the map stays as it is, so that whatever else reads maps goes on reading them."""
    backbone, memory = model.backbone, model.backbone.map_memory
    if memory is None:
        return
    layers = backbone.layers[: model.config.map.layer]
    for module in (backbone.embedding, backbone.condition, layers, memory.narrow, memory.lift):
        module.requires_grad_(False)
