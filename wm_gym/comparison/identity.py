"""Which checkpoint a dream comes from, by its content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from wm_gym.checkpoint import load_checkpoint


@dataclass(frozen=True)
class CheckpointIdentity:
    """A checkpoint that stood at `name` when it was read."""

    name: str
    digest: str  # of configuration and weights, 16 hexadecimal digits
    training_seeds: Sequence[Sequence[int]]  # inclusive ranges; empty if the checkpoint does not tell

    def trained_on(self, seeds: Sequence[int]) -> list[int]:
        """Those of `seeds` whose episodes the model has learned from."""
        return [seed for seed in seeds if any(first <= seed <= last for first, last in self.training_seeds)]


def identify(name: str | None) -> CheckpointIdentity | None:
    """The checkpoint of a packaged name, path or Hub id; None for none. Raises as `load_checkpoint`."""
    if name is None:
        return None
    checkpoint = load_checkpoint(name)
    digest = hashlib.sha256(repr(sorted(checkpoint.config.items())).encode())
    for key in sorted(checkpoint.tensors):
        tensor = checkpoint.tensors[key].contiguous().reshape(-1)
        digest.update(key.encode() + tensor.view(torch.uint8).numpy().tobytes())
    return CheckpointIdentity(name, digest.hexdigest()[:16], checkpoint.metadata.get("training_seeds", []))
