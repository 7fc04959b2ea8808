"""Memory replay: segments of the last steps, drawn again, those with the highest loss most often.

Prioritized replay (Schaul et al. 2016, arXiv 1511.05952, equation 1) of segments in place of transitions, by the frame
loss that each had when it was last seen. Their importance weights are left out: hard segments are meant to count more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from training.dataset import Batch
from training.loader import BatchLoader
from training.windows import Windows

PRIORITY_EXPONENT = 0.6  # theirs: 0 draws uniformly, 1 in proportion to the loss
MIN_LOSS = 1e-6  # a segment without any is drawn, too


class Origin(NamedTuple):
    """Where the segments of a batch come from.

    Attributes:
        slots: those that were drawn again, the first R of the batch, int64 ``[R]``.
        fresh: those that follow.
    """

    slots: Tensor
    fresh: Windows


class SegmentReplay:
    """Remembers the newest segments of one process by where they lie in the data, and draws from them.

    All of it stays on the device, so that nothing waits for losses; only a streamed dataset has to.

    Args:
        num_segments: how many are remembered, at least a batch.
        fraction: of a batch that is drawn again.
        device: where losses are.
    """

    def __init__(self, num_segments: int, fraction: float, device: torch.device) -> None:
        self._fraction = fraction
        self._seeds = torch.zeros(num_segments, dtype=torch.int64, device=device)
        self._starts = torch.zeros_like(self._seeds)
        self._losses = torch.zeros(num_segments, device=device)
        self._num_added = 0
        self._length = 0  # of the segments that are remembered

    def batch(
        self, loader: BatchLoader, step: int, batch_size: int, length: int, generator: torch.Generator
    ) -> tuple[Batch, Origin]:
        """The batch of a step, of `loader` and of what is remembered; `learned` is to be told what became of it.

        Segments of another length are forgotten.

        Args:
            generator: on the device; draws what is seen again.
        """
        if length != self._length:
            self._num_added, self._length = 0, length
        num_again = round(self._fraction * batch_size) if self._num_added else 0
        fresh = loader.windows(step, batch_size - num_again, length)
        batch = loader.batch(step, batch_size - num_again, length)
        device = self._losses.device
        fresh = Windows(fresh.seeds.to(device), fresh.starts.to(device))
        slots = torch.zeros(0, dtype=torch.int64, device=device)
        if num_again:
            slots = self._drawn(num_again, generator)
            again = loader.read(Windows(self._seeds[slots], self._starts[slots]), length)
            batch = Batch(**{name: torch.cat([getattr(again, name), new]) for name, new in vars(batch).items()})
        return batch, Origin(slots, fresh)

    def _drawn(self, num_again: int, generator: torch.Generator) -> Tensor:
        """Slots, none of them twice, each with a probability in proportion to its loss to the power of the exponent.

        What `torch.multinomial` does without replacement, but for its checks, which wait for the device.
        """
        filled = torch.arange(len(self._losses), device=self._losses.device) < self._num_added
        priorities = self._losses.clamp(min=MIN_LOSS).pow(PRIORITY_EXPONENT) * filled
        waits = torch.empty_like(priorities).exponential_(generator=generator)
        return (priorities / waits).topk(num_again).indices

    def learned(self, origin: Origin, losses: Tensor) -> None:
        """Remembers the segments of a batch with their losses, ``[B]``."""
        losses = losses.detach().float().nan_to_num(nan=0.0)  # the run is about to end; drawing must not fail before
        num_again, num_fresh = len(origin.slots), len(origin.fresh.seeds)
        self._losses[origin.slots] = losses[:num_again]
        places = (self._num_added + torch.arange(num_fresh, device=losses.device)) % len(self._losses)
        self._seeds[places], self._starts[places] = origin.fresh.seeds, origin.fresh.starts
        self._losses[places] = losses[num_again:]
        self._num_added += num_fresh

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for `load`."""
        counts = torch.tensor([self._num_added, self._length])
        return {"seeds": self._seeds, "starts": self._starts, "losses": self._losses, "counts": counts}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from `tensors`, of as many segments."""
        for ours, name in ((self._seeds, "seeds"), (self._starts, "starts"), (self._losses, "losses")):
            ours.copy_(tensors[name])
        self._num_added, self._length = tensors["counts"].tolist()
