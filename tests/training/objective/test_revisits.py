"""Sequences that turn round show earlier frames again, with their poses, and no others."""

import dataclasses

import torch

from training.data.dataset import Batch
from training.objective.revisits import no_turns, turn_round

B, T = 64, 13


def _batch() -> Batch:
    """Frame, pose and action t of every sequence say t."""
    time = torch.arange(T).expand(B, T)
    frames = time[..., None, None, None].expand(B, T, 2, 2, 3).to(torch.uint8)
    return Batch(
        frames=frames,
        actions=time[:, :-1],
        rewards=torch.zeros(B, T - 1),
        terminations=torch.zeros(B, T - 1, dtype=torch.bool),
        pose=time[..., None].expand(B, T, 4).float(),
    )


def test_frames_and_poses_return_in_reverse_from_the_turn_on() -> None:
    batch, turns = turn_round(_batch(), 1.0, torch.Generator().manual_seed(0))
    shown = batch.frames[:, :, 0, 0, 0].long()
    for row, first in zip(shown.tolist(), turns.first_revisit.tolist(), strict=True):
        assert row == [*range(first), *range(first - 1, 2 * first - T - 1, -1)]
    assert torch.equal(batch.pose[..., 0].long(), shown)
    assert torch.equal(turns.is_revisit, torch.arange(T) >= turns.first_revisit[:, None])
    assert turns.first_revisit.unique().tolist() == [7, 8, 9], "from the middle to the third quarter"
    assert 0.45 <= (turns.first_revisit == 7).float().mean() <= 0.85, (
        "half of them in the middle, and a third of the others"
    )


def test_the_actions_of_the_way_back_are_those_that_led_the_other_way() -> None:
    batch, _ = turn_round(_batch(), 1.0, torch.Generator().manual_seed(0))
    shown = batch.frames[:, :, 0, 0, 0].long()
    moved = shown[:, 1:] != shown[:, :-1]  # the frame of the turn is shown twice
    assert torch.equal(batch.actions[moved], torch.minimum(shown[:, 1:], shown[:, :-1])[moved])


def test_the_probability_decides_how_many_turn_and_the_others_stay_as_they_are() -> None:
    recorded = _batch()
    batch, turns = turn_round(recorded, 0.5, torch.Generator().manual_seed(1))
    turned = turns.first_revisit < T
    assert 20 <= turned.sum() <= 44
    for field in dataclasses.fields(Batch):
        assert torch.equal(getattr(batch, field.name)[~turned], getattr(recorded, field.name)[~turned])
    assert not turns.is_revisit[~turned].any()


def test_nothing_turns_with_probability_0() -> None:
    batch, turns = turn_round(_batch(), 0.0, torch.Generator().manual_seed(1))
    assert torch.equal(batch.frames, _batch().frames)
    none = no_turns(B, T, torch.device("cpu"))
    assert torch.equal(turns.first_revisit, none.first_revisit)
    assert torch.equal(turns.is_revisit, none.is_revisit)
