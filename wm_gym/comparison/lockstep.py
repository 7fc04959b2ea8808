"""Both sides take the same actions, step by step, from the same context."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from wm_gym.comparison.record import Record, map_entries
from wm_gym.comparison.sides import Outcome, Side
from wm_gym.contexts import Context
from wm_gym.policies.base import Policy


def run_batch(
    env: Side,
    reference: Side,
    policies: Sequence[Policy],
    seeds: Sequence[int],
    num_context_frames: int,
    num_steps: int,
    clips: Sequence[Context] | None,
    on_step: Callable[[int], Any] = lambda count: None,
) -> list[Record]:
    """Plays one episode for each seed.

    The reference is reset with the seed and a policy leads it through the context; a dream then starts from these
    frames and actions, while an environment that takes no context was reset with the same seed and took the same
    actions all along. From there on each action goes to both. The policies see the reference only.

    Args:
        env, reference: the side under test, and the one that it is held against.
        policies: one for each seed.
        seeds: at most as many as the sides have rows.
        num_context_frames: C, from 1 on.
        num_steps: S, from 1 on; a row stops earlier if one of its episodes ends.
        clips: contexts of C frames, needed if the reference is a dream itself: then both start from them.
        on_step: called with the number of rows after each step of the reference.

    Raises:
        ValueError: a policy gives an illegal action, or an episode ends within the context.
    """
    rows = [_Row(seed, policy, reference) for seed, policy in zip(seeds, policies, strict=True)]
    if reference.takes_context:
        assert clips is not None
        for row, clip, outcome in zip(rows, clips, reference.start(seeds, clips), strict=True):
            row.begin_from(clip, outcome)
    else:
        for row, outcome in zip(rows, reference.start(seeds, None), strict=True):
            row.begin(outcome)
    if not env.takes_context:
        env.start(seeds, None)
    while len(rows[0].frames) < num_context_frames:
        actions = [row.act() for row in rows]
        active = [True] * len(rows)
        outcomes = reference.step(actions, active)
        if not env.takes_context:
            _check_goes_on(env.name, env.step(actions, active), seeds, num_context_frames)
        _check_goes_on(reference.name, outcomes, seeds, num_context_frames)
        for row, outcome in zip(rows, outcomes, strict=True):
            row.follow(outcome)
        on_step(len(rows))
    if env.takes_context:
        env.start(seeds, [row.context() for row in rows])
    _step_both(env, reference, rows, num_steps, on_step)
    return [row.record(num_context_frames) for row in rows]


def _step_both(env: Side, reference: Side, rows: Sequence[_Row], num_steps: int, on_step: Callable[[int], Any]) -> None:
    for _ in range(num_steps):
        active = [row.goes_on for row in rows]
        if not any(active):
            return
        actions = [row.act() if row.goes_on else row.actions[-1] for row in rows]
        start = time.perf_counter()
        real = reference.step(actions, active)
        middle = time.perf_counter()
        dreamed = env.step(actions, active)
        end = time.perf_counter()
        for row, there, here in zip(rows, real, dreamed, strict=True):
            if there is not None and here is not None:
                row.follow_both(there, here)
                row.reference_seconds += (middle - start) / sum(active)
                row.seconds += (end - middle) / sum(active)
        on_step(len(rows))


def _check_goes_on(name: str, outcomes: Sequence[Outcome | None], seeds: Sequence[int], num_frames: int) -> None:
    for seed, outcome in zip(seeds, outcomes, strict=True):
        if outcome is not None and outcome.end:
            raise ValueError(
                f"The episode of seed {seed} in {name} ended within the {num_frames} frames of context: take fewer."
            )


class _Row:
    """One episode as it grows."""

    def __init__(self, seed: int, policy: Policy, reference: Side) -> None:
        self.seed = seed
        self._policy = policy
        self._reference = reference
        self.actions: list[Any] = []
        self.frames: list[np.ndarray] = []  # of the reference, context included
        self.dreamed: list[np.ndarray] = []
        self._rewards: list[float] = []
        self._reference_rewards: list[float] = []
        self._infos: list[dict[str, Any]] = []
        self._end = self._reference_end = ""
        self.seconds = self.reference_seconds = 0.0

    @property
    def goes_on(self) -> bool:
        return not (self._end or self._reference_end)

    def begin(self, outcome: Outcome) -> None:
        self.frames, self._infos, self._now = [outcome.frame], [outcome.info], outcome
        self._policy.reset(outcome.info)

    def begin_from(self, clip: Context, outcome: Outcome) -> None:
        self.begin(outcome)
        self.frames, self.actions = list(clip.frames), list(clip.actions)

    def act(self) -> Any:
        action = self._policy(self._now.frame, self._now.info)
        space = self._reference.env.action_space
        if isinstance(space, gym.spaces.Box) and np.asarray(action).dtype.kind in "iuf":
            action = np.asarray(action, space.dtype)
        if not space.contains(action):
            raise ValueError(
                f"The policy gave the action {action!r} at frame {len(self.frames) - 1} of the episode of seed "
                f"{self.seed}, which is not in {space}."
            )
        self.actions.append(action)
        return action

    def follow(self, outcome: Outcome | None) -> None:
        assert outcome is not None
        self._now = outcome
        self.frames.append(outcome.frame)
        self._infos.append(outcome.info)

    def follow_both(self, real: Outcome, dreamed: Outcome) -> None:
        self.follow(real)
        self.dreamed.append(dreamed.frame)
        self._reference_rewards.append(real.reward)
        self._rewards.append(dreamed.reward)
        self._reference_end, self._end = real.end, dreamed.end

    def context(self) -> Context:
        return Context(np.stack(self.frames), self._actions())

    def _actions(self) -> np.ndarray:
        space = self._reference.env.action_space
        return np.array(self.actions, space.dtype).reshape(len(self.actions), *(space.shape or ()))

    def record(self, num_context_frames: int) -> Record:
        assert len(self.frames) == num_context_frames + len(self.dreamed)
        return Record(
            seed=self.seed,
            reference_frames=np.stack(self.frames),
            frames=np.stack(self.dreamed),
            actions=self._actions(),
            reference_rewards=np.array(self._reference_rewards, np.float64),
            rewards=np.array(self._rewards, np.float64),
            reference_end=self._reference_end,
            end=self._end,
            seconds=self.seconds,
            reference_seconds=self.reference_seconds,
            map=map_entries(self._infos) if len(self._infos) == len(self.frames) else {},
        )
