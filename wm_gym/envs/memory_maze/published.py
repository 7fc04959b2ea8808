"""The published Memory Maze: the one place that imports `memory_maze`, and its own environment as a backend."""

import contextlib
import ctypes.util
import glob
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

# Published length of an episode in steps, by size of the maze without its outer walls (time limit in seconds x 4 Hz).
EPISODE_LENGTHS = {"9x9": 1000, "11x11": 2000, "13x13": 3000, "15x15": 4000}

# Published `DiscreteActionSetWrapper`: (roll, steer) controls of the ball for each discrete action.
ACTION_NAMES = ("noop", "forward", "left", "right", "forward_left", "forward_right")
ACTION_CONTROLS = np.array([[0, 0], [-1, 0], [0, -1], [0, 1], [-1, -1], [-1, 1]], dtype=np.float64)

CAMERA = "walker/egocentric"
BODY = "walker/head_body"
FRAME_SIZE = 64


class MazeStep(NamedTuple):
    """What one step of a backend returns.

    frame: uint8 [64, 64, 3], owned by the caller. reward: 0 or 1. last: the published episode has ended.
    """

    frame: npt.NDArray[np.uint8]
    reward: float
    last: bool


class MazeBackend(Protocol):
    """One running maze. `task` and `physics` are those of `memory_maze` and valid between `reset` and `close`."""

    @property
    def task(self) -> Any:
        """The task of `memory_maze`, which knows the maze and its targets."""
        ...

    @property
    def physics(self) -> Any:
        """The physics of MuJoCo."""
        ...

    def reset(self, maze_seed: int) -> npt.NDArray[np.uint8]:
        """Builds the maze of a seed and returns its first frame, uint8 ``[H, W, 3]``."""
        ...

    def step(self, action: int) -> MazeStep:
        """Takes one of the six actions."""
        ...

    def close(self) -> None:
        """Frees the maze."""
        ...


class Libraries(NamedTuple):
    """The modules of the memory-maze extra, in one place because they are optional."""

    tasks: Any  # memory_maze.tasks
    mjcf: Any  # dm_control.mjcf
    engine: Any  # dm_control.mujoco.engine
    wrapper: Any  # dm_control.mujoco.wrapper
    mujoco: Any


def load_libraries() -> Libraries:
    """Imports `memory_maze` and what it builds on, with a renderer that works on this machine.

    Sets environment variables that are unset: `MUJOCO_GL` (EGL beside an NVIDIA GPU, else OSMesa); no rendering thread
    for dm_control, as that fails when the interpreter exits before the environment is closed; no threads for software
    GL, as frames are small and collection runs one process per core.

    Raises:
        ImportError: the memory-maze extra or the software-GL library is missing.
    """
    if "dm_control" not in sys.modules:
        os.environ.setdefault("MUJOCO_GL", "egl" if _has_nvidia_egl() else "osmesa")
        os.environ.setdefault("DISABLE_RENDER_THREAD_OFFLOADING", "1")
        os.environ.setdefault("LP_NUM_THREADS", "0")
    if os.environ.get("MUJOCO_GL") == "osmesa" and ctypes.util.find_library("OSMesa") is None:
        raise ImportError(
            "Memory Maze renders in software here and needs the OSMesa library: apt-get install libosmesa6 "
            "(or, beside a GPU, set MUJOCO_GL=egl)."
        )
    try:
        # gym 0.26, which memory_maze imports but this project does not use, prints a notice about its end of life.
        with contextlib.redirect_stderr(io.StringIO()):
            import mujoco
            from dm_control import mjcf
            from dm_control.mujoco import engine, wrapper
            from memory_maze import tasks
    except ModuleNotFoundError as error:
        raise ImportError(
            f"The real Memory Maze needs the package {error.name!r}: pip install wm_gym[memory-maze]."
        ) from error
    return Libraries(tasks, mjcf, engine, wrapper, mujoco)


def _has_nvidia_egl() -> bool:
    return bool(glob.glob("/dev/nvidia[0-9]*")) and ctypes.util.find_library("EGL_nvidia") is not None


@contextlib.contextmanager
def without_velocity_warning() -> Iterator[None]:
    """Keeps a harmless message, which dm_control logs at every reset of this walker, off the screen."""

    def other(record: logging.LogRecord) -> bool:
        return "Cannot set velocity on Entity with no free joint" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def make_published(size: str, maze_seed: int) -> Any:
    """The published dm_env environment of one size ("9x9", ...), seeded, with the global observables of the task."""
    return getattr(load_libraries().tasks, f"memory_maze_{size}")(seed=maze_seed, global_observables=True)


def draw_border(frame: npt.NDArray[np.uint8], color: npt.NDArray[np.float64]) -> None:
    """Frames a uint8 [H, W, 3] image in place in a colour ([3], 0..1), as `TargetColorAsBorderWrapper` does."""
    width = int(2 * np.sqrt(frame.shape[0] // FRAME_SIZE))
    for edge in (np.s_[:, :width], np.s_[:, -width:], np.s_[:width], np.s_[-width:]):
        frame[edge] = color * 255 * 0.7


class UpstreamMaze:
    """Backend that runs the published environment as it is, one fresh instance for each maze."""

    def __init__(self, size: str) -> None:
        self._size = size
        self._env: Any = None

    @property
    def task(self) -> Any:
        """The task of `memory_maze`, which knows the maze and its targets."""
        return self._env.task

    @property
    def physics(self) -> Any:
        """The physics of MuJoCo."""
        return self._env.physics

    def reset(self, maze_seed: int) -> npt.NDArray[np.uint8]:
        """Builds the maze of a seed and returns its first frame, uint8 ``[H, W, 3]``."""
        self.close()
        self._env = make_published(self._size, maze_seed)
        with without_velocity_warning():
            return self._env.reset().observation["image"].copy()

    def step(self, action: int) -> MazeStep:
        """Takes one of the six actions."""
        step = self._env.step(action)
        return MazeStep(step.observation["image"].copy(), float(step.reward), step.last())

    def close(self) -> None:
        """Frees the maze."""
        if self._env is not None:
            self._env.close()
            self._env = None
