"""Exponential moving average of the parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class ExponentialMovingAverage:
    """Averages of `parameters`, which start as copies of them.

    The decay warms up as ``min(decay, (1 + step) / (10 + step))``, so that the first, random weights are forgotten.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"The EMA decay must be in [0, 1), got {decay}.")
        self.decay = decay
        self.tensors = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """Moves the averages towards `parameters`, which were reached after `step` optimizer steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, targets = list(self.tensors.values()), [parameters[name] for name in self.tensors]
        torch._foreach_lerp_(averages, targets, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
