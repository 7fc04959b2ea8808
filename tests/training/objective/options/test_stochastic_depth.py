"""Left out attention: whole branches of single rows, none when it is over, and the same in what is computed again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_model
from training.baselines import baseline_config, build_model
from training.objective.options.stochastic_depth import StochasticDepth, StochasticDepthSettings
from wm_gym.world_model import WorldModel

B, T = 64, 6


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def passed(model: WorldModel) -> Tensor:
    """The last frames, by levels and frames of which all rows have the same."""
    frames = torch.randn(1, T, 3, 16, 16, generator=seeded()).expand(B, -1, -1, -1, -1)
    return model(frames, torch.zeros(B, T), torch.zeros(B, T - 1, dtype=torch.int64)).frame[:, -1]


def without_attention(model: WorldModel, scale: float) -> WorldModel:
    for layer in model.backbone.layers:
        layer.local_attention.out_proj.weight.data *= scale  # pyright: ignore
        if layer.local_attention.out_proj.bias is not None:  # pyright: ignore
            layer.local_attention.out_proj.bias.data *= scale  # pyright: ignore
    return model


@torch.no_grad()
def test_a_row_has_a_layers_attention_in_full_measure_or_not_at_all() -> None:
    model = tiny_model(block_sizes=(1,))
    with StochasticDepth(model, 0.25, seeded()).step_context(B):
        rows = passed(model)
    without = passed(without_attention(tiny_model(block_sizes=(1,)), 0.0))
    more = passed(without_attention(tiny_model(block_sizes=(1,)), 4 / 3))
    is_without, is_more = ((rows - other).abs().amax((1, 2, 3)) < 1e-4 for other in (without, more))
    assert (is_without ^ is_more).all()
    assert 6 <= is_without.sum() <= 26  # of 64, where 16 are expected


@torch.no_grad()
def test_layers_and_rows_are_drawn_independently() -> None:
    model = tiny_model(block_sizes=(1, 1))
    with StochasticDepth(model, 0.5, seeded()).step_context(B):
        rows = passed(model)
    assert rows.flatten(1).round(decimals=3).unique(dim=0).shape[0] == 4


@torch.no_grad()
def test_it_ends_with_its_context_and_a_probability_of_zero_switches_it_off() -> None:
    model = tiny_model()
    before = passed(model)
    assert not StochasticDepthSettings(0.0).is_on
    with pytest.raises(RuntimeError, match="boom"), StochasticDepth(model, 0.9, seeded()).step_context(B):
        raise RuntimeError("boom")
    assert torch.equal(passed(model), before)


def test_layers_that_are_computed_again_leave_out_the_same() -> None:
    gradients = []
    for checkpointed in (False, True):
        model = tiny_model().train()
        model.backbone.checkpoint_layers = checkpointed
        with StochasticDepth(model, 0.5, seeded()).step_context(B):
            passed(model).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_baseline_without_such_layers_is_refused() -> None:
    config = baseline_config("causal_transformer", 1, tiny_model().config)
    with pytest.raises(ValueError, match=r"options\.stochastic_depth is for our own layers"):
        StochasticDepth(build_model(config), 0.5, seeded())
