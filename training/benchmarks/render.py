"""Finds out what several renderers on one GPU wait for:
``python -m training.benchmarks.render --gl egl --out docs/results/render.json``.

A case is named PxE:way, for P processes with one OpenGL context and E mazes each. The ways to get a frame of each maze:

- `alone`: one maze after the other is stepped, drawn and read, which waits for the GPU, as single environments do it;
- `finish`: the same with one more wait, between drawing and reading, which tells how the time is split;
- `batch`: all are stepped, then all drawn, then all read;
- `together`: likewise, but read through one buffer and waited for once, as the vector environment does it;
- `draw`: 32 frames of each maze are drawn and none is read; `step`: mazes are stepped and not drawn.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import time
from collections import defaultdict
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import tyro

from training.benchmarks.collect import SINGLE_THREAD
from wm_gym.files import write_json
from wm_gym.provenance import command_arguments, provenance

SECONDS_TO_START = 300.0
DRAWS = 32


@dataclass(frozen=True)
class BenchConfig:
    """Measures frames per second of Memory Maze for several ways to share one GPU."""

    cases: tuple[str, ...] = (
        *("1x1:alone", "1x1:finish", "1x1:draw", "1x1:step", "1x8:together"),
        *("4x1:alone", "8x1:alone", "16x1:alone", "16x1:finish", "16x1:draw", "16x1:step", "32x1:alone"),
        *("16x4:batch", "16x2:together", "16x4:together", "16x8:together", "16x16:together"),
        *("4x8:together", "8x8:together"),
    )
    """PxE:way each; see the module."""
    seconds: float = 2.0
    """Time for each case."""
    size: str = "9x9"
    """Size of the maze."""
    gl: Literal["osmesa", "egl"] = "osmesa"
    """Software rendering, or that of a GPU."""
    out: Path | None = None
    """JSON file for the result."""


class Case(NamedTuple):
    """How many processes draw how many mazes each, and in which way."""

    processes: int
    mazes: int  # of each process
    way: str

    @classmethod
    def parse(cls, text: str) -> Case:
        """Raises ValueError for anything but PxE:way."""
        layout, _, way = text.partition(":")
        numbers = layout.split("x")
        if len(numbers) != 2 or not all(part.isdecimal() and int(part) > 0 for part in numbers) or way not in WAYS:
            raise ValueError(f"A case is named like 16x4:together, with one of {', '.join(WAYS)}, got {text!r}.")
        return cls(int(numbers[0]), int(numbers[1]), way)


class Mazes:
    """Memory Mazes of one process that share an OpenGL context.

    `seconds` sums the time of each part: step, draw (handing the commands to the driver), wait (for the GPU), read
    (which waits too, where nothing has waited before).
    """

    def __init__(self, size: str, count: int, first_seed: int) -> None:
        arguments: Any = {"num_envs": count, "vectorization_mode": "vector_entry_point"}
        self._env: Any = gym.make_vec(f"wm_gym:wm_gym/MemoryMaze-{size}-v0", **arguments)
        self._env.reset(seed=first_seed)
        self._env.step(np.zeros(count, np.int64))  # makes the buffer
        self._mazes = [env._backend for env in self._env._envs]
        self._actions = np.random.default_rng(first_seed)
        self.seconds: dict[str, float] = defaultdict(float)

    def run(self, way: str, seconds: float) -> tuple[int, float, dict[str, float]]:
        """Frames, seconds, and seconds of each part, for as many rounds over all mazes as fit."""
        self.seconds.clear()
        frames, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            frames += WAYS[way](self)
        return frames, elapsed, dict(self.seconds)

    def close(self) -> None:
        """Closes the mazes."""
        self._env.close()

    def alone(self, wait: bool = False) -> int:
        """Steps, draws and reads maze after maze; returns the number of frames, as all ways do."""
        for maze in self._mazes:
            self._step(maze)
            context = self._draw(maze)
            if wait:
                self._wait()
            self._read(maze, context)
        return len(self._mazes)

    def finish(self) -> int:
        """As `alone`, and waits for the GPU before each frame is read."""
        return self.alone(wait=True)

    def batch(self) -> int:
        """Draws all mazes before the first is read."""
        for maze in self._mazes:
            self._step(maze)
        contexts = [self._draw(maze) for maze in self._mazes]
        for maze, context in zip(self._mazes, contexts, strict=True):
            self._read(maze, context)
        return len(self._mazes)

    def together(self) -> int:
        """Draws all mazes and reads them at once."""
        for maze in self._mazes:
            self._step(maze)
        contexts = [self._draw(maze) for maze in self._mazes]
        started = time.perf_counter()
        pixels = self._env._pixels.read(contexts)
        self.seconds["wait"] += time.perf_counter() - started
        for maze, frame in zip(self._mazes, pixels, strict=True):
            maze.finish(frame)
        return len(self._mazes)

    def draw(self) -> int:
        """Draws and reads nothing."""
        for _ in range(DRAWS):
            for maze in self._mazes:
                self._draw(maze)
        self._wait()
        return DRAWS * len(self._mazes)

    def step(self) -> int:
        """Steps and draws nothing."""
        for maze in self._mazes:
            self._step(maze)
        return len(self._mazes)

    def _step(self, maze: Any) -> None:
        started = time.perf_counter()
        maze.advance(int(self._actions.integers(6)))
        self.seconds["step"] += time.perf_counter() - started

    def _draw(self, maze: Any) -> Any:
        started = time.perf_counter()
        context = maze.draw()
        self.seconds["draw"] += time.perf_counter() - started
        return context

    def _read(self, maze: Any, context: Any) -> None:
        started = time.perf_counter()
        pixels = np.empty((64, 64, 3), np.uint8)
        maze._libraries.mujoco.mjr_readPixels(pixels, None, maze._rectangle, context)
        maze.finish(pixels)
        self.seconds["read"] += time.perf_counter() - started

    def _wait(self) -> None:
        started = time.perf_counter()
        importlib.import_module("OpenGL.GL").glFinish()
        self.seconds["wait"] += time.perf_counter() - started


WAYS = {way.__name__: way for way in (Mazes.alone, Mazes.finish, Mazes.batch, Mazes.together, Mazes.draw, Mazes.step)}


def _serve(connection: Connection, index: int, size: str, variables: dict[str, str], barriers: dict[int, Any]) -> None:
    """Runs the cases that the connection tells, until it tells None."""
    os.environ.update(variables)  # before MuJoCo is imported, which reads them
    mazes: dict[int, Mazes] = {}  # by their number
    while (message := connection.recv()) is not None:
        case, seconds = message
        if case.mazes not in mazes:
            mazes[case.mazes] = Mazes(size, case.mazes, 1000 + 100 * index)
        barriers[case.processes].wait(SECONDS_TO_START)
        connection.send(mazes[case.mazes].run(case.way, seconds))
    for several in mazes.values():
        several.close()


def run(config: BenchConfig) -> dict[str, Any]:
    """Frames per second of each case, and milliseconds per frame and thread of each part."""
    cases = [Case.parse(text) for text in config.cases]
    context = multiprocessing.get_context("spawn")
    barriers = {case.processes: context.Barrier(case.processes) for case in cases}
    variables = {"MUJOCO_GL": config.gl, "DISABLE_RENDER_THREAD_OFFLOADING": "1", **SINGLE_THREAD}
    workers: list[tuple[Any, Connection]] = []
    results: dict[str, Any] = {}
    try:
        for index in range(max(case.processes for case in cases)):
            ours, theirs = context.Pipe()
            arguments = (theirs, index, config.size, variables, barriers)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            workers.append((process, ours))
        for text, case in zip(config.cases, cases, strict=True):
            results[text] = _measure(case, [connection for _, connection in workers], config.seconds)
            print(text, json.dumps(results[text]), flush=True)
        for _, connection in workers:
            connection.send(None)
        for process, _ in workers:
            process.join(10)
    finally:
        for process, _ in workers:
            process.kill()
    return {"size": config.size, "gl": config.gl, "cores": os.cpu_count(), "cases": results}


def _measure(case: Case, connections: list[Connection], seconds: float) -> dict[str, Any]:
    for connection in connections[: case.processes]:
        connection.send((case, seconds))
    runs = [connection.recv() for connection in connections[: case.processes]]
    frames = sum(run[0] for run in runs)
    parts = {part: sum(run[2].get(part, 0.0) for run in runs) / frames * 1000 for part in runs[0][2]}
    return {
        "frames_per_second": round(sum(run[0] / run[1] for run in runs)),
        "milliseconds_per_frame": {part: round(value, 3) for part, value in parts.items()},
    }


def main() -> None:
    """The command."""
    config = tyro.cli(BenchConfig, prog="python -m training.benchmarks.render")
    record = {**provenance("training.benchmarks.render", command_arguments()), **run(config)}
    if config.out is not None:
        write_json(config.out, record)


if __name__ == "__main__":
    main()
