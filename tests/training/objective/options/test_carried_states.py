"""Parts compute what one pass does, gradients end where a part begins, and states are asked for frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import PLANAR_POSE, SMALL_MAP, tiny_model
from training.baselines import baseline_config, build_model
from training.objective.options.carried_states import CarriedPass
from wm_gym.poses import relative_to_first
from wm_gym.world_model import WorldModel

B, T = 2, 11
PLANAR: dict[str, Any] = {"pose": PLANAR_POSE}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def segment() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    frames = torch.randn(B, T, 3, 16, 16, generator=seeded(1))
    level, actions = torch.rand(B, T, generator=seeded(2)), torch.randint(0, 3, (B, T - 1), generator=seeded(3))
    return frames, level, actions, relative_to_first(torch.randn(B, T, 4, generator=seeded(4)))


@pytest.mark.parametrize("part_frames", [1, 2, 4, 11, 64])
@pytest.mark.parametrize("memory", [{}, {"map": SMALL_MAP}], ids=["states", "map"])
def test_parts_compute_what_one_pass_does(part_frames: int, memory: dict[str, int]) -> None:
    model = tiny_model(**PLANAR, **memory)
    whole, parts = (one(*segment()) for one in (model, CarriedPass(model, part_frames, seeded())))
    for expected, given in zip(whole, parts, strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


def gradients(one: WorldModel | CarriedPass, frame: int) -> torch.Tensor:
    """Of what is said of a frame, by the frames: which of them it learns from, [T]."""
    frames, *rest = segment()
    frames.requires_grad_()
    one(frames, *rest).frame[:, frame].square().sum().backward()
    assert frames.grad is not None
    return frames.grad.abs().amax((0, 2, 3, 4))


def test_no_gradient_passes_from_one_part_to_the_part_before() -> None:
    model = tiny_model(**PLANAR)
    assert (gradients(model, 9) > 0).tolist() == [True] * 10 + [False]
    assert (gradients(CarriedPass(model, 4, seeded()), 9) > 0).tolist() == [False] * 8 + [True] * 2 + [False]


def reconstructed(model: WorldModel, level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of asking states for frames of level 0, and the gradient of the frames, by [T]."""
    frames, _, actions, poses = segment()
    frames.requires_grad_()
    carried = CarriedPass(model, 4, seeded(), reconstruct=True)
    carried(frames, level, actions, poses)
    loss = carried.reconstruction_loss()
    loss.backward()
    assert frames.grad is not None
    return loss.detach(), frames.grad.abs().amax((0, 2, 3, 4))


def test_states_are_asked_for_known_frames_only() -> None:
    model = tiny_model(**PLANAR)
    loss, gradient = reconstructed(model, torch.zeros(B, T))
    assert loss > 0 and (gradient > 0).all()
    assert reconstructed(model, torch.ones(B, T))[0] == 0


def test_asking_for_frames_teaches_the_state_to_keep_them() -> None:
    torch.manual_seed(0)
    model = WorldModel(tiny_model(**PLANAR, hide_noise=True, patch_size=16, block_sizes=(1,)).config)
    frames = torch.linspace(-1, 1, 8)[:, None, None, None, None].expand(8, 4, 3, 16, 16)  # each row has its own grey
    poses = torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(8, 4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(60):
        carried = CarriedPass(model, 4, seeded(step), reconstruct=True)
        carried(frames, torch.zeros(8, 4), torch.zeros(8, 3, dtype=torch.int64), poses)
        loss = carried.reconstruction_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    variance = frames.var().item()  # the error of a model that knows the mean and nothing of the row
    assert losses[-1] < variance / 4, (losses[0], variance, losses[-1])


def test_what_has_no_state_to_carry_or_no_pose_to_ask_by_is_refused() -> None:
    config = baseline_config("causal_transformer", 1, tiny_model().config)
    with pytest.raises(ValueError, match="carried_states is for our own model"):
        CarriedPass(build_model(config), 4, seeded())
    with pytest.raises(ValueError, match=r"pose\.size 0"):
        CarriedPass(tiny_model(), 4, seeded(), reconstruct=True)
    with pytest.raises(ValueError, match="at least 1"):
        CarriedPass(tiny_model(), 0, seeded())
