"""Sequences cut into pieces, of which some are shown first and the others asked for: views at the edge of the known.

A dream knows places that it saw, and must continue where they end, long after it was there. In a recorded walk only the
frames right after a prefix are like that. A model that is told poses and no actions can be shown pieces in any order.
"""

from __future__ import annotations

import dataclasses

import torch

from training.data.dataset import Batch
from training.objective.revisits import Turns

_PIECES = (4, 40)  # frames of a piece, from and to
_SHOWN = (0.3, 0.8)  # share of the pieces, from and to


def scatter(batch: Batch, turns: Turns, probability: float, generator: torch.Generator) -> tuple[Batch, Turns]:
    """Reorders each sequence that does not turn round with a probability: the pieces to be shown, then the others.

    Pieces keep their order in time. Their prefix ends where the others begin. Actions, rewards and terminations of such
    a sequence mean nothing.

    Args:
        batch: of T frames, on the generator's device.
        turns: of the batch.
    """
    size, length = batch.frames.shape[:2]
    device, time = batch.frames.device, torch.arange(length, device=batch.frames.device)
    chosen, piece, share, offset = torch.rand(4, size, generator=generator, device=device)
    chosen = (chosen < probability) & (turns.first_revisit == length)
    pieces = _PIECES[0] + piece * (_PIECES[1] - _PIECES[0])
    number = ((time + offset[:, None] * pieces[:, None]) / pieces[:, None]).long()
    lots = torch.rand(size, length + 1, generator=generator, device=device).gather(1, number)
    shown = lots < (_SHOWN[0] + share * (_SHOWN[1] - _SHOWN[0]))[:, None]
    shown[:, 0], shown[:, -1] = True, False
    order = torch.where(chosen[:, None], (time + length * ~shown).argsort(1), time)
    rows = torch.arange(size, device=device)[:, None]
    scattered = dataclasses.replace(batch, frames=batch.frames[rows, order], pose=batch.pose[rows, order])
    first = torch.where(chosen, shown.sum(1), turns.first_revisit)
    return scattered, Turns(first, turns.is_revisit | chosen[:, None])
