"""Stochastic depth on local attention: training sometimes without it, so that the past has to go through the states.

Stochastic depth (Huang et al. 2016, arXiv 1603.09382), of the branch of one layer and one sequence at a time; the
branches that stay count more, so that the mean is that of the full network, which is what dreams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.objective.options.hooks import OptionContext, TrainingOption
from wm_gym.nn.layers import Layer
from wm_gym.world_model import WorldModel

GATE_OF_ATTENTION = 5  # which ninth of a layer's modulation scales its attention branch


@dataclass(frozen=True)
class StochasticDepthSettings:
    """How often local attention is left out."""

    probability: float = 0.0  # of each layer and sequence; 0: never

    @property
    def is_on(self) -> bool:
        """Whether a run has the option at all."""
        return self.probability > 0

    def check(self, batch_sizes: set[int]) -> None:
        """Raises ValueError unless the probability is in [0, 1)."""
        if not 0 <= self.probability < 1:
            raise ValueError(
                f"options.stochastic_depth.probability must be at least 0 and below 1, got {self.probability}."
            )

    def build(self, context: OptionContext) -> StochasticDepth:
        """Returns the option of a new run. Raises ValueError for a network of other layers than ours."""
        return StochasticDepth(context.model, self.probability, context.generator)


class StochasticDepth(TrainingOption):
    """Leaves out the local attention of some layers for some rows of each batch.

    Args:
        model: of our own kind.
        probability: of leaving out.
        generator: on the model's device.

    Raises:
        ValueError: a network whose layers have no local attention beside other paths into the past.
    """

    def __init__(self, model: WorldModel, probability: float, generator: torch.Generator) -> None:
        self._layers = list(model.backbone.layers)
        if not all(isinstance(layer, Layer) for layer in self._layers):
            raise ValueError("options.stochastic_depth is for our own layers; switch it off for this baseline.")
        self._probability, self._generator = probability, generator

    def step_context(self, batch_size: int) -> AbstractContextManager[None]:
        """While this lasts, passes of `batch_size` rows are without what is drawn now.

        It must outlast the backward pass too, which may compute layers again.
        """
        return self._without_some(batch_size)

    @contextmanager
    def _without_some(self, batch_size: int) -> Iterator[None]:
        draws = torch.rand(len(self._layers), batch_size, generator=self._generator, device=self._generator.device)
        kept = draws >= self._probability
        with ExitStack() as stack:
            for layer, rows in zip(self._layers, kept, strict=True):
                modulation = layer.modulation
                assert isinstance(modulation, nn.Linear)
                handle = modulation.register_forward_hook(_scaling(rows / (1 - self._probability)))
                stack.callback(handle.remove)
            yield


def _scaling(scale: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A forward hook of a layer's modulation, which multiplies the attention branch of each row by `scale` [B]."""

    def hook(module: nn.Module, inputs: Any, modulation: Tensor) -> Tensor:
        parts = list(modulation.chunk(9, dim=-1))
        # The branch is multiplied by one plus the gate.
        factor = scale.to(modulation.dtype)[:, None, None]
        parts[GATE_OF_ATTENTION] = (1 + parts[GATE_OF_ATTENTION]) * factor - 1
        return torch.cat(parts, dim=-1)

    return hook
