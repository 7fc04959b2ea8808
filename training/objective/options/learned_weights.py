"""Learned weights between the losses of frames, rewards and terminations: uncertainty weighting.

Kendall, Gal and Cipolla 2018 (arXiv 1705.07115): every task has a noise of its own, whose variance is learned with it,
so that a task counts less the worse it can be predicted. With s = log variance, a squared error L costs
exp(-s) L / 2 + s / 2 (their equation 5), and a classification exp(-s) L + s / 2 (equation 10).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.objective.config import LossConfig
from training.objective.metrics import Metrics, single
from training.objective.options.hooks import LossTerms, OptionContext, TrainingOption

MIN_LOG_VARIANCE = math.log(1e-3)  # a loss that falls to nothing would get all the weight there is


@dataclass(frozen=True)
class LearnedWeightsSettings:
    """Whether weights are learned; `LossConfig.reward_weight` and `.termination_weight` are where learning begins."""

    enabled: bool = False

    @property
    def is_on(self) -> bool:
        """Whether a run has the option at all."""
        return self.enabled

    def check(self, batch_sizes: set[int]) -> None:
        """Any settings can be meant."""

    def build(self, context: OptionContext) -> LearnedWeights:
        """Returns the weights of a new run. Raises ValueError for fixed weights that are not positive."""
        device = context.generator.device
        return LearnedWeights(context.loss, context.has_rewards, context.has_terminations, device)


class LearnedWeights(TrainingOption):
    """The log variances, which a run trains and keeps to itself: no checkpoint of a model has them.

    A loss of which the data has no example keeps its fixed weight: there is nothing to be uncertain of.

    Args:
        config: says with which weights of rewards and terminations, relative to frames, learning begins.
        has_rewards, has_terminations: whether the data has more than one reward, and any termination.

    Raises:
        ValueError: weights that are not positive, of which there is no logarithm.
    """

    learning_rate_factor = 10.0  # three numbers have a long way to go in a run's few steps: log(0.01) from 0

    def __init__(
        self,
        config: LossConfig,
        has_rewards: bool = True,
        has_terminations: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        weights = (config.reward_weight, config.termination_weight)
        if min(weights) <= 0:
            raise ValueError(
                "learned_weights begin with reward_weight and termination_weight, which must be above 0, got "
                f"{weights[0]} and {weights[1]}."
            )
        begin = [0.0, *(-math.log(weight / 2) for weight in weights)]
        self.log_variances = nn.Parameter(torch.tensor(begin, device=device))  # of frames, rewards, terminations
        self._fixed = torch.tensor([1.0, *weights], device=device)
        # Kept with the run: its data may have grown when it goes on.
        self._is_learned = torch.tensor([True, has_rewards, has_terminations], device=device)

    def combine_losses(self, terms: LossTerms) -> Tensor:
        """One loss of three, in which frames weigh 1: learning rates and `clip_norm` mean what they mean without."""
        learned = (-self.log_variances).exp() * self._fixed.new_tensor([0.5, 1.0, 1.0])
        scale = learned[0].detach()
        weights = torch.where(self._is_learned, learned, scale * self._fixed)
        weighed = weights * torch.stack(terms) + self._is_learned * self.log_variances / 2
        return weighed.sum() / scale

    @torch.no_grad()
    def metrics(self) -> Metrics:
        """Weights of rewards and terminations where frames weigh 1."""
        learned = 2 * (self.log_variances[:1] - self.log_variances).exp()
        _, reward, termination = torch.where(self._is_learned, learned, self._fixed)
        return {"weight/reward": single(reward), "weight/termination": single(termination)}

    @torch.no_grad()
    def after_step(self) -> None:
        """Keeps the variances above their least."""
        self.log_variances.clamp_(min=MIN_LOG_VARIANCE)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The log variances."""
        return {"log_variances": self.log_variances}

    def state_dict(self) -> dict[str, Tensor]:
        """The log variances, and which losses have examples."""
        return {"log_variances": self.log_variances.detach(), "is_learned": self._is_learned}

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from what `state_dict` returned."""
        self.log_variances.copy_(tensors["log_variances"])
        self._is_learned.copy_(tensors["is_learned"])
