"""Learned weights begin where the fixed ones are, end where uncertainty weighting says, and stay with the run."""

from __future__ import annotations

import math

import pytest
import torch

from training.loss_weights import LearnedWeights
from training.losses import LossConfig

CONFIG = LossConfig(reward_weight=0.05, termination_weight=0.2, learned_weights=True)


def test_learning_begins_with_the_gradients_of_the_fixed_weights() -> None:
    losses = torch.tensor([0.3, 0.7, 0.1], requires_grad=True)
    LearnedWeights(CONFIG)(*losses).backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == pytest.approx([1.0, 0.05, 0.2])


def learned(*losses: float, **examples: bool) -> LearnedWeights:
    """The weights of losses that stay as they are."""
    weights = LearnedWeights(CONFIG, **examples)
    optimizer = torch.optim.Adam(weights.parameters(), 0.1)
    for _ in range(1000):
        optimizer.zero_grad()
        weights(*torch.tensor(losses)).backward()
        optimizer.step()
        weights.limit()
    return weights


def test_a_variance_becomes_its_squared_error_and_twice_its_classification_loss() -> None:
    weights = learned(0.04, 0.5, 0.02)
    assert weights.log_variances.tolist() == pytest.approx([math.log(0.04), math.log(1.0), math.log(0.04)], abs=0.05)
    reward, termination = weights.relative().values()
    assert (reward.item(), termination.item()) == pytest.approx((0.04 / 0.5, 0.04 / 0.02), rel=0.1)


def test_frames_weigh_1_whatever_is_learned() -> None:
    losses = torch.tensor([0.04, 0.5, 0.02], requires_grad=True)
    learned(0.04, 0.5, 0.02)(*losses).backward()
    assert losses.grad is not None
    assert losses.grad[0].item() == pytest.approx(1.0)


def test_a_loss_that_is_nothing_does_not_get_all_the_weight() -> None:
    weights = learned(0.04, 0.5, 0.0)
    assert weights.log_variances[2].item() == pytest.approx(math.log(1e-3))
    assert weights.relative()["weight/termination"].item() == pytest.approx(2 * 0.04 / 1e-3, rel=0.1)


def test_a_loss_of_which_there_is_no_example_keeps_its_weight() -> None:
    weights = learned(0.04, 0.5, 0.0, has_terminations=False)
    losses = torch.tensor([0.04, 0.5, 0.0], requires_grad=True)
    weights(*losses).backward()
    assert losses.grad is not None
    assert losses.grad[1:].tolist() == pytest.approx([0.04 / 0.5, 0.2], rel=0.1)
    assert [weight.item() for weight in weights.relative().values()] == pytest.approx(losses.grad[1:].tolist())


def test_weights_of_nothing_cannot_be_where_learning_begins() -> None:
    with pytest.raises(ValueError, match=r"must be above 0, got 0\.05 and 0\.0"):
        LearnedWeights(LossConfig(termination_weight=0.0))
