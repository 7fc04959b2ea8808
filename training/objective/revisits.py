"""Sequences that turn round: what a model has to recall, at every distance, made of any recorded frames.

The timeline is followed forth for a while, then back: frames and poses return in reverse, as in the retrieval task of
arXiv 2505.20171. No action walks backwards, so only a model that is given poses can tell where it is led.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.dataset import Batch
from wm_gym.array_typing import FrameMask


@dataclass(frozen=True)
class Turns:
    """Where the sequences of a batch turn round.

    Attributes:
        first_revisit: index of the first frame that is shown again, the newest one before the turn, int64 ``[B]``; T
            where a sequence does not turn.
        is_revisit: ``[B, T]``, frames that repeat an earlier one.
    """

    first_revisit: Tensor
    is_revisit: FrameMask


def no_turns(batch_size: int, length: int, device: torch.device) -> Turns:
    """Of sequences as they were recorded."""
    first = torch.full((batch_size,), length, device=device)
    return Turns(first, torch.zeros(batch_size, length, dtype=torch.bool, device=device))


def turn_round(batch: Batch, probability: float, generator: torch.Generator) -> tuple[Batch, Turns]:
    """Lets each sequence turn round with a probability: half of these in the middle, others up to the third quarter.

    Only a turn in the middle leads back to the oldest frames. The frame at the turn is shown twice. Actions of the way
    back are those that led the other way; its rewards and terminations mean nothing.

    Args:
        batch: of T frames, on the generator's device.
    """
    size, length = batch.frames.shape[:2]
    device = batch.frames.device
    turns, position = torch.rand(2, size, generator=generator, device=device)
    position = (2 * position - 1).clamp(min=0)
    shortest, longest = (length + 1) // 2, max(3 * length // 4, (length + 1) // 2)
    first = shortest + (position * (longest + 1 - shortest)).long().clamp(max=longest - shortest)
    first = torch.where(turns < probability, first, length)
    time = torch.arange(length, device=device)
    order = torch.where(time < first[:, None], time, 2 * first[:, None] - 1 - time)  # 0 … first - 1, first - 1, …
    crossed = torch.minimum(order[:, :-1], order[:, 1:]).clamp(max=length - 2)
    rows = torch.arange(size, device=device)[:, None]
    turned = dataclasses.replace(
        batch, frames=batch.frames[rows, order], actions=batch.actions[rows, crossed], pose=batch.pose[rows, order]
    )
    return turned, Turns(first, time >= first[:, None])
