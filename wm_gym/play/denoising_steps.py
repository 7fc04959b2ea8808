"""How many network passes a dreamed frame gets where nobody says: two where this machine is quick enough, else one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

SHARP, QUICK = 2, 1  # two passes draw a sample of what may come; one predicts its mean, which is blurred
# Seconds that a step may take with two passes. It keeps 10 frames/s with a fifth of the time to spare. A key that just
# misses a step waits for the next one, so the frame that obeys it comes within 180 ms.
BUDGET = 0.08
WARM_UP_STEPS, MEASURED_STEPS = 3, 9
SEED = 0


@dataclass(frozen=True)
class Passes:
    """Network passes per dreamed frame, and why so many."""

    number: int
    step_seconds: float | None = None  # that a step with `SHARP` passes took here; None: the number was given

    def to_json(self) -> dict[str, Any]:
        """What the page shows: their number, and a sentence that gives the reason."""
        reason = f"{self.number} network pass{'' if self.number == 1 else 'es'} per frame"
        if self.step_seconds is not None:
            took = f"a step with {SHARP} takes {1000 * self.step_seconds:.0f} ms here"
            reason += f", for {took}; --denoising-steps chooses otherwise"
        return {"number": self.number, "reason": reason + "."}


def choose_passes(dream: gym.Env[Any, Any], others: Iterable[gym.Env[Any, Any]] = ()) -> Passes:
    """Measures a player's step, and says how many passes it can have.

    Args:
        dream: makes its frames with `SHARP` passes. Its episode is lost.
        others: environments that are stepped beside it; theirs too.
    """
    dream.observation_space.seed(SEED)
    frames = np.stack([dream.observation_space.sample() for _ in range(2)])
    actions = np.asarray([dream.action_space.sample()], dream.action_space.dtype)
    seconds = step_seconds(dream, {"context": (frames, actions)}) + sum(map(step_seconds, others))
    return Passes(SHARP if seconds <= BUDGET else QUICK, seconds)


def step_seconds(env: gym.Env[Any, Any], options: dict[str, Any] | None = None) -> float:
    """Median time of a step with random actions, in episodes that start with `options`."""
    env.action_space.seed(SEED)
    ended, seconds = True, []
    for _ in range(WARM_UP_STEPS + MEASURED_STEPS):
        if ended:
            env.reset(seed=SEED, options=options)
        begin = time.perf_counter()
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        seconds.append(time.perf_counter() - begin)
        ended = terminated or truncated
    return statistics.median(seconds[WARM_UP_STEPS:])
