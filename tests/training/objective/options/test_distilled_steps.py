"""One pass learns what several make of the same noise; all else of the run stays."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import PLANAR_POSE, SMALL_MAP, tiny_model
from training.objective.config import LossConfig
from training.objective.options.distilled_steps import DistilledSteps, DistilledStepsSettings, patch_distance
from training.objective.options.hooks import OptionContext
from wm_gym.flow import euler_update
from wm_gym.world_model import WorldModel

SETTINGS = DistilledStepsSettings(denoising_steps=2, fraction=0.5)
B, T = 2, 6


def sampler() -> WorldModel:
    return tiny_model(pose=PLANAR_POSE, map=SMALL_MAP, hide_noise=True, feedback_interval=0, sample_noise=True)


def option(model: WorldModel, settings: DistilledStepsSettings = SETTINGS) -> DistilledSteps:
    return settings.build(OptionContext(model, torch.Generator().manual_seed(0), LossConfig(), False, False))


def segment() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    levels = torch.ones(B, T)
    levels[:, :2] = 0.0
    noisy, pose = torch.randn(B, T, 3, 16, 16, generator=g), torch.randn(B, T, 4, generator=g)
    return noisy, levels, torch.zeros(B, T - 1, dtype=torch.int64), pose


def test_the_target_is_what_the_teacher_makes_of_the_same_noise_in_two_steps() -> None:
    model = sampler()
    distilled = option(model)
    noisy, levels, actions, pose = segment()
    distilled.forward_pass(model)(noisy, levels, actions, pose)
    found = distilled._pass
    assert found is not None and found.target is not None and found.seen.any() and not found.seen[levels == 0].any()
    seen = found.seen[..., None, None, None]
    with torch.no_grad():
        blank = torch.where((levels == 1)[..., None, None, None], 0.0, noisy)
        mean = model(blank, levels, actions, pose).frame
        halfway = torch.where(seen, euler_update(noisy, mean, 1.0, 0.5), blank)
        expected = model(halfway, torch.where(found.seen, 0.5, levels), actions, pose).frame.clamp(-1, 1)
    torch.testing.assert_close(found.target * seen, expected * seen)


def test_errors_have_gradients_and_frames_that_see_no_noise_their_squared_error() -> None:
    model = sampler()
    distilled = option(model)
    noisy, levels, actions, pose = segment()
    output, target = distilled.forward_pass(model)(noisy, levels, actions, pose), torch.rand_like(noisy)
    assert distilled._pass is not None
    seen = distilled._pass.seen
    errors = distilled.frame_errors(output.frame, target)
    assert errors is not None
    squared = (output.frame - target).square().mean((2, 3, 4))
    torch.testing.assert_close(errors[~seen], squared[~seen])
    errors[seen].sum().backward()
    assert model.backbone.noise is not None and model.backbone.noise.proj.weight.grad is not None
    assert model.backbone.noise.proj.weight.grad.abs().sum() > 0
    assert float(distilled.metrics()["distilled/distance"][1]) == float(seen.sum())


def test_the_teacher_stays_while_the_model_learns_and_is_kept_in_checkpoints() -> None:
    model = sampler()
    distilled = option(model)
    kept = {name: tensor.clone() for name, tensor in distilled.state_dict().items()}
    with torch.no_grad():
        model.backbone.frame_head.proj.weight += 1
    other = option(model)
    other.load_state_dict(kept)
    for name, tensor in distilled.state_dict().items():
        assert torch.equal(tensor, kept[name]) and torch.equal(other.state_dict()[name], kept[name])


def test_what_a_frame_writes_into_the_map_is_left_alone() -> None:
    model = sampler()
    option(model)
    memory = model.backbone.map_memory
    assert memory is not None
    assert not any(p.requires_grad for p in [*memory.lift.parameters(), *model.backbone.layers[0].parameters()])
    assert all(p.requires_grad for p in [*memory.out.parameters(), *model.backbone.layers[1].parameters()])


def test_an_embedding_of_zeros_begins_as_the_noise_is_seen_halfway() -> None:
    model = sampler()
    assert model.backbone.noise is not None
    torch.nn.init.zeros_(model.backbone.noise.proj.weight)
    option(model)
    torch.testing.assert_close(model.backbone.noise.proj.weight, model.backbone.embedding.proj.weight / 4)


def test_the_distance_prefers_one_of_two_answers_to_their_mean() -> None:
    one, other = torch.ones(1, 1, 3, 16, 16), -torch.ones(1, 1, 3, 16, 16)
    of_mean = patch_distance(torch.zeros_like(one), one) + patch_distance(torch.zeros_like(one), other)
    of_one = patch_distance(one, one) + patch_distance(one, other)
    assert of_one <= of_mean + 0.01
    assert patch_distance(one, one) < 2e-3


@pytest.mark.parametrize("changes", [{"fraction": 0.0}, {"weight": 0.0}, {"denoising_steps": 1}])
def test_settings_that_cannot_be_meant_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at least two denoising_steps"):
        DistilledStepsSettings(**{"denoising_steps": 2, **changes}).check({1})  # pyright: ignore[reportArgumentType]


def test_a_model_that_does_not_see_its_noise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"set model\.sample_noise"):
        option(tiny_model())
