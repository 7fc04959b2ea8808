"""Ways of dreaming that are compared: what a dreamed frame leaves in memory, and passes a frame."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from training.evaluation.frame_reader import PACKAGED

KNOWN_FROM = 0.2  # weight in the map from which on a place counts as known


@dataclass(frozen=True)
class ImaginationOptions:
    """Options of the protocol imagination."""

    rows: tuple[str, ...] = ()
    """Ways of dreaming as FEEDBACK:STEPS. FEEDBACK: none (no dreamed frame enters memory), all, once (written once
    where the map knows nothing) or onceW (…, where its weight is below W); STEPS: denoising steps. Without any: as the
    checkpoint was made, by --num-denoising-steps."""
    reader: Path = PACKAGED
    """The network that reads frames (`training.evaluation.frame_reader`)."""


@dataclass(frozen=True)
class Row:
    """One way of dreaming.

    Attributes:
        name: as given.
        feedback_interval, write_once: of the model's configuration.
        num_denoising_steps: passes a frame.
    """

    name: str
    feedback_interval: int
    write_once: float
    num_denoising_steps: int


def parse_row(text: str) -> Row:
    """Raises ValueError for what is no row (`ImaginationOptions.rows`)."""
    match = re.fullmatch(r"(none|all|once(\d*\.?\d+)?):([1-9]\d*)", text)
    if match is None:
        raise ValueError(
            f"A row is given as FEEDBACK:STEPS, FEEDBACK none, all, once or onceW, such as once0.2:4, got {text!r}."
        )
    weight = float(match[2] or KNOWN_FROM) if match[1].startswith("once") else 0.0
    return Row(text, int(match[1] == "all"), weight, int(match[3]))
