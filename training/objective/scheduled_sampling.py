"""The model's own frames as the context that it is trained on, for a dream has no other (scheduled sampling)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wm_gym.array_typing import FrameMask, ModelFrames, NoiseLevels
from wm_gym.flow import expand_level

Predict = Callable[[ModelFrames, NoiseLevels], ModelFrames]
"""Makes frames noisy to the levels and predicts the clean ones."""


def scattered_own_frames(
    predict: Predict, frames: ModelFrames, levels: NoiseLevels, probability: float, generator: torch.Generator
) -> ModelFrames:
    """`frames`, of which some are replaced by what the model predicts for them from pure noise, among real ones."""
    predicted = predict(frames, levels)
    chosen = torch.rand(levels.shape, generator=generator, device=levels.device) < probability
    return torch.where(expand_level((levels == 1) & chosen, frames), predicted, frames)


def continued_by_own_frames(
    predict: Predict,
    frames: ModelFrames,
    levels: NoiseLevels,
    prefixes: Tensor,
    probability: float,
    generations: int,
    generator: torch.Generator,
) -> ModelFrames:
    """`frames`, where sequences with a prefix may go on with nothing but own frames, like a dream after its context.

    All frames after the prefix are predicted from it at once; for each further generation a random half of them is
    predicted again, from the prefix and the other half. So errors add up as they do in a dream, at the cost of a pass
    for each generation rather than for each frame.

    Args:
        prefixes: length of each sequence's clean prefix, int64 ``[B]``, 0 for none; sequences without one get
            `scattered_own_frames`.
        probability: of a sequence, or of a frame of those without a prefix.
        generations: passes, at least 1.
    """
    goes_on = (torch.rand(prefixes.shape, generator=generator, device=prefixes.device) < probability) & (prefixes > 0)
    dreamed = after(prefixes, frames.shape[1]) & goes_on[:, None]
    without = torch.where((prefixes > 0)[:, None], 0.0, levels)
    own = scattered_own_frames(predict, frames, torch.where(dreamed, 1.0, without), 1.0, generator)
    # Sequences without a prefix: a frame is kept with the complement of the probability.
    kept = torch.rand(levels.shape, generator=generator, device=levels.device) >= probability
    own = torch.where(expand_level(kept & ~dreamed, frames), frames, own)
    for _ in range(generations - 1):
        asked = dreamed & (torch.rand(levels.shape, generator=generator, device=levels.device) < 0.5)
        predicted = predict(own, torch.where(dreamed, asked.float(), without))
        own = torch.where(expand_level(asked, frames), predicted, own)
    return own


def after(prefixes: Tensor, length: int) -> FrameMask:
    """Frames after the prefix, ``[B, T]``; all of them where there is none."""
    return torch.arange(length, device=prefixes.device) >= prefixes[:, None]
