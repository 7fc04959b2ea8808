"""Which baseline, and how large."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from wm_gym.nn.config import NO_MAP, WorldModelConfig

Architecture = Literal["causal_transformer", "sliding_transformer", "mamba2", "bidirectional"]
# Previous frames that are seen: arXiv 2505.20171, table 1, and 25 frames with the newest one, its table of Minecraft.
PAPER_WINDOWS: dict[Architecture, int] = {"sliding_transformer": 192, "bidirectional": 24}


@dataclass(frozen=True)
class BaselineConfig(WorldModelConfig):
    """A world model of another architecture.

    Of the inherited fields `block_sizes` only counts the layers, its values being unused, and `window` is that of
    the sliding and of the bidirectional transformer.

    Attributes:
        architecture: "causal_transformer" sees its own and all earlier frames, "sliding_transformer" its own and those
            of the window, "bidirectional" denoises the newest frame with all frames of the window seeing each other
            (DFoT, arXiv 2502.06764), "mamba2" has one scan over all tokens of the sequence and no attention.
        cache_frames: a KV cache of everything is allocated in steps of so many frames; a sliding one has room for so
            many beyond its window, and moves when they are used up.
    """

    architecture: Architecture = "causal_transformer"
    cache_frames: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.architecture not in get_args(Architecture):
            raise ValueError(f"architecture is {self.architecture!r}; expected one of {get_args(Architecture)}.")
        if self.cache_frames < 1:
            raise ValueError(f"cache_frames is {self.cache_frames}; expected at least 1.")

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.block_sizes)


def baseline_config(
    architecture: Architecture, num_layers: int, ours: WorldModelConfig, **changes: Any
) -> BaselineConfig:
    """The baseline beside `ours` with so many layers and the same sizes otherwise.

    Args:
        changes: fields that differ; `window` is the paper's unless it is given.
    """
    fields = {field.name: getattr(ours, field.name) for field in dataclasses.fields(WorldModelConfig)}
    fields |= {"window": PAPER_WINDOWS.get(architecture, fields["window"]), "block_sizes": (1,) * num_layers}
    fields["map"] = NO_MAP  # the map is a part of ours
    return BaselineConfig(**(fields | changes), architecture=architecture)
