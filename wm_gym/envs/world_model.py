"""A learned world model as a Gymnasium environment."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
import torch

from wm_gym.contexts import make_context
from wm_gym.engine.memory import StepMemory
from wm_gym.envs.dream.actions import check_actions
from wm_gym.envs.dream.dreams import Dreams, DreamState
from wm_gym.envs.dream.settings import DreamSettings
from wm_gym.envs.window import Window
from wm_gym.world_model import WorldModel

RENDER_MODES = ("rgb_array", "human")


@dataclass(frozen=True)
class EpisodeState:
    """A fork of an episode, from `WorldModelEnv.get_state`: memory, noise and counters."""

    dream: DreamState
    np_random: Mapping[str, Any]  # state of the bit generator that draws later episodes


class WorldModelEnv(gym.Env[np.ndarray, Any]):
    """An environment that is imagined by a world model, frame by frame, after a context of real frames.

    Observation and action space are those of the real environment, as the checkpoint names them. Each step is one pass
    of the network (times `num_denoising_steps`), with a memory of constant size. Reward and termination come from the
    model's heads.

    `reset(seed=s)` starts from a part of a packaged real clip that the seed draws, and fixes all noise of the episode;
    with `options={"context": (frames, actions)}` it starts from the given frames (uint8 [T, H, W, C]) and the actions
    between them ([T - 1]). The first observation is the last frame of the context.

    info of every reset and step:
        context_frames: int, real frames read in before the dream.
        imagined_steps: int, steps since the reset.
        estimated_pose: float32 [4], only of models with odometry: (x, y, cos heading, sin heading), seen from the first
            frame of the context.

    Args:
        checkpoint: a packaged name, the path of a file, or a Hugging Face Hub id "owner/name".
        contexts: name or path of the clips from which dreams start.
        context_frames: how many frames of a clip are read in. Memories after contexts that were drawn once are kept. Of
            several numbers each clip has one, in turn, and its context ends where the clip ends: for agents that shall
            act with little memory, too.
        starts_per_clip: places in a clip, evenly spaced, where the context may begin; of one number of context_frames.
        device: where the model runs, such as "cpu" or "cuda".
        horizon: steps after which an episode is truncated.
        num_denoising_steps: network passes per frame.
        state_dtype: "float32", or "bfloat16", in which the memory takes half the space and its rounding adds up.
        refresh_steps: every so many steps of an episode the memory is made anew from the frames imagined since, and
            forgets all before; 0: never. Such a step takes longer.
        end_at_reward: the first reward terminates an episode: for agents that learn where the model cannot know what
            comes next, such as a new target that chance draws.
        reward_threshold: a reward other than 0 is given where the head takes one to be more probable than this; None:
            the most probable value.
        max_distance: an episode is truncated as soon as the dream's own position is farther than this from every
            position that a frame of its context was seen from, in the unit of the poses (cells in Memory Maze); None:
            never. Beyond, the model has nothing to recall, and an agent that learns may find rewards that are none.
            Truncated, not terminated: PPO takes the value of the last observation for what would have come. Only for
            models with odometry, and without `refresh_steps`.
        feedback_interval: every how many frames a dreamed one enters memory, while pure noise at its pose stands for
            the others; 0: none, 1: all; None: as the checkpoint was made (`WorldModelConfig.feedback_interval`).
        write_once: weight in the map below which a place counts as unknown; dreamed frames are written there, once, so
            that what was imagined is found again and what was seen is never painted over. 0: never; None: as the
            checkpoint was made. Needs a map and feedback_interval 0.
        render_mode: None, "rgb_array" (`render()` gives a copy of the observation) or "human" (a window; pygame).

    Raises:
        FileNotFoundError: there is no such checkpoint; on `reset`: there are no such clips.
        ValueError: a damaged or foreign checkpoint, a device that is not there, or another argument out of range.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": list(RENDER_MODES), "render_fps": 4}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        checkpoint: str | Path = "memory-maze",
        contexts: str | Path = "memory-maze",
        context_frames: int | Sequence[int] = 100,
        starts_per_clip: int = 4,
        device: str | torch.device = "cpu",
        horizon: int = 1000,
        num_denoising_steps: int = 1,
        state_dtype: Literal["float32", "bfloat16"] = "float32",
        refresh_steps: int = 0,
        end_at_reward: bool = False,
        reward_threshold: float | None = None,
        max_distance: float | None = None,
        feedback_interval: int | None = None,
        write_once: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ValueError(f"render_mode is one of {', '.join(RENDER_MODES)} or None, got {render_mode!r}.")
        settings = DreamSettings(
            checkpoint,
            contexts,
            context_frames,
            starts_per_clip,
            device,
            horizon,
            num_denoising_steps,
            state_dtype,
            refresh_steps,
            end_at_reward,
            reward_threshold,
            max_distance,
            feedback_interval,
            write_once,
        )
        self._dreams = Dreams(1, settings)
        self.observation_space = self._dreams.observation_space
        self.action_space = self._dreams.action_space
        self.render_mode = render_mode
        self._window = Window("wm_gym", self.metadata["render_fps"]) if render_mode == "human" else None
        self._closed = False

    @property
    def ssm_states(self) -> tuple[torch.Tensor, ...]:
        """The long memory as it is now: SSM states of all layers, [B, K, h, d, s] each. Read them before the next step.

        Raises ResetNeeded before the first reset.
        """
        return self._dreams.ssm_states

    @property
    def memory(self) -> StepMemory:
        """All that is remembered now, of B rows: states, and the map of a model that has one. Read it before the next
        step, and do not write it. Raises ResetNeeded before the first reset."""
        return self._dreams.memory

    @property
    def state_bytes_per_env(self) -> int:
        """Bytes that the memory of the dream takes on the device, from its first step to its last."""
        return self._dreams.state_bytes_per_row

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode; see the class.

        Raises:
            ResetNeeded: after `close`.
            TypeError: a context that is no pair, or of the wrong dtype.
            ValueError: a context of the wrong shape or length, an action outside the space, or unknown options.
        """
        if self._closed:
            raise gym.error.ResetNeeded("This environment was closed: make a new one.")
        context = check_options(options, {"context"}).get("context")
        if context is not None:
            context = make_context(context, self.observation_space, self.action_space)
        super().reset(seed=seed)
        self._dreams.start([0], [self.np_random], [context])
        self._show()
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Imagines the frame that `action` leads to.

        Raises:
            ResetNeeded: before the first reset, after the end of an episode, or after `close`.
            ValueError: an action outside the action space.
        """
        if self._closed or self._dreams.needs_reset[0]:
            raise gym.error.ResetNeeded("There is no running episode: call reset before step.")
        actions = check_actions(action[None] if isinstance(action, torch.Tensor) else [action], 1, self.action_space)
        step = self._dreams.step(actions)
        self._show()
        terminated, truncated = bool(step.terminated[0]), bool(step.truncated[0])
        return self._observation(), float(step.rewards[0]), terminated, truncated, self._info()

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The newest frame, uint8 [H, W, C], in mode "rgb_array", else None. Raises ResetNeeded before a reset."""
        if self.render_mode is None:
            return None
        if self._closed or self._dreams.num_context_frames[0] == 0:
            raise gym.error.ResetNeeded("There is nothing to render yet: call reset first.")
        return self._observation() if self.render_mode == "rgb_array" else None

    def get_state(self) -> EpisodeState:
        """A fork of the running episode that `set_state` returns to, as often as wanted, here or in a twin.

        Raises ResetNeeded before the first reset.
        """
        return EpisodeState(self._dreams.get_state(), copy.deepcopy(self.np_random.bit_generator.state))

    def set_state(self, state: EpisodeState) -> None:
        """Goes on from `state` exactly as the episode did. Raises TypeError or ValueError for a foreign state."""
        if not isinstance(state, EpisodeState):
            raise TypeError(f"Expected an EpisodeState from get_state, got {type(state).__name__}.")
        self._dreams.set_state(state.dream)
        self.np_random.bit_generator.state = copy.deepcopy(state.np_random)

    @property
    def model(self) -> WorldModel:
        """The network. Environments of one checkpoint may share its weights."""
        return self._dreams.model

    def close(self) -> None:
        """Closes the window, if there is one. May be called twice."""
        self._closed = True
        if self._window is not None:
            self._window.close()

    def _observation(self) -> np.ndarray:
        return self._dreams.frames[0].cpu().numpy().copy()

    def _info(self) -> dict[str, Any]:
        poses = self._dreams.poses
        return {
            "context_frames": int(self._dreams.num_context_frames[0]),
            "imagined_steps": int(self._dreams.num_steps[0]),
            **({} if poses is None else {"estimated_pose": poses[0]}),
        }

    def _show(self) -> None:
        if self._window is not None:
            self._window.show(self._observation())


def check_options(options: dict[str, Any] | None, known: set[str]) -> dict[str, Any]:
    """The options of a reset. Raises ValueError for names that it does not know."""
    if unknown := set(options or {}) - known:
        raise ValueError(f"Unknown reset options {sorted(unknown)}; known: {sorted(known)}.")
    return options or {}
