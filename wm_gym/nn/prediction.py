"""One imagined frame, as it leaves the world model."""

from __future__ import annotations

from typing import NamedTuple, Self

from torch import Tensor

from wm_gym.array_typing import ModelFrame
from wm_gym.nn.backbone import Output


class Prediction(NamedTuple):
    """One imagined frame for each of B dreams.

    Attributes:
        frame: ``[B, C, H, W]`` in [-1, 1].
        reward: the most probable of ``config.reward_values``, ``[B]``.
        termination: probability that the episode ended, ``[B]``.
        reward_logits: ``[B, R]``.
        termination_logits: ``[B]``.
    """

    frame: ModelFrame
    reward: Tensor
    termination: Tensor
    reward_logits: Tensor
    termination_logits: Tensor

    @classmethod
    def of_newest(cls, output: Output, reward_values: Tensor) -> Self:
        """What the network predicts of the last of T frames; ``reward_values`` ``[R]`` are those of the logits."""
        frame, rewards, terminations = (part[:, -1] for part in output)
        return cls(frame, reward_values[rewards.argmax(-1)], terminations.sigmoid(), rewards, terminations)
