"""Noise levels, class weights and the loss, with models whose answers are known."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from training.data.dataset import Batch
from training.objective.diffusion_forcing import (
    ClassWeights,
    LossConfig,
    Metrics,
    class_weights,
    sample_noise_levels,
    sample_prefixes,
    world_model_loss,
)
from wm_gym.nn.backbone import Output
from wm_gym.world_model import WorldModel, WorldModelConfig

B, T = 4, 12
NEUTRAL = ClassWeights(torch.tensor([0.0, 1.0]), torch.ones(2), torch.tensor(1.0))


class KnownModel(nn.Module):
    """Answers with its parameters, whatever it is shown, and remembers what that was."""

    def __init__(self) -> None:
        super().__init__()
        self.config = WorldModelConfig.plain(frame_height=8, frame_width=8, block_sizes=(1,))
        self.frames = nn.Parameter(torch.full((B, T, 3, 8, 8), 0.5))
        self.reward_logits = nn.Parameter(torch.zeros(2))
        self.termination_logit = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, frames: Tensor, noise_level: Tensor, actions: Tensor, pose: Tensor | None) -> Output:
        self.seen.append((frames, noise_level))
        reward_logits = self.reward_logits.expand(*noise_level.shape, 2)
        return Output(self.frames, reward_logits, self.termination_logit.expand(noise_level.shape))


def make_batch(rewards: Tensor | None = None, terminations: Tensor | None = None) -> Batch:
    return Batch(
        frames=torch.randint(0, 256, (B, T, 8, 8, 3), dtype=torch.uint8, generator=seeded(5)),
        actions=torch.zeros(B, T - 1, dtype=torch.int64),
        rewards=torch.zeros(B, T - 1) if rewards is None else rewards,
        terminations=torch.zeros(B, T - 1, dtype=torch.bool) if terminations is None else terminations,
        pose=torch.zeros(B, T, 4),
    )


def loss_of(
    model: KnownModel,
    batch: Batch,
    config: LossConfig,
    generator: torch.Generator,
    weights: ClassWeights,
    self_context: float = 0.0,
) -> tuple[Tensor, Metrics]:
    return world_model_loss(cast(WorldModel, model), batch, config, generator, weights, self_context)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_half_of_the_sequences_begin_with_a_clean_prefix_longer_than_half() -> None:
    levels = sample_noise_levels(4000, 11, LossConfig(clean_fraction=0.0, pure_noise_fraction=1.0), seeded())
    lengths = (levels == 0).sum(1)
    with_prefix = lengths > 0
    assert abs(with_prefix.float().mean() - 0.5) < 0.03
    assert sorted(lengths[with_prefix].unique().tolist()) == [6, 7, 8, 9, 10]
    assert (levels.diff(dim=1) >= 0).all(), "a prefix is at the beginning and has no holes"


def test_levels_are_a_mixture_of_near_clean_pure_noise_and_uniform() -> None:
    config = LossConfig(clean_fraction=0.3, clean_level=0.05, pure_noise_fraction=0.5, prefix_probability=0.0)
    levels = sample_noise_levels(1000, 50, config, seeded())
    assert abs((levels == 1).float().mean() - 0.5) < 0.01
    assert abs((levels < 0.05).float().mean() - (0.3 + 0.2 * 0.05)) < 0.01
    middle = levels[(levels > 0.05) & (levels < 1)]
    assert abs(middle.mean() - 0.525) < 0.01
    assert levels.min() >= 0
    assert levels.max() <= 1


def test_prefixes_end_where_they_are_told_to_and_leave_a_frame() -> None:
    config = LossConfig(prefix_probability=1.0, shortest_prefix=0.3, longest_prefix=0.7)
    assert sorted(sample_prefixes(2000, 11, config, seeded()).unique().tolist()) == [4, 5, 6, 7]
    assert sample_prefixes(50, 2, config, seeded()).unique().tolist() == [1]


def test_levels_of_two_frames_are_independent_outside_prefixes() -> None:
    levels = sample_noise_levels(20000, 2, LossConfig(prefix_probability=0.0), seeded())
    assert abs(torch.corrcoef(levels.T)[0, 1]) < 0.03


def test_only_noisy_frames_have_a_frame_loss() -> None:
    model = KnownModel()
    loss, _ = loss_of(model, make_batch(), LossConfig(), seeded(), NEUTRAL)
    loss.backward()
    (_, levels), gradient = model.seen[0], model.frames.grad
    assert gradient is not None
    has_gradient = gradient.abs().sum((2, 3, 4)) > 0
    assert torch.equal(has_gradient, levels > 0.1)
    assert has_gradient.any()


def test_input_is_the_frame_at_level_0_and_noise_at_level_1() -> None:
    model, batch = KnownModel(), make_batch()
    loss_of(model, batch, LossConfig(), seeded(), NEUTRAL)
    inputs, levels = model.seen[0]
    real = batch.frames.movedim(-1, 2) / 127.5 - 1
    torch.testing.assert_close(inputs[levels == 0], real[levels == 0])
    noise = inputs[levels == 1]
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert abs(torch.corrcoef(torch.stack([noise.flatten(), real[levels == 1].flatten()]))[0, 1]) < 0.05


def test_psnr_metric_is_that_of_frames_in_minus_one_to_one() -> None:
    model, batch = KnownModel(), make_batch()
    real = batch.frames.movedim(-1, 2) / 127.5 - 1
    model.frames.data = real + 0.02  # 40 dB below the range of 2
    _, metrics = loss_of(model, batch, LossConfig(), seeded(), NEUTRAL)
    total, count = metrics["psnr/from_noise"].tolist()
    assert total / count == pytest.approx(40.0, abs=1e-2)
    assert count == (model.seen[0][1] == 1).sum()


def test_rare_classes_weigh_the_square_root_of_their_rarity_up_to_a_limit() -> None:
    rewards = torch.tensor([0.0] * 900 + [1.0] * 100)
    terminations = torch.zeros(100_000, dtype=torch.bool)
    terminations[0] = True
    weights = class_weights(rewards, terminations, (0.0, 1.0), LossConfig(max_class_weight=10.0))
    assert weights.reward.tolist() == pytest.approx([1.0, 3.0])
    assert weights.termination == 10.0


def test_a_class_without_examples_weighs_1() -> None:
    weights = class_weights(torch.zeros(10), torch.zeros(10, dtype=torch.bool), (0.0, 1.0), LossConfig())
    assert weights.reward.tolist() == [1.0, 1.0]
    assert weights.termination == 1.0


def test_an_unknown_reward_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match=r"rewards 0\.5, which are not among the model's reward_values \(0\.0, 1\.0\)"):
        class_weights(torch.tensor([0.0, 0.5]), torch.tensor([False, False]), (0.0, 1.0), LossConfig())


def test_weighted_heads_end_at_the_odds_of_the_data_times_rare_class_odds() -> None:
    rewards = torch.zeros(B, T - 1)
    rewards[:, 3] = 1.0  # 4 of 44
    terminations = rewards == 1
    config = LossConfig(rare_class_odds=1.5)
    batch, model = make_batch(rewards, terminations), KnownModel()
    weights = class_weights(rewards, terminations, (0.0, 1.0), config)
    heads = [model.reward_logits, model.termination_logit]
    optimizer = torch.optim.LBFGS(heads, lr=1.0, max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss, _ = loss_of(model, batch, config, seeded(), weights)
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = math.log(1.5 * 4 / 40)
    assert (model.reward_logits[1] - model.reward_logits[0]).item() == pytest.approx(expected, abs=0.01)
    assert model.termination_logit.item() == pytest.approx(expected, abs=0.01)


def test_precision_and_recall_count_frames_of_pure_noise() -> None:
    rewards = torch.zeros(B, T - 1)
    rewards[0] = 1.0
    model = KnownModel()
    model.reward_logits.data = torch.tensor([0.0, 1.0])  # always says 1
    _, metrics = loss_of(model, make_batch(rewards), LossConfig(), seeded(), NEUTRAL)
    is_noise = model.seen[0][1][:, 1:] == 1
    assert metrics["reward/precision"].tolist() == [is_noise[0].sum(), is_noise.sum()]
    assert metrics["reward/recall"].tolist() == [is_noise[0].sum(), is_noise[0].sum()]


def test_self_context_shows_own_frames_as_clean_context_only() -> None:
    model, batch, config = KnownModel(), make_batch(), LossConfig(clean_level=0.0)
    loss, _ = loss_of(model, batch, config, seeded(3), NEUTRAL, self_context=1.0)
    (_, first_levels), (inputs, levels) = model.seen
    real = batch.frames.movedim(-1, 2) / 127.5 - 1
    own = (inputs == 0.5).all(-1).all(-1).all(-1)
    assert torch.equal(own, (first_levels == 1) & (levels == 0))
    assert own.any()
    untouched = (levels == 0) & ~own
    torch.testing.assert_close(inputs[untouched], real[untouched])
    loss.backward()
    assert model.frames.grad is not None
    assert (model.frames.grad.abs().sum((2, 3, 4))[levels == 0] == 0).all()


def test_self_context_never_changes_the_target() -> None:
    model, batch = KnownModel(), make_batch()
    model.frames.data = batch.frames.movedim(-1, 2) / 127.5 - 1
    _, metrics = loss_of(model, batch, LossConfig(), seeded(), NEUTRAL, self_context=1.0)
    assert float(metrics["mse"][0]) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"clean_fraction": 0.8},
        {"prefix_probability": 1.5},
        {"clean_level": 0.2},
        {"min_frame_level": 1.0},
        {"shortest_prefix": 0.6, "longest_prefix": 0.6},
        {"longest_prefix": 1.1},
    ],
)
def test_impossible_noise_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        LossConfig(**wrong)
