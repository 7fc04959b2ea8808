"""Several real Memory Mazes in one process and one OpenGL context, as a Gymnasium vector environment.

What renderers of several processes on one GPU wait for is the GPU's change from one process to the next: 0.2 ms, and
one for each frame that is read, while drawing a frame takes 0.03 ms (H200, docs/results/render_h200.json). Here all
mazes are drawn, their frames are written into one pixel buffer, and the process waits once for all of them.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from wm_gym.envs.memory_maze.direct import DirectMaze, Renderer
from wm_gym.envs.memory_maze.env import MemoryMazeEnv
from wm_gym.envs.memory_maze.published import FRAME_SIZE, MazeStep

Step = tuple[npt.NDArray[np.uint8], float, bool, bool, dict[str, Any]]
Seeds = int | Sequence[int | None] | None

WAIT_NANOSECONDS = 60_000_000_000


class MemoryMazeVectorEnv(VectorEnv[Any, Any, Any]):
    """N real mazes that are stepped one after the other and drawn together; row i is a `MemoryMazeEnv`, bit by bit.

    `reset(seed=s)` gives row i the maze s + i, `reset(seed=[...])` one seed (or None) each. With the option
    `reset_mask`, bool [N], only these rows are reset. Entries of info are arrays [N, ...] with a mask under the same
    name with a leading underscore.

    `reset_row` and `step_rows` do the same for some of the rows, in the shapes of single environments: for a collector,
    whose rows begin and end when it likes.

    Args:
        num_envs: N; about 4 to 8 for each process is best beside a GPU, and of no use in software rendering.
        size: as of `MemoryMazeEnv`.
        autoreset_mode: what happens to rows that ended. NEXT_STEP (default): the next step resets them to a new maze,
            ignoring its action, with reward 0. DISABLED: they must be reset through `reset_mask` before the next step.
        max_episode_steps: truncates episodes after so many steps; None leaves them their published length.

    Raises:
        ImportError: as `MemoryMazeEnv`.
        ValueError: no environment at all, an unknown size, or the mode SAME_STEP.
    """

    def __init__(
        self,
        num_envs: int = 1,
        size: str = "9x9",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        render_mode: None = None,
    ) -> None:
        self._mode = AutoresetMode(autoreset_mode)
        if num_envs < 1 or (max_episode_steps is not None and max_episode_steps < 1):
            raise ValueError(
                f"num_envs and max_episode_steps must be at least 1, got {num_envs} and {max_episode_steps}."
            )
        if self._mode is AutoresetMode.SAME_STEP:
            raise ValueError("Real mazes are reset in the next step or by you: the mode SAME_STEP is not there.")
        if render_mode is not None:
            raise ValueError(f"The observations are the pictures: render_mode must be None, got {render_mode!r}.")
        self._renderer = Renderer()
        self._pixels: PixelBuffer | None = None
        self._envs = [MemoryMazeEnv(size, renderer=self._renderer) for _ in range(num_envs)]
        self._max_steps = max_episode_steps
        self._num_steps = np.zeros(num_envs, np.int64)
        self._ended = np.zeros(num_envs, np.bool_)
        self.num_envs = num_envs
        self.metadata = {"render_modes": [], "render_fps": 4, "autoreset_mode": self._mode}
        self.single_observation_space = self._envs[0].observation_space
        self.single_action_space = self._envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._frames = np.zeros((num_envs, FRAME_SIZE, FRAME_SIZE, 3), np.uint8)

    def reset(self, *, seed: Seeds = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Starts an episode in every row, or in those of `reset_mask`; see the class.

        Raises:
            ResetNeeded: after `close`.
            ValueError: a mask or list of seeds that does not fit, or unknown options.
        """
        options = dict(options or {})
        mask = np.asarray(options.pop("reset_mask", np.ones(self.num_envs, np.bool_)))
        if options:
            raise ValueError(f"The only option of reset is 'reset_mask', got {sorted(options)}.")
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(f"reset_mask must be bool [{self.num_envs}] with one True at least, got {mask!r}.")
        if seed is None or isinstance(seed, (int, np.integer)):
            seeds = [None if seed is None else int(seed) + row for row in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"A list of seeds needs one for each of {self.num_envs} rows, got {len(seeds)}.")
        infos: dict[str, Any] = {}
        for row in np.flatnonzero(mask).tolist():
            _, info = self.reset_row(row, seeds[row])
            infos = self._add_info(infos, info, row)
        return self._frames.copy(), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Takes one action in every row; actions: integers [N].

        Raises:
            ResetNeeded: before the first reset, or if a row ended and the autoreset mode is DISABLED.
            ValueError: an action outside the action space, or not one for each row.
        """
        if len(actions) != self.num_envs:
            raise ValueError(f"One action for each of {self.num_envs} rows is needed, got {len(actions)}.")
        over = self._ended.copy() if self._mode is AutoresetMode.NEXT_STEP else np.zeros(self.num_envs, np.bool_)
        steps = self.step_rows({row: actions[row] for row in range(self.num_envs) if not over[row]})
        for row in np.flatnonzero(over).tolist():
            frame, info = self.reset_row(row, None)
            steps[row] = (frame, 0.0, False, False, info)
        infos: dict[str, Any] = {}
        for row in range(self.num_envs):
            infos = self._add_info(infos, steps[row][4], row)
        rewards, terminated, truncated = ([steps[row][part] for row in range(self.num_envs)] for part in (1, 2, 3))
        flags = np.array(terminated, np.bool_), np.array(truncated, np.bool_)
        return self._frames.copy(), np.array(rewards, np.float64), *flags, infos

    def reset_row(self, row: int, seed: int | None = None) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
        """As `MemoryMazeEnv.reset`, for one row."""
        self._frames[row], info = self._envs[row].reset(seed=seed)
        self._ended[row], self._num_steps[row] = False, 0
        return self._frames[row].copy(), info

    def step_rows(self, actions: Mapping[int, Any]) -> dict[int, Step]:
        """As `MemoryMazeEnv.step`, for the rows that have an action here; the others stay as they are.

        Raises ResetNeeded and ValueError as `step`, before any row has moved.
        """
        for row, action in actions.items():
            self._envs[row]._check_step(action)
            if self._ended[row]:
                raise ResetNeeded(f"The episode of row {row} has ended: call reset first.")
        if not actions:
            return {}
        mazes = {row: cast(DirectMaze, self._envs[row]._backend) for row in actions}
        outcomes = {row: maze.advance(int(actions[row])) for row, maze in mazes.items()}
        if self._pixels is None:
            self._pixels = PixelBuffer(self._renderer, self.num_envs)
        pixels = self._pixels.read([maze.draw() for maze in mazes.values()])
        steps = {}
        for index, (row, maze) in enumerate(mazes.items()):
            frame = maze.finish(pixels[index])
            reward, last = outcomes[row]
            self._num_steps[row] += 1
            last |= self._num_steps[row] == self._max_steps
            steps[row] = self._envs[row]._after(MazeStep(frame, reward, bool(last)))
            self._frames[row] = frame
            self._ended[row] = last
        return steps

    def close_extras(self, **kwargs: Any) -> None:
        """Frees all mazes, then their renderer."""
        for env in self._envs:
            env.close()
        self._pixels = None
        self._renderer.close()


class PixelBuffer:
    """Memory of the host into which the GPU writes frames when it gets to them.

    Args:
        renderer: whose context is made current and gets the buffer, which goes with it.
        room: number of frames.

    Raises RuntimeError if its OpenGL is older than 4.4.
    """

    def __init__(self, renderer: Renderer, room: int) -> None:
        gl: Any = importlib.import_module("OpenGL.GL")
        # The function with the offset into a buffer as its last argument, for which PyOpenGL's own expects an array.
        self._read_pixels: Any = importlib.import_module("OpenGL.raw.GL.VERSION.GL_1_1").glReadPixels
        self._gl, self._renderer = gl, renderer
        shape = (room, FRAME_SIZE, FRAME_SIZE, 3)
        num_bytes = int(np.prod(shape))
        flags = gl.GL_MAP_READ_BIT | gl.GL_MAP_PERSISTENT_BIT | gl.GL_MAP_COHERENT_BIT
        with renderer.gl.make_current():
            if not gl.glBufferStorage:
                raise RuntimeError("Several mazes in one process need OpenGL 4.4; take one for each process instead.")
            self._buffer = gl.glGenBuffers(1)
            gl.glBindBuffer(gl.GL_PIXEL_PACK_BUFFER, self._buffer)
            gl.glBufferStorage(gl.GL_PIXEL_PACK_BUFFER, num_bytes, None, flags)
            address = gl.glMapBufferRange(gl.GL_PIXEL_PACK_BUFFER, 0, num_bytes, flags)
            gl.glBindBuffer(gl.GL_PIXEL_PACK_BUFFER, 0)
        self._pixels = np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(int(address))).reshape(shape)

    def read(self, contexts: Sequence[Any]) -> npt.NDArray[np.uint8]:
        """Frames of `mujoco.MjrContext`s that were drawn, uint8 [len(contexts), 64, 64, 3], the lowest row of pixels
        first; valid until the next call. Raises RuntimeError if they do not come."""
        gl = self._gl
        with self._renderer.gl.make_current():
            gl.glPixelStorei(gl.GL_PACK_ALIGNMENT, 1)
            gl.glBindBuffer(gl.GL_PIXEL_PACK_BUFFER, self._buffer)
            for row, context in enumerate(contexts):
                self._begin(context, row * self._pixels[0].nbytes)
            gl.glBindBuffer(gl.GL_PIXEL_PACK_BUFFER, 0)
            fence = gl.glFenceSync(gl.GL_SYNC_GPU_COMMANDS_COMPLETE, 0)
            state = gl.glClientWaitSync(fence, gl.GL_SYNC_FLUSH_COMMANDS_BIT, WAIT_NANOSECONDS)
            gl.glDeleteSync(fence)
        if state not in (gl.GL_ALREADY_SIGNALED, gl.GL_CONDITION_SATISFIED):
            raise RuntimeError(f"The GPU did not draw {len(contexts)} frames in {WAIT_NANOSECONDS / 1e9:.0f} s.")
        return self._pixels[: len(contexts)]

    def _begin(self, context: Any, offset: int) -> None:
        """What mjr_readPixels does, but for the place where the pixels go."""
        gl, size = self._gl, FRAME_SIZE
        gl.glBindFramebuffer(gl.GL_READ_FRAMEBUFFER, context.offFBO)
        gl.glReadBuffer(gl.GL_COLOR_ATTACHMENT0)
        if context.offSamples:
            gl.glBindFramebuffer(gl.GL_DRAW_FRAMEBUFFER, context.offFBO_r)
            gl.glDrawBuffer(gl.GL_COLOR_ATTACHMENT0)
            gl.glBlitFramebuffer(0, 0, size, size, 0, 0, size, size, gl.GL_COLOR_BUFFER_BIT, gl.GL_NEAREST)
            gl.glBindFramebuffer(gl.GL_READ_FRAMEBUFFER, context.offFBO_r)
            gl.glReadBuffer(gl.GL_COLOR_ATTACHMENT0)
        self._read_pixels(0, 0, size, size, gl.GL_RGB, gl.GL_UNSIGNED_BYTE, ctypes.c_void_p(offset))
