"""Memory replay: segments of the last steps, drawn again, those with the highest loss most often.

Prioritized replay (Schaul et al. 2016, arXiv 1511.05952, equation 1) of segments in place of transitions, by the frame
loss that each had when it was last seen. Their importance weights are left out: hard segments are meant to count more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from training.data.dataset import Batch
from training.data.loader import BatchLoader
from training.data.windows import Windows
from training.objective.options.hooks import OptionContext, TrainingOption
from wm_gym.array_typing import FrameMask, NoiseLevels

PRIORITY_EXPONENT = 0.6  # theirs: 0 draws uniformly, 1 in proportion to the loss
MIN_LOSS = 1e-6  # a segment without any is drawn, too


@dataclass(frozen=True)
class MemoryReplaySettings:
    """How much of each batch is drawn again, and from how many segments."""

    fraction: float = 0.0  # of each batch that is drawn again; 0: none
    num_segments: int = 1024  # remembered by each process

    @property
    def is_on(self) -> bool:
        """Whether a run has the option at all."""
        return self.fraction > 0

    def check(self, batch_sizes: set[int]) -> None:
        """Raises ValueError unless every batch has segments of both kinds, and as many are remembered."""
        if not 0 <= self.fraction < 1:
            raise ValueError(f"options.memory_replay.fraction must be at least 0 and below 1, got {self.fraction}.")
        for size in batch_sizes if self.is_on else ():
            if not 0 < round(self.fraction * size) < size <= self.num_segments:
                raise ValueError(
                    f"options.memory_replay.fraction {self.fraction} of a batch of {size} is "
                    f"{round(self.fraction * size)} segments, of {self.num_segments} that are remembered; it takes at "
                    "least one, some new ones beside it, and num_segments of a batch or more."
                )

    def build(self, context: OptionContext) -> MemoryReplay:
        """Returns the memory of a new run's process."""
        return MemoryReplay(self.num_segments, self.fraction, context.generator)


class Origin(NamedTuple):
    """Where the segments of a batch come from.

    Attributes:
        slots: those that were drawn again, the first R of the batch, int64 ``[R]``.
        fresh: those that follow.
    """

    slots: Tensor
    fresh: Windows


class MemoryReplay(TrainingOption):
    """Remembers the newest segments of one process by where they lie in the data, and draws from them.

    All of it stays on the device, so that nothing waits for losses; only a streamed dataset has to.

    Args:
        num_segments: how many are remembered, at least a batch.
        fraction: of a batch that is drawn again.
        generator: on the device of the losses; draws what is seen again.
    """

    def __init__(self, num_segments: int, fraction: float, generator: torch.Generator) -> None:
        self._fraction, self._generator = fraction, generator
        self._seeds = torch.zeros(num_segments, dtype=torch.int64, device=generator.device)
        self._starts = torch.zeros_like(self._seeds)
        self._losses = torch.zeros(num_segments, device=generator.device)
        self._num_added = 0
        self._length = 0  # of the segments that are remembered
        self._origin: Origin | None = None  # of the newest batch, until its losses are known

    def batch(self, loader: BatchLoader, step: int, batch_size: int, length: int) -> Batch:
        """The batch of a step: what is drawn again, then new segments of `loader`. Those of another length are
        forgotten."""
        if length != self._length:
            self._num_added, self._length = 0, length
        num_again = round(self._fraction * batch_size) if self._num_added else 0
        fresh = loader.windows(step, batch_size - num_again, length)
        batch = loader.batch(step, batch_size - num_again, length)
        device = self._losses.device
        fresh = Windows(fresh.seeds.to(device), fresh.starts.to(device))
        slots = torch.zeros(0, dtype=torch.int64, device=device)
        if num_again:
            slots = self._drawn(num_again)
            again = loader.read(Windows(self._seeds[slots], self._starts[slots]), length)
            batch = Batch(**{name: torch.cat([getattr(again, name), new]) for name, new in vars(batch).items()})
        self._origin = Origin(slots, fresh)
        return batch

    def _drawn(self, num_again: int) -> Tensor:
        """Slots, none of them twice, each with a probability in proportion to its loss to the power of the exponent.

        What `torch.multinomial` does without replacement, but for its checks, which wait for the device.
        """
        filled = torch.arange(len(self._losses), device=self._losses.device) < self._num_added
        priorities = self._losses.clamp(min=MIN_LOSS).pow(PRIORITY_EXPONENT) * filled
        waits = torch.empty_like(priorities).exponential_(generator=self._generator)
        return (priorities / waits).topk(num_again).indices

    def after_loss(self, squared_error: NoiseLevels, is_target: FrameMask) -> None:
        """Remembers the segments of the newest batch with the mean error of their target frames."""
        if self._origin is not None:
            self.remember(self._origin, (squared_error * is_target).sum(1) / is_target.sum(1).clamp(min=1))
            self._origin = None

    def remember(self, origin: Origin, losses: Tensor) -> None:
        """Remembers the segments of a batch with their losses, ``[B]``."""
        losses = losses.detach().float().nan_to_num(nan=0.0)  # the run is about to end; drawing must not fail before
        num_again, num_fresh = len(origin.slots), len(origin.fresh.seeds)
        self._losses[origin.slots] = losses[:num_again]
        places = (self._num_added + torch.arange(num_fresh, device=losses.device)) % len(self._losses)
        self._seeds[places], self._starts[places] = origin.fresh.seeds, origin.fresh.starts
        self._losses[places] = losses[num_again:]
        self._num_added += num_fresh

    def state_dict(self) -> dict[str, Tensor]:
        """The segments, their losses and how many there are."""
        counts = torch.tensor([self._num_added, self._length])
        return {"seeds": self._seeds, "starts": self._starts, "losses": self._losses, "counts": counts}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from what `state_dict` returned, of as many segments."""
        for ours, name in ((self._seeds, "seeds"), (self._starts, "starts"), (self._losses, "losses")):
            ours.copy_(tensors[name])
        self._num_added, self._length = tensors["counts"].tolist()
