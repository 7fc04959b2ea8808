"""The real Memory Maze as a Gymnasium environment."""

import atexit
import weakref
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from wm_gym.envs.memory_maze.direct import DirectMaze, Renderer
from wm_gym.envs.memory_maze.published import (
    ACTION_NAMES,
    BODY,
    CAMERA,
    EPISODE_LENGTHS,
    FRAME_SIZE,
    MazeBackend,
    MazeStep,
    UpstreamMaze,
    draw_border,
    load_libraries,
)
from wm_gym.seeds import FIRST_EVALUATION_SEED

IMPLEMENTATIONS = ("direct", "upstream")

# Mazes from this seed on are kept for evaluation, so a reset without a seed draws below it.


class MemoryMazeEnv(gym.Env[npt.NDArray[np.uint8], np.int64]):
    """A published Memory Maze task: find the target whose colour frames the image, again and again.

    Observation: uint8 [64, 64, 3], the view of the agent, bordered in the colour of the current target.
    Actions: 0 noop, 1 forward, 2 left, 3 right, 4 forward + left, 5 forward + right; 4 steps a second.
    Reward: 1.0 for touching the current target, after which another one is drawn; else 0.0.
    Ends: never terminated; truncated after 1000, 2000, 3000 or 4000 steps (9x9, 11x11, 13x13, 15x15).

    `reset(seed=s)` builds maze s: same layout, textures, start, targets and later target draws every time.
    Without a seed the next maze is drawn from `np_random`, below the evaluation seeds.

    info of every reset and step, in grid units (cell (x, y) spans [x, x + 1) x [y, y + 1), outer walls left out):
        pose: float32 [4], (grid_x, grid_y, heading_x, heading_y), the heading a unit vector.
        layout: uint8 [n, n], indexed [y, x], 1 where there is a wall.
        targets: float32 [k, 2], positions (grid_x, grid_y).
        target_index: int, the current target's row in `targets`.
        target_color: float32 [3], its colour in [0, 1].
        maze_seed: int, the seed that builds this maze again.

    Args:
        size: "9x9", "11x11", "13x13" or "15x15".
        implementation: "direct" steps MuJoCo itself; "upstream" runs the published loop. Both give the same bits.
        render_mode: None or "rgb_array" (`render()` gives a uint8 [256, 256, 3] view).
        renderer: of several mazes in one thread, see `MemoryMazeVectorEnv`; needs the direct implementation.
        episode_length: steps before truncation, to measure longer memories; None: as published. `gym.make` has a
            `max_episode_steps` of its own as well. Needs the direct implementation.

    Raises:
        ImportError: the memory-maze extra or a library for software rendering is missing.
        ValueError: an unknown size, implementation or render mode, or an episode length without steps.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012
    action_names = ACTION_NAMES
    render_size = 256

    def __init__(
        self,
        size: str = "9x9",
        implementation: Literal["direct", "upstream"] = "direct",
        render_mode: str | None = None,
        renderer: Renderer | None = None,
        episode_length: int | None = None,
    ) -> None:
        _check_choice("size", size, EPISODE_LENGTHS)
        _check_choice("implementation", implementation, IMPLEMENTATIONS)
        if renderer is not None and implementation != "direct":
            raise ValueError(f"Only the direct implementation can share a renderer, not {implementation!r}.")
        if episode_length is not None and (episode_length < 1 or implementation != "direct"):
            raise ValueError(
                f"Episodes of {episode_length} steps need the direct implementation, and at least one step."
            )
        if render_mode is not None:
            _check_choice("render_mode", render_mode, self.metadata["render_modes"])
        load_libraries()
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
        self.action_space = spaces.Discrete(len(ACTION_NAMES))
        largest = FRAME_SIZE if render_mode is None else self.render_size
        self._backend: MazeBackend = (
            DirectMaze(size, renderer, episode_length, largest) if implementation == "direct" else UpstreamMaze(size)
        )
        self._state: Literal["new", "running", "ended", "closed"] = "new"
        self._layout = np.zeros((0, 0), np.uint8)
        self._targets = np.zeros((0, 2), np.float32)
        self._maze_seed = -1
        # Rendering contexts must go before dm_control's own exit handlers, hence atexit after its import; the finalizer
        # is for an environment that is dropped without close.
        atexit.register(self._backend.close)
        self._finalizer = weakref.finalize(self, _close_backend, self._backend)
        self._finalizer.atexit = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
        """Starts an episode in maze `seed`, or in a new one when it is None; `options` must be empty.

        Raises:
            ValueError: a seed outside [0, 2**32), or options.
        """
        if self._state == "closed":
            raise ResetNeeded("This environment was closed; make a new one.")
        if options:
            raise ValueError(f"Memory Maze has no reset options, got {sorted(options)}.")
        if seed is not None and not 0 <= seed < 2**32:
            raise ValueError(f"A maze seed is an integer from 0 to 2**32 - 1, got {seed}.")
        super().reset(seed=seed)
        self._maze_seed = int(self.np_random.integers(FIRST_EVALUATION_SEED)) if seed is None else int(seed)
        self._state = "new"
        frame = self._backend.reset(self._maze_seed)
        self._read_maze()
        self._state = "running"
        return frame, self._info()

    def step(self, action: np.int64 | int) -> tuple[npt.NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Takes one action for a quarter of a second.

        Raises:
            ResetNeeded: before the first reset, or after the episode's end.
            ValueError: an action outside the action space.
        """
        self._check_step(action)
        return self._after(self._backend.step(int(action)))

    def _check_step(self, action: Any) -> None:
        if self._state != "running":
            reason = {"new": "before the first reset", "ended": "after the end of the episode", "closed": "after close"}
            raise ResetNeeded(f"step was called {reason[self._state]}: call reset first.")
        if not self.action_space.contains(action):
            raise ValueError(f"An action is an integer from 0 to {len(ACTION_NAMES) - 1}, got {action!r}.")

    def _after(self, step: MazeStep) -> tuple[npt.NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        if step.last:
            self._state = "ended"
        return step.frame, step.reward, False, step.last, self._info()

    def render(self) -> npt.NDArray[np.uint8] | None:
        """The current frame drawn larger, as uint8 [256, 256, 3], or None without a render mode.

        Raises:
            ResetNeeded: before the first reset, or after close.
        """
        if self.render_mode is None:
            return None
        if self._state in ("new", "closed"):
            raise ResetNeeded("render needs a running episode: call reset first.")
        picture = self._backend.physics.render(self.render_size, self.render_size, camera_id=CAMERA).copy()
        draw_border(picture, self._target_color())
        return picture

    def close(self) -> None:
        """Frees the renderer; may be called twice."""
        self._state = "closed"
        self._finalizer()

    def _read_maze(self) -> None:
        """Keeps what does not change in an episode: the layout and the targets' places."""
        arena = self._backend.task.root_entity
        walls = np.asarray(arena.maze.entity_layer)[1:-1, 1:-1][::-1]
        self._layout = (~np.isin(walls, [" ", "P", "G"])).astype(np.uint8)
        world = self._backend.physics.bind([target.geom for target in self._backend.task._targets]).xpos
        self._scale = float(arena.xy_scale)
        self._offset = np.array(self._layout.shape[::-1]) / 2.0
        self._targets = (np.asarray(world)[:, :2] / self._scale + self._offset).astype(np.float32)
        self._body_id = self._backend.physics.model.name2id(BODY, "body")

    def _target_color(self) -> npt.NDArray[np.float64]:
        return self._backend.task._target_colors[self._backend.task._current_target_ix]

    def _info(self) -> dict[str, Any]:
        task, data = self._backend.task, self._backend.physics.data
        position = data.xpos[self._body_id, :2] / self._scale + self._offset
        heading = data.xmat[self._body_id].reshape(3, 3)[:2, 1]
        return {
            "pose": np.concatenate([position, heading / np.linalg.norm(heading)]).astype(np.float32),
            "layout": self._layout.copy(),
            "targets": self._targets.copy(),
            "target_index": int(task._current_target_ix),
            "target_color": np.asarray(self._target_color(), np.float32),
            "maze_seed": self._maze_seed,
        }


def _check_choice(name: str, value: object, choices: Any) -> None:
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(map(repr, choices))}, got {value!r}.")


def _close_backend(backend: MazeBackend) -> None:
    atexit.unregister(backend.close)
    backend.close()
