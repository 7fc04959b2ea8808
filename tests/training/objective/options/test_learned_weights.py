"""Learned weights begin where the fixed ones are, end where uncertainty weighting says, and stay with the run."""

from __future__ import annotations

import math

import pytest
import torch

from training.objective.config import LossConfig
from training.objective.options.hooks import LossTerms
from training.objective.options.learned_weights import LearnedWeights

CONFIG = LossConfig(reward_weight=0.05, termination_weight=0.2)


def test_learning_begins_with_the_gradients_of_the_fixed_weights() -> None:
    losses = torch.tensor([0.3, 0.7, 0.1], requires_grad=True)
    LearnedWeights(CONFIG).combine_losses(LossTerms(*losses)).backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == pytest.approx([1.0, 0.05, 0.2])


def learned(*losses: float, has_terminations: bool = True) -> LearnedWeights:
    """The weights of losses that stay as they are."""
    weights = LearnedWeights(CONFIG, has_terminations=has_terminations)
    optimizer = torch.optim.Adam(weights.named_parameters().values(), 0.1)
    for _ in range(1000):
        optimizer.zero_grad()
        weights.combine_losses(LossTerms(*torch.tensor(losses))).backward()
        optimizer.step()
        weights.after_step()
    return weights


def relative(weights: LearnedWeights) -> list[float]:
    """Of rewards and terminations, as the log shows them."""
    metrics = weights.metrics()
    return [(metrics[name][0] / metrics[name][1]).item() for name in ("weight/reward", "weight/termination")]


def test_a_variance_becomes_its_squared_error_and_twice_its_classification_loss() -> None:
    weights = learned(0.04, 0.5, 0.02)
    assert weights.log_variances.tolist() == pytest.approx([math.log(0.04), math.log(1.0), math.log(0.04)], abs=0.05)
    assert relative(weights) == pytest.approx([0.04 / 0.5, 0.04 / 0.02], rel=0.1)


def test_frames_weigh_1_whatever_is_learned() -> None:
    losses = torch.tensor([0.04, 0.5, 0.02], requires_grad=True)
    learned(0.04, 0.5, 0.02).combine_losses(LossTerms(*losses)).backward()
    assert losses.grad is not None
    assert losses.grad[0].item() == pytest.approx(1.0)


def test_a_loss_that_is_nothing_does_not_get_all_the_weight() -> None:
    weights = learned(0.04, 0.5, 0.0)
    assert weights.log_variances[2].item() == pytest.approx(math.log(1e-3))
    assert relative(weights)[1] == pytest.approx(2 * 0.04 / 1e-3, rel=0.1)


def test_a_loss_of_which_there_is_no_example_keeps_its_weight() -> None:
    weights = learned(0.04, 0.5, 0.0, has_terminations=False)
    losses = torch.tensor([0.04, 0.5, 0.0], requires_grad=True)
    weights.combine_losses(LossTerms(*losses)).backward()
    assert losses.grad is not None
    assert losses.grad[1:].tolist() == pytest.approx([0.04 / 0.5, 0.2], rel=0.1)
    assert relative(weights) == pytest.approx(losses.grad[1:].tolist())


def test_weights_of_nothing_cannot_be_where_learning_begins() -> None:
    with pytest.raises(ValueError, match=r"must be above 0, got 0\.05 and 0\.0"):
        LearnedWeights(LossConfig(termination_weight=0.0))
