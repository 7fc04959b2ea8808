"""What one player does: a dream, the real environment beside it, moments to come back to, an agent, a recording.

Plain synchronous code, used by one thread at a time. What takes long is an iterator that yields after each part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from wm_gym.comparison.metrics import psnr
from wm_gym.play.world import Memento, World
from wm_gym.policies.base import Navigator, Policy, RandomPolicy
from wm_gym.seeds import FIRST_EVALUATION_SEED

MAX_MOMENTS = 12  # each holds the memory of a dream: 32 MB for the packaged model
END_OF_SEEDS = 2**32


@dataclass(frozen=True)
class Moment:
    """What `Session.go_back` returns to."""

    mementos: tuple[Memento, ...]  # of main and, if there is one, of real
    path: tuple[list[float], ...]
    context_path_points: int
    real_total_before: float


@dataclass(frozen=True)
class Picture:
    """What there is to show after a part of the work."""

    phase: str  # "context" (the real environment is walked), "return" (on the way to a moment) or "play"
    views: dict[str, np.ndarray]  # uint8 [H, W, C] by label
    worlds: dict[str, dict[str, Any]]  # reward, total and steps by label
    progress: tuple[int, int] | None  # frames of the context so far, and in all
    action: int | None  # that led here, if it is a number
    by_agent: bool
    psnr: float | None  # dB, of the dream against the real environment
    pose: list[float] | None
    target: dict[str, Any] | None  # what is to be found now: {"index": int, "color": [r, g, b] in [0, 1] or None}
    ended: str | None
    env_seconds: float  # inside the environments' own code


class Session:
    """A player's worlds.

    Args:
        main: what is played: a dream, or any environment.
        real: runs beside it under the same actions, and gives it the context from which it starts; None: alone.
        policy: may choose the actions; made by `load_policy` for `main`.
        make_recorders: gives a recorder for each of the worlds, in that order; None: there is no recording.
        context_frames: real frames before the dream begins, with `real`.
    """

    def __init__(
        self,
        main: World,
        real: World | None = None,
        policy: Policy | None = None,
        make_recorders: Callable[[], list[Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]]] | None = None,
        context_frames: int = 100,
    ) -> None:
        self.main = main
        self.real = real
        self.policy = policy
        self.moments: dict[int, Moment] = {}
        self.agent_acts = policy is not None
        self.recording = False
        self.path: list[list[float]] = []  # (grid_x, grid_y) of every frame, the context's first
        self.context_path_points = 0
        self._make_recorders = make_recorders
        self._context_frames = context_frames
        self._random = np.random.default_rng()
        self._num_moments = 0
        self._real_total_before = 0.0

    @property
    def worlds(self) -> list[World]:
        """The worlds that are played side by side: the dream, and reality if it is shown."""
        return [self.main] if self.real is None else [self.main, self.real]

    @property
    def ended(self) -> str | None:
        """Why no step can be taken; None while one can."""
        return next((f"{world.label}: {world.ended}" for world in self.worlds if world.ended), None)

    @property
    def seed(self) -> int:
        """Seed of the episode."""
        return self.worlds[-1].seed

    def start(self, seed: int | None = None) -> Iterator[Picture]:
        """Starts an episode and yields a picture for each frame of the context, then the first of the dream.

        Without a seed one is drawn: a held-out one, so that the real environment shows what no model was trained on, or
        one for training while recording.
        """
        seed = self._draw_seed() if seed is None else seed
        self.path = []
        for world in self.worlds:
            world.ended = "not started"
        context = None
        if self.real is not None:
            frames = []
            for picture in self._walk(self.real, seed):
                frames.append(self.real.obs)
                yield picture
            context = np.stack(frames), np.asarray(self.real.actions, self.real.action_space.dtype)
            self._real_total_before = self.real.total
        self.context_path_points = len(self.path)
        self.main.reset(seed, context)
        if self.policy is not None:
            self.policy.reset(self._info())
        if self.real is None:
            self._note_pose()
        yield self._picture("play", env_seconds=self.main.step_seconds)

    def step(self, action: Any) -> Picture:
        """Takes an action in all worlds; while the agent acts, `action` is None and the agent's is taken.

        Raises ValueError if the episode has ended or the action is not in the action space.
        """
        by_agent = action is None
        if action is None:
            assert self.policy is not None
            action = self.policy(self.main.obs, self._info())
        elif not self.main.action_space.contains(action):
            raise ValueError(f"The action {action!r} is not in {self.main.action_space}.")
        for world in self.worlds:
            world.step(action)
        self._note_pose()
        return self._picture("play", action, by_agent, sum(world.step_seconds for world in self.worlds))

    def remember(self) -> int:
        """Keeps this moment and returns its number. Raises ValueError if there are `MAX_MOMENTS` already."""
        if self.main.seed < 0:
            raise ValueError("There is no episode yet of which a moment could be remembered.")
        if len(self.moments) >= MAX_MOMENTS:
            raise ValueError(f"{MAX_MOMENTS} moments are kept already: forget one of them first.")
        self._num_moments += 1
        mementos = tuple(world.save() for world in self.worlds)
        self.moments[self._num_moments] = Moment(
            mementos, tuple(self.path), self.context_path_points, self._real_total_before
        )
        return self._num_moments

    def go_back(self, moment: int) -> Iterator[Picture]:
        """Goes on from a moment; the last picture shows it. A recording ends here: its episode is no longer one.

        Raises ValueError for an unknown moment, or if a world finds no way back.
        """
        if moment not in self.moments:
            raise ValueError(f"There is no moment {moment}: it was forgotten.")
        self.stop_recording()
        kept = self.moments[moment]
        for world, memento in zip(self.worlds, kept.mementos, strict=True):
            for _ in world.restore(memento):
                yield self._picture("return", env_seconds=world.step_seconds)
        self.path, self.context_path_points = list(kept.path), kept.context_path_points
        self._real_total_before = kept.real_total_before
        if self.policy is not None:
            self.policy.reset(self._info())
        yield self._picture("play")

    def forget(self, moment: int) -> None:
        """Lets a moment go; nothing happens if it is gone already."""
        self.moments.pop(moment, None)

    def start_recording(self) -> None:
        """Records from the next `start` on. Raises ValueError if nothing can be recorded here."""
        if self._make_recorders is None:
            raise ValueError("There is no place to record to: start the server with --record-dir DIR.")
        try:
            for world, recorder in zip(self.worlds, self._make_recorders(), strict=True):
                world.start_recording(recorder)
        except BaseException:
            self.stop_recording()
            raise
        self.recording = True

    def stop_recording(self) -> None:
        """Hands in what was recorded; the episode goes on, unrecorded."""
        self.recording = False
        for world in self.worlds:
            world.stop_recording()

    def close(self) -> None:
        """Frees all worlds and moments; what is being recorded is kept."""
        self.moments.clear()
        for world in self.worlds:
            world.close()

    def _walk(self, real: World, seed: int) -> Iterator[Picture]:
        """Walks the real environment through the context, a picture for each frame of it."""
        real.reset(seed)
        walker = _walker(real, seed)
        walker.reset(real.info)
        for index in range(1, self._context_frames + 1):
            if index > 1:
                real.step(walker(real.obs, real.info))
            if real.ended:
                raise ValueError(f"The real episode ended within the {self._context_frames} frames of the context.")
            self._note_pose()
            yield self._picture("context", progress=(index, self._context_frames), env_seconds=real.step_seconds)

    def _draw_seed(self) -> int:
        low, high = (0, FIRST_EVALUATION_SEED) if self.recording else (FIRST_EVALUATION_SEED, END_OF_SEEDS)
        return int(self._random.integers(low, high))

    def _info(self) -> dict[str, Any]:
        """What a policy reads: the played world's info, and what only the real environment knows."""
        return self.main.info if self.real is None else {**self.real.info, **self.main.info}

    def _pose(self) -> list[float] | None:
        pose = np.asarray(self.worlds[-1].info.get("pose", ()), np.float64)
        return pose.tolist() if pose.shape == (4,) else None

    def _note_pose(self) -> None:
        if pose := self._pose():
            self.path.append([round(value, 2) for value in pose[:2]])

    def _picture(
        self,
        phase: str,
        action: Any = None,
        by_agent: bool = False,
        env_seconds: float = 0.0,
        progress: tuple[int, int] | None = None,
    ) -> Picture:
        shown = [self.real] if phase == "context" and self.real is not None else self.worlds
        views = {world.label: world.obs for world in shown}
        worlds = {
            world.label: {"reward": world.reward, "total": world.total, "steps": len(world.actions)} for world in shown
        }
        quality = None
        if self.real is not None and phase == "play":
            worlds[self.real.label]["total"] -= self._real_total_before  # both count from the beginning of the dream
            quality = float(psnr(self.main.obs, self.real.obs))
        return Picture(
            phase=phase,
            views=views,
            worlds=worlds,
            progress=progress,
            action=int(action) if isinstance(action, (int, np.integer)) else None,
            by_agent=by_agent,
            psnr=quality,
            pose=self._pose(),
            target=_target(self.worlds[-1].info),
            ended=self.ended if phase == "play" else None,
            env_seconds=env_seconds,
        )


def maze_map(info: dict[str, Any]) -> dict[str, Any] | None:
    """The top-down map in an environment's info, as JSON types: walls [y][x] and targets. None without one."""
    layout = np.asarray(info.get("layout", ()))
    if layout.ndim != 2 or np.asarray(info.get("pose", ())).shape != (4,):
        return None
    return {"walls": layout.astype(int).tolist(), "targets": np.asarray(info.get("targets", ())).tolist()}


def _target(info: dict[str, Any]) -> dict[str, Any] | None:
    if "target_index" not in info:
        return None
    color = info.get("target_color")
    return {"index": int(info["target_index"]), "color": None if color is None else np.round(color, 3).tolist()}


def _walker(real: World, seed: int) -> Policy:
    """Who walks through the context: the navigator where it can, else chance."""
    if "layout" in real.info and isinstance(real.action_space, gym.spaces.Discrete) and real.action_space.n == 6:
        return Navigator(seed)
    return RandomPolicy(real.action_space, seed)
