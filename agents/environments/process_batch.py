"""Batches of a real environment in processes of their own, as one batch.

Where a process shares a renderer between several environments (Memory Maze beside a GPU), a few processes of several
environments are faster than many of one: gymnasium's AsyncVectorEnv knows only the latter.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

SECONDS_TO_CLOSE = 5.0
Seeds = int | Sequence[int | None] | None


class ProcessBatch(VectorEnv[Any, Any, Any]):
    """`processes` times `envs_per_process` environments that show images, reset in the step that ends them (SAME_STEP).

    Each process makes `env` by its vector entry point, with the autoreset mode DISABLED, and resets rows by
    `reset_mask`. Frames come through shared memory; `info` has "final_obs" of the rows that ended and nothing else.

    Args:
        env: id.
        processes, envs_per_process: of which each has how many.
        kwargs: further arguments of `gym.make_vec`.

    Raises:
        ValueError: observations are no single array, or an environment could not be made; it says why.
    """

    def __init__(self, env: str, processes: int, envs_per_process: int, kwargs: dict[str, Any] | None = None) -> None:
        self.num_envs = processes * envs_per_process
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self._size = envs_per_process
        # Spawned, for a renderer or a CUDA context does not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._room: SharedMemory | None = None
        self._processes = []
        for _ in range(processes):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(there, env, envs_per_process, kwargs or {}), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)
        spaces = self._answers()
        self.single_observation_space, self.single_action_space = spaces[0]
        if not isinstance(self.single_observation_space, gym.spaces.Box):
            self.close()
            raise ValueError(f"Processes share arrays; {env} shows {self.single_observation_space}.")
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        space = self.single_observation_space
        room = SharedMemory(create=True, size=self.num_envs * int(np.prod(space.shape)) * space.dtype.itemsize)
        self._room, self._frames = room, _frames_in(room, space, self.num_envs)
        self._ask([("room", (room.name, self.num_envs, first)) for first in range(0, self.num_envs, self._size)])

    def reset(self, *, seed: Seeds = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Starts an episode in every row; `seed=s` gives row i the seed s + i. Raises ValueError for options."""
        if options:
            raise ValueError(f"These batches know no options of reset, got {sorted(options)}.")
        if seed is None or isinstance(seed, (int, np.integer)):
            seeds = [None if seed is None else int(seed) + row for row in range(self.num_envs)]
        else:
            seeds = list(seed)
        self._ask([("reset", part) for part in self._parts(seeds)])
        return self._frames.copy(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Takes one action in every row; actions: [num_envs, ...].

        Raises:
            RuntimeError: a process has died, and of what.
            ValueError: what an environment raised.
        """
        answers = self._ask([("step", part) for part in self._parts(np.asarray(actions))])
        rewards, terminated, truncated = (np.concatenate([one[part] for one in answers]) for part in range(3))
        info: dict[str, Any] = {}
        if (ended := terminated | truncated).any():
            finals = np.full(self.num_envs, None, object)
            for index, (_, _, _, last) in enumerate(answers):
                for row, frame in last.items():
                    finals[index * self._size + row] = frame
            info = {"final_obs": finals, "_final_obs": ended, "final_info": {}, "_final_info": ended}
        return self._frames.copy(), rewards, terminated, truncated, info

    def close_extras(self, **kwargs: Any) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            try:
                pipe.send(("close", None))
            except OSError:
                continue  # it has died
        for process in self._processes:
            process.join(SECONDS_TO_CLOSE)
            if process.is_alive():
                process.terminate()
        if self._room is not None:
            self._frames = np.zeros(0)  # nothing may look into the room when it is closed
            self._room.close()
            self._room.unlink()

    def _parts(self, values: Any) -> list[Any]:
        if len(values) != self.num_envs:
            raise ValueError(f"One value for each of {self.num_envs} rows is needed, got {len(values)}.")
        return [values[first : first + self._size] for first in range(0, self.num_envs, self._size)]

    def _ask(self, requests: Sequence[tuple[str, Any]]) -> list[Any]:
        for index, (pipe, request) in enumerate(zip(self._pipes, requests, strict=True)):
            try:
                pipe.send(request)
            except OSError as error:
                raise self._death(index) from error
        return self._answers()

    def _answers(self) -> list[Any]:
        answers = []
        for index, pipe in enumerate(self._pipes):
            try:
                is_right, answer = pipe.recv()
            except (EOFError, ConnectionResetError) as error:
                raise self._death(index) from error
            if not is_right:
                self.close()
                raise ValueError(f"An environment in a process of its own failed: {answer}")
            answers.append(answer)
        return answers

    def _death(self, index: int) -> RuntimeError:
        """Closes everything, and says what is known of how a process ended."""
        process = self._processes[index]
        process.join(SECONDS_TO_CLOSE)
        code = process.exitcode
        self.close()
        if code == -signal.SIGKILL:
            return RuntimeError(
                f"A process of {self._size} environments was killed, most likely because memory ran out (a real maze "
                f"drawn in software takes 0.25 GB; {self.num_envs} environments were asked for). Lower num_envs."
            )
        return RuntimeError(f"A process of {self._size} environments died, exit code {code}; see what it printed.")


def _frames_in(room: SharedMemory, space: gym.Space[Any], num_envs: int) -> np.ndarray:
    shape = num_envs, *(space.shape or ())
    return np.ndarray(shape, space.dtype, room.buf)


def _work(pipe: Connection, env: str, num_envs: int, kwargs: dict[str, Any]) -> None:
    """A process of the batch: answers (True, result), or (False, what went wrong) and ends."""
    try:
        arguments: dict[str, Any] = {**kwargs, "autoreset_mode": AutoresetMode.DISABLED}
        envs = gym.make_vec(env, num_envs, vectorization_mode="vector_entry_point", **arguments)
        pipe.send((True, (envs.single_observation_space, envs.single_action_space)))
        worker = _Worker(envs)
        while (request := pipe.recv())[0] != "close":
            pipe.send((True, getattr(worker, request[0])(request[1])))
        worker.close()
    except (EOFError, KeyboardInterrupt):
        return  # the other side has gone
    except Exception as error:  # whatever it is, the other side must hear of it
        pipe.send((False, f"{type(error).__name__}: {error}"))


class _Worker:
    """The requests that a process answers."""

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        self._envs = envs
        self._frames = np.zeros(0)
        self._room: SharedMemory | None = None

    def room(self, where: tuple[str, int, int]) -> None:
        """Frames go into the shared room of this name, made for so many environments, from this row on."""
        name, num_envs, first = where
        self._room = SharedMemory(name)
        frames = _frames_in(self._room, self._envs.single_observation_space, num_envs)
        self._frames = frames[first : first + self._envs.num_envs]

    def reset(self, seeds: Sequence[int | None]) -> None:
        self._frames[:] = self._envs.reset(seed=list(seeds))[0]  # pyright: ignore[reportArgumentType]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[int, np.ndarray]]:
        """Rewards and flags of the rows, and the last frame of those that ended."""
        frames, rewards, terminated, truncated, _ = self._envs.step(actions)
        ended = terminated | truncated
        finals = {int(row): frames[row].copy() for row in np.flatnonzero(ended)}
        if finals:
            frames, _ = self._envs.reset(options={"reset_mask": ended})
        self._frames[:] = frames
        return rewards, terminated, truncated, finals

    def close(self) -> None:
        self._envs.close()
        self._frames = np.zeros(0)
        if self._room is not None:
            self._room.close()
