"""Learned weights between the losses of frames, rewards and terminations: uncertainty weighting.

Kendall, Gal and Cipolla 2018 (arXiv 1705.07115): every task has a noise of its own, whose variance is learned with it,
so that a task counts the less the worse it can be told. With s = log variance, a squared error L costs
exp(-s) L / 2 + s / 2 (their equation 5), and a classification exp(-s) L + s / 2 (equation 10).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from training.losses import LossConfig

# A loss that falls to nothing would get all the weight there is.
MIN_LOG_VARIANCE = math.log(1e-3)
LEARNING_RATE_FACTOR = 10.0  # three numbers have a long way to go in a run's few steps: log(0.01) from 0


class LearnedWeights(nn.Module):
    """The log variances, which a run trains and keeps to itself: no checkpoint of a model has them.

    A loss of which the data has no example keeps its fixed weight: there is nothing to be uncertain of.

    Args:
        config: says with which weights of rewards and terminations, relative to frames, learning begins.
        has_rewards, has_terminations: whether the data has more than one reward, and any termination.

    Raises:
        ValueError: weights that are not positive, of which there is no logarithm.
    """

    fixed: Tensor
    is_learned: Tensor

    def __init__(self, config: LossConfig, has_rewards: bool = True, has_terminations: bool = True) -> None:
        super().__init__()
        weights = (config.reward_weight, config.termination_weight)
        if min(weights) <= 0:
            raise ValueError(
                "learned_weights begin with reward_weight and termination_weight, which must be above 0, got "
                f"{weights[0]} and {weights[1]}."
            )
        begin = [0.0, *(-math.log(weight / 2) for weight in weights)]
        self.log_variances = nn.Parameter(torch.tensor(begin))  # of frames, rewards, terminations
        self.register_buffer("fixed", torch.tensor([1.0, *weights]), persistent=False)
        # Kept with the run: its data may have grown when it goes on.
        self.register_buffer("is_learned", torch.tensor([True, has_rewards, has_terminations]))

    def forward(self, frame: Tensor, reward: Tensor, termination: Tensor) -> Tensor:
        """One loss of three, in which frames weigh 1: learning rates and `clip_norm` mean what they mean without."""
        learned = (-self.log_variances).exp() * self.fixed.new_tensor([0.5, 1.0, 1.0])
        scale = learned[0].detach()
        weights = torch.where(self.is_learned, learned, scale * self.fixed)
        terms = weights * torch.stack([frame, reward, termination]) + self.is_learned * self.log_variances / 2
        return terms.sum() / scale

    @torch.no_grad()
    def relative(self) -> dict[str, Tensor]:
        """Weights of rewards and terminations where frames weigh 1, for the log."""
        learned = 2 * (self.log_variances[:1] - self.log_variances).exp()
        _, reward, termination = torch.where(self.is_learned, learned, self.fixed)
        return {"weight/reward": reward, "weight/termination": termination}

    @torch.no_grad()
    def limit(self) -> None:
        """Keeps the variances above their least, after a step."""
        self.log_variances.clamp_(min=MIN_LOG_VARIANCE)
