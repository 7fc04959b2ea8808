"""Which rewards a dream gives, from what the reward head says."""

from __future__ import annotations

import torch


def rewards_above(threshold: float, logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The likeliest reward other than 0 where any such is more probable than `threshold`, else 0; [B].

    Args:
        threshold: 0..1.
        logits: [B, R], of the reward head.
        values: [R], which they stand for.
    """
    likely, probability = likely_rewards(logits, values)
    return likely * (probability > threshold)


def likely_rewards(logits: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest reward other than 0, [B], and how probable any such is, [B]; arguments as of `rewards_above`."""
    probabilities = logits.float().softmax(-1) * (values != 0)
    return values[probabilities.argmax(-1)], probabilities.sum(-1)
