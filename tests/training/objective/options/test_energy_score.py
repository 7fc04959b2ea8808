"""The energy score is proper, keeps two draws apart, and leaves alone what writes the map."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import PLANAR_POSE, SMALL_MAP, tiny_model
from training.objective.config import LossConfig
from training.objective.options.energy_score import EnergyScore, EnergyScoreSettings, energy_score
from training.objective.options.hooks import OptionContext
from wm_gym.world_model import WorldModel

ON = EnergyScoreSettings(weight=0.1, fraction=0.5)
B, T = 2, 6


def sampler() -> WorldModel:
    return tiny_model(pose=PLANAR_POSE, map=SMALL_MAP, hide_noise=True, feedback_interval=0, sample_noise=True)


def option(model: WorldModel) -> EnergyScore:
    return ON.build(OptionContext(model, torch.Generator().manual_seed(0), LossConfig(), False, False))


def worlds(generator: torch.Generator, count: int) -> torch.Tensor:
    """Frames of one grey or another: [1, count, 3, 16, 16]."""
    grey = torch.rand(1, count, 1, 1, 1, generator=generator).round() * 2 - 1
    return (grey + 0.05 * torch.randn(1, count, 3, 16, 16, generator=generator)).clamp(-1, 1)


def test_drawing_as_the_world_does_scores_better_than_the_mean_and_than_one_sharp_answer() -> None:
    g = torch.Generator().manual_seed(0)
    target, one, other = (worlds(g, 400) for _ in range(3))
    mean, sharp = torch.zeros_like(target), torch.ones_like(target)
    drawn = energy_score(one, other, target)[0].mean()
    assert drawn < energy_score(mean, mean, target)[0].mean() - 0.1
    assert drawn < energy_score(sharp, sharp, target)[0].mean() - 0.1


def test_a_blurred_draw_scores_worse_than_a_sharp_one() -> None:
    g = torch.Generator().manual_seed(1)
    stripes = [torch.rand(1, 300, 1, 1, 16, generator=g).round().expand(1, 300, 3, 16, 16) * 2 - 1 for _ in range(3)]
    blurred = [(each + each.roll(1, -1) + each.roll(-1, -1)) / 3 for each in stripes]
    sharp_score, blurred_score = (
        energy_score(draws[0], draws[1], stripes[2])[0].mean() for draws in (stripes, blurred)
    )
    assert sharp_score < blurred_score


def test_two_draws_of_each_sequence_are_scored_and_the_rest_has_its_squared_error() -> None:
    model, g = sampler(), torch.Generator().manual_seed(2)
    energy = option(model)
    levels = torch.ones(B, T)
    levels[:, :2] = 0.0
    noisy, target = torch.randn(B, T, 3, 16, 16, generator=g), torch.randn(B, T, 3, 16, 16, generator=g)
    pose = torch.randn(B, T, 4, generator=g)
    output = energy.forward_pass(model)(noisy, levels, torch.zeros(B, T - 1, dtype=torch.int64), pose)
    draws = energy._draws
    assert draws is not None and draws.other is not None
    assert output.frame.shape == target.shape and output.reward_logits.shape[0] == B
    seen, unseen = draws.seen, draws.unseen
    assert torch.equal(seen | unseen, levels == 1) and seen.any() and unseen.any()
    first_seen = int(seen[0].nonzero()[0])
    assert not torch.allclose(output.frame[0, first_seen], draws.other[0, first_seen], atol=1e-3)
    errors = energy.frame_errors(output.frame, target)
    assert errors is not None and errors.shape == (B, T)
    errors.sum().backward()
    assert model.backbone.noise is not None and model.backbone.noise.of_tokens.weight.grad is not None
    metrics = energy.metrics()
    assert metrics["energy/score"][1] == seen.sum()


def test_what_a_frame_writes_into_the_map_is_left_alone() -> None:
    model = sampler()
    option(model)
    memory = model.backbone.map_memory
    assert memory is not None
    assert not any(p.requires_grad for p in [*memory.lift.parameters(), *model.backbone.layers[0].parameters()])
    assert all(p.requires_grad for p in [*memory.out.parameters(), *model.backbone.layers[1].parameters()])


def test_noise_weights_that_are_zero_are_drawn() -> None:
    model = sampler()
    assert model.backbone.noise is not None
    torch.nn.init.zeros_(model.backbone.noise.of_tokens.weight)
    option(model)
    assert float(model.backbone.noise.of_tokens.weight.std()) == pytest.approx(0.02, rel=0.1)


def test_a_model_that_does_not_see_its_noise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"set model\.sample_noise"):
        option(tiny_model())
    with pytest.raises(ValueError, match="fraction above 0"):
        EnergyScoreSettings(weight=1.0, fraction=0.0).check(set())
