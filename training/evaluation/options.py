"""What is measured: the protocol, what the model is told, and what of its memory it may keep."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from training.data.pose_input import Conditioning
from training.evaluation.imagination_rows import ImaginationOptions
from training.recording.frames import RecordingOptions

Memory = Literal["kept", "cleared"]
Feedback = Literal["dreamed", "real"]


@dataclass(frozen=True)
class RecallOptions:
    """Options of `training.evaluate` with a protocol."""

    protocol: Literal["retrieval", "reasoning", "imagination"] | None = None
    """retrieval: after the context the way goes back through it; reasoning: the walk goes on; imagination: it goes on
    where nobody looked, and back again (`training.evaluation.imagination`). Without a protocol, a short look: PSNR
    frame by frame, and the reward head."""
    conditioning: Conditioning = "action"
    """action: the agent really turns round (or goes on) in the simulator, and the model is given its actions; one that
    takes poses tells them itself, by its odometry. pose: the model is given the pose of every frame, and retrieval is
    the exact reverse of the context."""
    memory: tuple[Memory, ...] = ("kept", "cleared")
    """cleared: the model reads only the last frames of the context, and starts from nothing there."""
    cleared_frames: int = 0
    """How many those are; 0: what the model's local attention sees, window + 1."""
    feedback: Feedback = "dreamed"
    """dreamed: the model goes on from its own frames, as an environment does. real: every frame is predicted from the
    real frames before it, so that recall is measured without drift."""
    feedback_interval: int | None = None
    """Every how many frames a dreamed one enters memory; None: as the checkpoint says (`WorldModelConfig`)."""
    write_once: float | None = None
    """Weight in the map below which dreamed frames are written there; None: as the checkpoint says."""
    imagination: ImaginationOptions = field(default_factory=ImaginationOptions)
    refresh_steps: int = 0
    """State refresh: every so many dreamed frames the memory is made anew from the newest frames alone, as environments
    do by their refresh_steps; 0: never."""
    refresh_frames: int = 0
    """How many frames it reads then, dreamed ones and, near the beginning, those of the context; 0: refresh_steps."""
    rollouts: Path | None = None
    """Store of the real walks; what it lacks is recorded into it. None: a folder beside the JSON file."""
    recording: Annotated[RecordingOptions, tyro.conf.arg(name="")] = field(default_factory=RecordingOptions)
    """How they are recorded, as in `training.collect`. Walks of more than 1000 steps in Memory Maze 9x9 need
    --env-kwargs '{"episode_length": 4096}'."""
    workers: int = 0
    """Processes that record; 0: one for each core."""
    envs_per_worker: int = 1
    """Walks that each process records at a time; 4 to 8 on a GPU, whose rendering they share."""
    seen_distance: float = 0.5
    """A frame counts as seen if one of the context was taken within so many cells of it ..."""
    seen_angle: float = 30.0
    """... and with a heading that differs by at most so many degrees."""

    def check(self) -> None:
        """Raises ValueError for values that cannot be meant."""
        if not self.memory or len(set(self.memory)) != len(self.memory):
            raise ValueError(f"memory is {' '.join(self.memory) or 'empty'}; give kept, cleared or both, each once.")
        if self.seen_distance <= 0 or self.seen_angle <= 0:
            raise ValueError(
                f"seen_distance and seen_angle must be positive, got {self.seen_distance} and {self.seen_angle}."
            )
        if self.cleared_frames < 0:
            raise ValueError(f"cleared_frames must be at least 0, got {self.cleared_frames}.")
        if self.refresh_steps < 0 or self.refresh_frames < 0 or (self.refresh_frames and not self.refresh_steps):
            raise ValueError(
                "refresh_steps and refresh_frames must be at least 0, and refresh_frames needs refresh_steps, got "
                f"{self.refresh_steps} and {self.refresh_frames}."
            )
        if self.workers < 0 or self.envs_per_worker < 1:
            raise ValueError(
                f"workers must be at least 0 and envs_per_worker at least 1, got {self.workers} and "
                f"{self.envs_per_worker}."
            )

    def walking_policy(self, policy: str, num_context: int) -> str:
        """Name of the policy that walks context and continuation, as `training.recording.policies` takes it.

        Raises ValueError if the protocol wants the agent to turn round and the policy cannot.
        """
        if self.protocol != "retrieval" or self.conditioning == "pose" or ":" in policy:
            return policy
        if policy == "navigator":
            return f"backtrack-{max(num_context - 1, 1)}"
        if re.fullmatch(r"backtrack-\d+", policy):
            return policy
        raise ValueError(
            f"In retrieval with actions the agent turns round, which the policy {policy!r} does not; take navigator, "
            "or PACKAGE.MODULE:FUNCTION of a policy that walks back by itself."
        )

    def num_recorded(self, num_context: int, num_frames: int) -> int:
        """Real frames that a walk needs."""
        return num_context if self.goes_exactly_back else num_context + num_frames

    @property
    def goes_exactly_back(self) -> bool:
        """Whether what follows the context is the context in reverse, frame by frame."""
        return self.protocol == "retrieval" and self.conditioning == "pose"
