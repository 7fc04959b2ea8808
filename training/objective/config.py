"""Settings of the training loss."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LossConfig:
    """Noise levels and weights of the loss. A dream has clean frames behind it and one pass from pure noise to the
    next frame, so most frames are drawn near these two ends."""

    clean_fraction: float = 0.4  # of the frames, with a level of U(0, clean_level)
    clean_level: float = 0.05
    pure_noise_fraction: float = 0.4  # of the frames, with level 1; the rest has U(0, 1)
    prefix_probability: float = 0.5  # of a sequence to begin with a clean prefix
    shortest_prefix: float = 0.5  # of the sequence's frames, which prefixes are longer than ...
    longest_prefix: float = 1.0  # ... and at most this long; one frame remains at least
    noise_after_prefix: float = 0.0  # of these sequences: only pure noise follows, to be predicted from memory alone
    revisit_probability: float = 0.0  # of a sequence to turn round and show its frames again; its prefix ends there
    scatter_probability: float = 0.0  # of others, to be shown in pieces (`training.objective.scattered`)
    mirror_probability: float = 0.0  # of a sequence to be seen in a mirror (`training.objective.mirror`) ...
    mirrored_actions: tuple[int, ...] = ()  # ... where each action is another one; () if the model reads no actions
    own_generations: int = 0  # passes in which a stage's self_context continues prefixes; 0: own frames among real ones
    min_frame_level: float = 0.1  # frames with a lower level are context and have no frame loss
    reward_weight: float = 0.05  # relative to the loss of frames
    termination_weight: float = 0.05
    max_class_weight: float = 10.0  # of rare rewards and of terminations; the weight is sqrt(frequency ratio) below
    rare_class_odds: float = 1.5  # factor on the odds of rare classes: 1 is calibrated, more favours recall

    def __post_init__(self) -> None:
        fractions = {
            "clean_fraction": self.clean_fraction,
            "pure_noise_fraction": self.pure_noise_fraction,
            "their sum": self.clean_fraction + self.pure_noise_fraction,
            "prefix_probability": self.prefix_probability,
            "noise_after_prefix": self.noise_after_prefix,
            "revisit_probability": self.revisit_probability,
            "scatter_probability": self.scatter_probability,
            "mirror_probability": self.mirror_probability,
        }
        if not all(0 <= fraction <= 1 for fraction in fractions.values()):
            given = ", ".join(f"{name} {value:g}" for name, value in fractions.items())
            raise ValueError(f"Fractions and probabilities of the loss must be in [0, 1], got {given}.")
        if not 0 <= self.shortest_prefix < self.longest_prefix <= 1:
            raise ValueError(
                "0 <= shortest_prefix < longest_prefix <= 1 must hold, got shortest_prefix "
                f"{self.shortest_prefix} and longest_prefix {self.longest_prefix}."
            )
        if self.own_generations < 0:
            raise ValueError(f"own_generations must be at least 0, got {self.own_generations}.")
        if not 0 <= self.clean_level <= self.min_frame_level < 1:
            raise ValueError(
                "0 <= clean_level <= min_frame_level < 1 must hold, got clean_level "
                f"{self.clean_level} and min_frame_level {self.min_frame_level}."
            )
