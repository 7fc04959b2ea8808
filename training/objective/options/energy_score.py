"""One pass that samples: two draws of each frame of pure noise, scored against the real one and against each other.

The energy score (Gneiting and Raftery 2007, section 4.3) E|x - y| - E|x - x'| / 2 is a proper score: what makes it
smallest is drawing x as y is drawn. Two draws estimate it without bias, so a network that sees its noise
(`WorldModelConfig.sample_noise`) learns to sample in one pass, with neither an adversary nor a teacher (as weather
models do, arXiv 2506.10772). It is taken of patches of several sizes, of pixels and of their differences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from training.objective.metrics import Metrics, masked
from training.objective.options.hooks import OptionContext, TrainingOption
from wm_gym.array_typing import Actions, FrameMask, ModelFrames, NoiseLevels, Poses
from wm_gym.flow import expand_level
from wm_gym.nn.backbone import Output
from wm_gym.nn.map_memory import MapMemory
from wm_gym.world_model import WorldModel

_FIRST_WEIGHT = 0.02  # standard deviation of the noise embedding's weights, where they are 0
_EPSILON = 1e-6  # under roots: what is added to a mean square
_SMALL = 2  # pixels along a side of the squares that patches are made of


@dataclass(frozen=True)
class EnergyScoreSettings:
    """How frames of pure noise are scored."""

    weight: float = 0.0  # of the score, beside the squared error of the other frames; 0: no score
    fraction: float = 0.75  # of the frames of pure noise that see it; the others are predicted by their mean
    keep_writing: bool = True  # leave alone all that decides what a frame writes into the map

    @property
    def is_on(self) -> bool:
        """Whether a run has the option at all."""
        return self.weight > 0

    def check(self, batch_sizes: set[int]) -> None:
        """Raises ValueError for a weight below 0 or a fraction outside (0, 1]."""
        if self.weight < 0 or not 0 < self.fraction <= 1:
            raise ValueError(
                "options.energy_score needs a weight of at least 0 and a fraction above 0 and at most 1, got "
                f"{self.weight} and {self.fraction}."
            )

    def build(self, context: OptionContext) -> EnergyScore:
        """Returns the option of a new run. Raises ValueError for a model that does not see its noise."""
        return EnergyScore(context.model, self, context.generator)


class EnergyScore(TrainingOption):
    """Replaces the squared error of frames that see their noise.

    Args:
        model: with `sample_noise`. Weights of its noise embedding that are 0 are drawn: two equal draws have no
            gradient that would tell them apart.
        settings: of the option.
        generator: on the model's device.
    """

    def __init__(self, model: WorldModel, settings: EnergyScoreSettings, generator: torch.Generator) -> None:
        noise = model.backbone.noise
        if noise is None:
            raise ValueError("options.energy_score needs a model that sees its noise: set model.sample_noise.")
        self._settings, self._generator = settings, generator
        self._draws: _TwoDraws | None = None
        self._metrics: Metrics = {}
        for parameter in noise.parameters():
            if not parameter.any():
                drawn = torch.randn(parameter.shape, generator=generator, device=parameter.device)
                parameter.data.copy_(_FIRST_WEIGHT * drawn)
        if settings.keep_writing:
            _freeze_writing(model)

    def forward_pass(self, model: WorldModel) -> WorldModel:
        """A pass of each sequence with two draws of noise."""
        self._draws = _TwoDraws(model, self._settings.fraction, self._generator)
        return cast(WorldModel, self._draws)

    def frame_errors(self, predicted: ModelFrames, target: ModelFrames) -> NoiseLevels | None:
        """The score of frames that saw their noise, and the squared error of the others, ``[B, T]``."""
        draws = self._draws
        assert draws is not None and draws.other is not None
        other = draws.other.float()
        score, spread = energy_score(predicted.float(), other, target)
        squared = ((predicted - target).square() + (other - target).square()).mean((2, 3, 4)) / 2
        seen = draws.seen
        energy = _gradient_energy(predicted.detach()), _gradient_energy(target)
        self._metrics = {
            "energy/score": masked(score.detach(), seen),
            "energy/spread": masked(spread.detach(), seen),
            "energy/sharpness": torch.stack([(part * seen).sum() for part in energy]),
            "energy/mse_of_means": masked(squared.detach(), draws.unseen),
        }
        self._draws = None
        return torch.where(seen, self._settings.weight * score, squared)

    def metrics(self) -> Metrics:
        """Score, distance of the two draws, gradient energy over that of real frames."""
        return self._metrics


class _TwoDraws:
    """Stands for the model in the loss: runs each sequence twice, as two rows of one pass."""

    def __init__(self, model: WorldModel, fraction: float, generator: torch.Generator) -> None:
        self._model, self._fraction, self._generator = model, fraction, generator
        self.other: ModelFrames | None = None  # frames of the second draw
        self.seen: FrameMask = torch.zeros(0)  # frames that saw their noise
        self.unseen: FrameMask = torch.zeros(0)  # frames of pure noise that did not

    def __call__(self, noisy: ModelFrames, levels: NoiseLevels, actions: Actions, poses: Poses | None) -> Output:
        if not torch.is_grad_enabled():  # own frames as a context: samples
            return self._model(noisy, levels, actions, poses)
        pure = levels == 1
        chosen = torch.rand(levels.shape, generator=self._generator, device=levels.device) < self._fraction
        self.seen, self.unseen = pure & chosen, pure & ~chosen
        noise = torch.randn(noisy.shape, generator=self._generator, device=noisy.device)
        kept, seen = (expand_level(mask, noisy) for mask in (~pure, self.seen))
        first, second = noisy * (kept | seen), torch.where(kept, noisy, noise * seen)
        output = self._model(
            torch.cat([first, second]),
            torch.cat([levels, levels]),
            torch.cat([actions, actions]),
            None if poses is None else torch.cat([poses, poses]),
        )
        self.other = output.frame[len(noisy) :]
        return Output(*(part[: len(noisy)] for part in output))


def energy_score(one: ModelFrames, other: ModelFrames, target: ModelFrames) -> tuple[Tensor, Tensor]:
    """The score of two draws, and their distance from each other, each ``[B, T]``; means over patches and their sizes.

    Patches of 4, 8 and 16 pixels and the whole frame, of pixels; of 4, 8 and 16 of differences of neighbours. A
    distance is the root of a patch's mean square.
    """
    pairs = (one - target, other - target, one - other)
    to_one, to_other, apart = (_distances(difference) for difference in pairs)
    return (to_one + to_other - apart) / 2, apart


def _distances(difference: ModelFrames) -> Tensor:
    batch, length = difference.shape[:2]
    d = difference.flatten(0, 1)
    pixels = F.avg_pool2d(d.square().mean(1, keepdim=True), _SMALL)
    down, right = (F.pad(d.diff(dim=2), (0, 0, 0, 1)), F.pad(d.diff(dim=3), (0, 1)))
    edges = F.avg_pool2d((down.square() + right.square()).mean(1, keepdim=True), _SMALL)
    sums = d.new_zeros(len(d))
    sizes = [size for size in (2, 4, 8) if size <= min(pixels.shape[-2:])]
    for squares in (pixels, edges):
        for size in sizes:
            patches = F.avg_pool2d(squares, size, stride=max(size // 2, 1))
            sums = sums + (patches + _EPSILON).sqrt().mean((1, 2, 3))
    sums = sums + (pixels.mean((1, 2, 3)) + _EPSILON).sqrt()
    return (sums / (2 * len(sizes) + 1)).view(batch, length)


def _gradient_energy(frames: ModelFrames) -> Tensor:
    """Mean absolute difference of neighbouring pixels, ``[B, T]``."""
    return frames.diff(dim=-1).abs().mean((2, 3, 4)) + frames.diff(dim=-2).abs().mean((2, 3, 4))


def _freeze_writing(model: WorldModel) -> None:
    """What a frame writes into the map stays as it is, so that whatever else reads maps goes on reading them."""
    backbone, memory = model.backbone, model.backbone.map_memory
    if memory is None:
        return
    assert isinstance(memory, MapMemory)
    layers = backbone.layers[: model.config.map.layer]
    for module in (backbone.embedding, backbone.condition, layers, memory.narrow, memory.lift):
        module.requires_grad_(False)
