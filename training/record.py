"""Records an environment that someone plays or an agent drives, into the store that `training.collect` writes.

For example, with the keys a, d and w:

    env = gym.make("minigrid:MiniGrid-FourRooms-v0", render_mode="rgb_array")
    with RecordEpisodes(env, "data/played", obs_key="render", resize=64) as env:
        gymnasium.utils.play.play(env, keys_to_action={"a": 0, "d": 1, "w": 2}, noop=6)
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from training.recording.episode import EpisodeBuilder, recorded_action_space
from training.recording.frames import FrameSource, RecordingOptions
from training.store.episode_store import EpisodeWriter, StoreHeader, check_seed, create_store
from wm_gym.provenance import package_versions
from wm_gym.seeds import FIRST_EVALUATION_SEED

SEED_STREAM = 2  # keeps drawn seeds apart from what an environment draws from the same seed
END_OF_SEEDS = 2**32


class RecordEpisodes(gym.Wrapper[Any, Any, Any, Any]):
    """Leaves an environment as it is and writes each of its episodes into a store when it ends.

    An episode that is cut short, by `close()` or by a `reset()` before its end, is stored as well, with
    `truncations[-1] = True` and the attribute `cut`; with `keep_cut=False` it is dropped. If the process dies, the
    running episode is lost. Close the environment, or use it in a `with` statement.

    Seeds: `reset(seed=s)` records an episode of seed s. `reset()` without one draws a seed and resets the environment
    with it, so that every recorded episode has a seed of its own; what is drawn follows from the last seed given.

    Args:
        env: has a `spec`, as from gym.make, or give `env_id`.
        path: of the store, which is made if it is not there. Several processes may record into one.
        split: "train", or "test" and "eval" for held-out episodes, whose seeds are 7,000,000 and more.
        obs_key, resize: which image is recorded, and of which size, see `RecordingOptions`; whoever plays sees the
            environment's own observation all the same.
        policy: who acts; the header keeps it.
        env_id: what the header names; from the spec if None.
        keep_cut: see above.

    Raises:
        ValueError: no such image, spaces that a store cannot hold, or a store of something else at `path`. `reset`
            raises it for a seed that is kept for another split or recorded already; `step` for an action outside the
            action space.
        ResetNeeded: `step` before the first reset or after the end of an episode.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        path: str | Path,
        *,
        split: str = "train",
        obs_key: str | None = None,
        resize: int | None = None,
        policy: str = "played",
        env_id: str | None = None,
        keep_cut: bool = True,
    ) -> None:
        super().__init__(env)
        if env_id is None and env.spec is None:
            raise ValueError(f"{env} was not made by gym.make and so has no id: give env_id=.")
        spec = env.spec
        max_episode_steps, kwargs = _changed_arguments(spec)
        # Text stands in for what JSON cannot hold: the header tells stores apart, nothing is made from it.
        options = RecordingOptions(obs_key, resize, json.dumps(kwargs, default=str))
        self._take_frame = FrameSource(env, options)
        self._recorded_space = recorded_action_space(env.action_space)
        header = StoreHeader(
            env_id=env_id or (spec.id if spec is not None else ""),
            observation_space=self._take_frame.space(),
            action_space=self._recorded_space,
            policy=policy,
            max_episode_steps=max_episode_steps,
            recording=options.to_json(),
            packages=package_versions(),
        )
        self.store = create_store(path, header)
        self._writer = EpisodeWriter(self.store, split)
        self._writer.remove_abandoned()
        self._split = split
        self._policy = policy
        self._keep_cut = keep_cut
        self._taken_seeds = set(self.store.seeds(split))
        self._random = np.random.default_rng()
        self._builder: EpisodeBuilder | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode; see the class about seeds and about an episode that is still running."""
        self._finish_cut()
        if seed is None:
            seed = self._draw_seed()
        else:
            check_seed(seed, self._split)
            if seed in self._taken_seeds:
                raise ValueError(
                    f"{self.store.path} has an episode of seed {seed} in split {self._split!r} already: reset with "
                    "another seed, or without one, and it is drawn."
                )
            self._random = np.random.default_rng((seed, SEED_STREAM))
        obs, info = self.env.reset(seed=seed, options=options)
        self._taken_seeds.add(seed)
        self._builder = EpisodeBuilder(self._recorded_space, seed, self._take_frame(obs), info)
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """A step of the environment; the one that ends the episode writes it to the store."""
        builder = self._builder
        if builder is None:
            raise gym.error.ResetNeeded("There is no running episode to record: call reset before step.")
        recorded = builder.action(action)
        obs, reward, terminated, truncated, info = self.env.step(recorded)
        builder.add(recorded, self._take_frame(obs), reward, terminated, truncated, info)
        if terminated or truncated:
            self._write(builder, cut=False)
        return obs, reward, terminated, truncated, info  # pyright: ignore[reportReturnType]

    def close(self) -> None:
        """Stores the running episode as a cut one, and closes the environment. May be called twice."""
        try:
            self._finish_cut()
        finally:
            super().close()

    def _finish_cut(self) -> None:
        builder = self._builder
        if builder is None:
            return
        if self._keep_cut and builder.num_frames > 1:
            self._write(builder, cut=True)
        else:
            self._taken_seeds.discard(builder.seed)
            self._builder = None

    def _write(self, builder: EpisodeBuilder, cut: bool) -> None:
        self._builder = None  # also if writing fails: the rest of the episode would not fit
        attributes = {"policy": self._policy} | ({"cut": True} if cut else {})
        if not self._writer.write(builder.finish(attributes, cut)):
            warnings.warn(
                f"{self.store.path} received an episode of seed {builder.seed} from another process meanwhile; "
                "this one is not stored.",
                stacklevel=3,
            )

    def _draw_seed(self) -> int:
        first, end = (0, FIRST_EVALUATION_SEED) if self._split == "train" else (FIRST_EVALUATION_SEED, END_OF_SEEDS)
        while (seed := int(self._random.integers(first, end))) in self._taken_seeds:
            pass
        return seed


def _changed_arguments(spec: EnvSpec | None) -> tuple[int | None, dict[str, Any]]:
    """The time limit (else None) and the arguments that gym.make was given, where they differ from the registration."""
    registered = None if spec is None else gym.registry.get(spec.id)
    if spec is None or registered is None:
        return None, {}
    changed = {
        name: value
        for name, value in spec.kwargs.items()
        if name != "render_mode" and (name not in registered.kwargs or registered.kwargs[name] != value)
    }
    limit = spec.max_episode_steps
    return (None if limit == registered.max_episode_steps else limit), changed
