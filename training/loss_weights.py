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

# A loss that falls to nothing, such as that of terminations that never come, would get all the weight there is.
MIN_LOG_VARIANCE = math.log(1e-3)
LEARNING_RATE_FACTOR = 10.0  # three numbers have a long way to go in a run's few steps: log(0.01) from 0


class LearnedWeights(nn.Module):
    """The log variances, which a run trains and keeps to itself: no checkpoint of a model has them.

    Args:
        config: says with which weights of rewards and terminations, relative to frames, learning begins.

    Raises:
        ValueError: weights that are not positive, of which there is no logarithm.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        weights = (config.reward_weight, config.termination_weight)
        if min(weights) <= 0:
            raise ValueError(
                "learned_weights begin with reward_weight and termination_weight, which must be above 0, got "
                f"{weights[0]} and {weights[1]}."
            )
        begin = [0.0, *(-math.log(weight / 2) for weight in weights)]
        self.log_variances = nn.Parameter(torch.tensor(begin))  # of frames, rewards, terminations

    def forward(self, frame: Tensor, reward: Tensor, termination: Tensor) -> Tensor:
        """One loss of three, in which frames weigh 1: learning rates and `clip_norm` mean what they mean without."""
        frame_weight, *others = (-self.log_variances).exp() * self.log_variances.new_tensor([0.5, 1.0, 1.0])
        total = frame_weight * frame + others[0] * reward + others[1] * termination + self.log_variances.sum() / 2
        return total / frame_weight.detach()

    @torch.no_grad()
    def relative(self) -> dict[str, Tensor]:
        """Weights of rewards and terminations where frames weigh 1, for the log."""
        reward, termination = 2 * (self.log_variances[0] - self.log_variances[1:]).exp()
        return {"weight/reward": reward, "weight/termination": termination}

    @torch.no_grad()
    def limit(self) -> None:
        """Keeps the variances above their least, after a step."""
        self.log_variances.clamp_(min=MIN_LOG_VARIANCE)
