"""Own frames take the place of real ones where a dream would have them, and nowhere else."""

from __future__ import annotations

import torch
from torch import Tensor

from training.objective.scheduled_sampling import continued_by_own_frames, scattered_own_frames
from wm_gym.flow import expand_level

B, T = 64, 12
FRAMES = torch.zeros(B, T, 1, 1, 1)


class Predictor:
    """Says how many passes there were, and remembers the levels and how much of what it was shown was its own."""

    def __init__(self) -> None:
        self.levels: list[Tensor] = []
        self.shown: list[Tensor] = []

    def __call__(self, frames: Tensor, levels: Tensor) -> Tensor:
        self.levels.append(levels)
        self.shown.append(torch.where(expand_level(levels == 1, frames), -1.0, frames))
        return torch.full_like(frames, float(len(self.levels)))


def _continued(probability: float, generations: int, prefixes: Tensor) -> tuple[Tensor, Predictor]:
    generator, predictor = torch.Generator().manual_seed(0), Predictor()
    levels = (torch.rand(B, T, generator=generator) < 0.5).float()
    own = continued_by_own_frames(predictor, FRAMES, levels, prefixes, probability, generations, generator)
    return own[..., 0, 0, 0], predictor


def test_scattered_own_frames_were_pure_noise_and_have_the_given_share() -> None:
    generator = torch.Generator().manual_seed(0)
    levels = (torch.rand(B, T, generator=generator) < 0.5).float()
    own = scattered_own_frames(Predictor(), FRAMES, levels, 0.5, generator)[..., 0, 0, 0]
    assert (levels[own == 1] == 1).all()
    assert abs(float(own[levels == 1].mean()) - 0.5) < 0.08


def test_a_sequence_goes_on_with_nothing_but_own_frames_after_its_prefix() -> None:
    prefixes = torch.randint(7, T, (B,), generator=torch.Generator().manual_seed(1))
    own, predictor = _continued(1.0, 1, prefixes)
    dreamed = torch.arange(T) >= prefixes[:, None]
    assert torch.equal(own, dreamed.float())
    assert torch.equal(predictor.levels[0], dreamed.float()), "predicted from the prefix alone"


def test_the_second_generation_is_predicted_from_the_prefix_and_the_first() -> None:
    prefixes = torch.full((B,), 7)
    own, predictor = _continued(1.0, 2, prefixes)
    shown = predictor.shown[1][..., 0, 0, 0]
    assert (own[:, :7] == 0).all()
    assert (shown[:, :7] == 0).all()
    asked = predictor.levels[1][:, 7:] == 1
    assert 0.4 < asked.float().mean() < 0.6
    assert torch.equal(own[:, 7:], 1.0 + asked)
    assert (shown[:, 7:][~asked] == 1).all()


def test_the_probability_counts_sequences_with_a_prefix_and_frames_of_the_others() -> None:
    own, _ = _continued(0.5, 1, torch.full((B,), 6))
    lengths = own.sum(1)
    assert set(lengths.tolist()) == {0.0, 6.0}
    assert 0.3 < (lengths > 0).float().mean() < 0.7
    scattered, _ = _continued(0.5, 1, torch.zeros(B, dtype=torch.int64))
    assert 0.18 < scattered.mean() < 0.32  # half of the frames are noise, half of these are kept
