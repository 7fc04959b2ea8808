"""Finds out what several renderers on one GPU wait for:
``python -m training.bench_render --gl egl --out docs/results/render.json``.

A case is named PxExT:way, for P processes of T threads, each thread with one OpenGL context and E mazes that take
turns. The ways to get one frame of each of the E mazes:

- `now`: as the environment does it: step, draw and read one maze after the other;
- `finish`: the same, but waits for the GPU between drawing and reading, which tells how the time is split;
- `batch`: step all, draw all, then read all;
- `buffer`: likewise, but reading is only begun (into a pixel buffer), and waited for once for all mazes; `buffer4`
  reads four bytes a pixel instead of three;
- `halves`: `buffer`, but while the GPU draws one half of the mazes, the other half is stepped;
- `draw`: draws 32 frames a maze without reading any; `step`: steps without drawing.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import multiprocessing
import os
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from training.bench_collect import SINGLE_THREAD
from training.provenance import command_arguments, provenance
from training.recording import make_env
from wm_gym.files import write_json

FRAME_SIZE = 64
SECONDS_TO_START = 300.0
DRAWS = 32


@dataclass(frozen=True)
class BenchConfig:
    """Measures frames per second of Memory Maze for several ways to share one GPU."""

    cases: tuple[str, ...] = (
        *("1x1x1:now", "1x1x1:finish", "1x1x1:draw", "1x1x1:step", "1x4x1:buffer", "1x4x1:buffer4"),
        *("4x1x1:now", "8x1x1:now", "16x1x1:now", "16x1x1:finish", "16x1x1:draw", "16x1x1:step", "32x1x1:now"),
        *("16x4x1:batch", "16x4x1:buffer", "16x4x1:buffer4", "16x4x1:halves", "16x8x1:buffer"),
        *("8x4x1:buffer", "8x8x1:buffer", "12x8x1:halves", "4x1x4:now", "4x4x4:buffer", "1x1x16:now"),
    )
    """PxExT:way each; see the module."""
    seconds: float = 2.0
    """Time for each case."""
    size: str = "9x9"
    """Size of the maze."""
    gl: Literal["osmesa", "egl"] = "osmesa"
    """Software rendering, or that of a GPU."""
    out: Path | None = None
    """JSON file for the result."""


@dataclass(frozen=True)
class Case:
    processes: int
    mazes: int  # of each thread
    threads: int  # of each process
    way: str

    @classmethod
    def parse(cls, text: str) -> Case:
        layout, _, way = text.partition(":")
        try:
            processes, mazes, threads = map(int, layout.split("x"))
        except ValueError:
            raise ValueError(f"A case is named like 16x4x1:buffer, got {text!r}.") from None
        if min(processes, mazes, threads) < 1 or way not in WAYS:
            raise ValueError(f"A case has three numbers from 1 and one of {', '.join(WAYS)}, got {text!r}.")
        return cls(processes, mazes, threads, way)


class Renderers:
    """Mazes that share the OpenGL context of one thread; all methods are for that thread.

    `seconds` sums the time of each part: step, draw (handing the commands to the driver), wait (for the GPU), read.
    """

    def __init__(self, size: str, first_seed: int) -> None:
        self._size, self._seed = size, first_seed
        self._envs: list[Any] = []
        self._mazes: list[Any] = []  # their backends
        self.seconds: dict[str, float] = defaultdict(float)
        self._actions = np.random.default_rng(first_seed)
        self._buffers: dict[tuple[int, int], _PixelBuffer] = {}

    def grow(self, count: int) -> None:
        while len(self._mazes) < count:
            self._envs.append(make_env(f"wm_gym/MemoryMaze-{self._size}-v0").unwrapped)
            maze = self._envs[-1]._backend
            if self._mazes:
                maze._renderer = self._mazes[0]._renderer
            maze.reset(self._seed + len(self._mazes))
            self._mazes.append(maze)

    def run(self, way: str, count: int, seconds: float) -> tuple[int, float, dict[str, float]]:
        """Frames, seconds, and seconds of each part, for as many rounds over the first `count` mazes as fit.

        Raises AssertionError if frames that came through a pixel buffer are not those that MuJoCo reads.
        """
        mazes = self._mazes[:count]
        one_round = WAYS[way]
        one_round(self, mazes)  # makes buffers, if the way needs any
        if way in ("buffer", "buffer4"):
            for maze in mazes:
                buffered = maze._camera._rgb_buffer.copy()
                self._draw(maze)
                self._read(maze)
                assert np.array_equal(buffered, maze._camera._rgb_buffer), "The buffer has another frame."
        self.seconds.clear()
        frames, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            frames += one_round(self, mazes)
        return frames, elapsed, dict(self.seconds)

    def now(self, mazes: list[Any], wait: bool = False) -> int:
        for maze in mazes:
            self._step(maze)
            self._draw(maze)
            if wait:
                self._wait()
            self._read(maze)
        return len(mazes)

    def finish(self, mazes: list[Any]) -> int:
        return self.now(mazes, wait=True)

    def batch(self, mazes: list[Any]) -> int:
        for part in (self._step, self._draw, self._read):
            for maze in mazes:
                part(maze)
        return len(mazes)

    def buffer(self, mazes: list[Any], channels: int = 3) -> int:
        for maze in mazes:
            self._step(maze)
        self._begin(mazes, channels, 0)
        self._end(mazes, channels, 0)
        return len(mazes)

    def buffer4(self, mazes: list[Any]) -> int:
        return self.buffer(mazes, 4)

    def halves(self, mazes: list[Any]) -> int:
        for index, half in enumerate((mazes[::2], mazes[1::2])):
            if (buffer := self._buffers.get((3, index))) is not None and buffer.is_pending:
                self._end(half, 3, index)
            for maze in half:
                self._step(maze)
            self._begin(half, 3, index)
        return len(mazes)

    def draw(self, mazes: list[Any]) -> int:
        for _ in range(DRAWS):
            for maze in mazes:
                self._draw(maze)
        self._wait()
        return DRAWS * len(mazes)

    def step(self, mazes: list[Any]) -> int:
        for maze in mazes:
            self._step(maze)
        return len(mazes)

    def _step(self, maze: Any) -> None:
        started = time.perf_counter()
        maze._data.ctrl[:] = (-1, self._actions.integers(-1, 2))
        if maze._may_touch_target():
            maze._substeps_watching_targets()
        else:
            maze._substeps_at_once()
        maze._planes.hide_those_out_of_view()
        self.seconds["step"] += time.perf_counter() - started

    def _draw(self, maze: Any) -> None:
        mujoco = maze._libraries.mujoco
        started = time.perf_counter()
        camera, context = maze._camera, maze._physics.contexts.mujoco.ptr
        camera.update()
        with maze._renderer.gl.make_current() as gl:
            gl.call(mujoco.mjr_setBuffer, mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
            gl.call(mujoco.mjr_render, camera._rect, camera._scene.ptr, context)
        self.seconds["draw"] += time.perf_counter() - started

    def _read(self, maze: Any) -> None:
        mujoco = maze._libraries.mujoco
        started = time.perf_counter()
        camera, context = maze._camera, maze._physics.contexts.mujoco.ptr
        mujoco.mjr_readPixels(camera._rgb_buffer, None, camera._rect, context)
        self.seconds["read"] += time.perf_counter() - started

    def _wait(self) -> None:
        from OpenGL import GL

        started = time.perf_counter()
        GL.glFinish()
        self.seconds["wait"] += time.perf_counter() - started

    def _begin(self, mazes: list[Any], channels: int, index: int) -> None:
        buffer = self._buffers.get((channels, index))
        if buffer is None or buffer.room < len(mazes):
            buffer = self._buffers[channels, index] = _PixelBuffer(len(mazes), channels)
        for maze in mazes:
            self._draw(maze)
        started = time.perf_counter()
        for row, maze in enumerate(mazes):
            buffer.begin(row, maze._physics.contexts.mujoco.ptr)
        buffer.flush()
        self.seconds["read"] += time.perf_counter() - started

    def _end(self, mazes: list[Any], channels: int, index: int) -> None:
        started = time.perf_counter()
        frames = self._buffers[channels, index].end()
        self.seconds["wait"] += time.perf_counter() - started
        started = time.perf_counter()
        for row, maze in enumerate(mazes):
            maze._camera._rgb_buffer[:] = frames[row, ..., :3]
        self.seconds["read"] += time.perf_counter() - started


WAYS = {
    way.__name__: way
    for way in (
        *(Renderers.now, Renderers.finish, Renderers.batch, Renderers.buffer, Renderers.buffer4),
        *(Renderers.halves, Renderers.draw, Renderers.step),
    )
}


class _PixelBuffer:
    """Memory of the host into which the GPU writes frames when it gets to it; belongs to the current context."""

    def __init__(self, room: int, channels: int) -> None:
        GL: Any = importlib.import_module("OpenGL.GL")
        self._gl, self.room, self._channels = GL, room, channels
        self._fence: Any = None
        shape = (room, FRAME_SIZE, FRAME_SIZE, channels)
        num_bytes = int(np.prod(shape))
        flags = GL.GL_MAP_READ_BIT | GL.GL_MAP_PERSISTENT_BIT | GL.GL_MAP_COHERENT_BIT
        self._buffer = GL.glGenBuffers(1)
        GL.glBindBuffer(GL.GL_PIXEL_PACK_BUFFER, self._buffer)
        GL.glBufferStorage(GL.GL_PIXEL_PACK_BUFFER, num_bytes, None, flags)
        address = GL.glMapBufferRange(GL.GL_PIXEL_PACK_BUFFER, 0, num_bytes, flags)
        GL.glBindBuffer(GL.GL_PIXEL_PACK_BUFFER, 0)
        self._frames = np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(int(address))).reshape(shape)

    def begin(self, row: int, context: Any) -> None:
        """What mjr_readPixels does, but for the place where the pixels go."""
        from OpenGL.raw.GL.VERSION.GL_1_1 import glReadPixels

        gl = self._gl
        size = FRAME_SIZE
        gl.glBindFramebuffer(gl.GL_READ_FRAMEBUFFER, context.offFBO)
        gl.glReadBuffer(gl.GL_COLOR_ATTACHMENT0)
        if context.offSamples:
            gl.glBindFramebuffer(gl.GL_DRAW_FRAMEBUFFER, context.offFBO_r)
            gl.glDrawBuffer(gl.GL_COLOR_ATTACHMENT0)
            gl.glBlitFramebuffer(0, 0, size, size, 0, 0, size, size, gl.GL_COLOR_BUFFER_BIT, gl.GL_NEAREST)
            gl.glBindFramebuffer(gl.GL_READ_FRAMEBUFFER, context.offFBO_r)
            gl.glReadBuffer(gl.GL_COLOR_ATTACHMENT0)
        gl.glPixelStorei(gl.GL_PACK_ALIGNMENT, 1)
        gl.glBindBuffer(gl.GL_PIXEL_PACK_BUFFER, self._buffer)
        channels = gl.GL_RGB if self._channels == 3 else gl.GL_RGBA
        offset = ctypes.c_void_p(row * size * size * self._channels)
        glReadPixels(0, 0, size, size, channels, gl.GL_UNSIGNED_BYTE, offset)
        gl.glBindBuffer(gl.GL_PIXEL_PACK_BUFFER, 0)

    @property
    def is_pending(self) -> bool:
        return self._fence is not None

    def flush(self) -> None:
        self._fence = self._gl.glFenceSync(self._gl.GL_SYNC_GPU_COMMANDS_COMPLETE, 0)
        self._gl.glFlush()

    def end(self) -> np.ndarray:
        """Waits for the frames: uint8 [room, 64, 64, channels], the lowest row of pixels first."""
        self._gl.glClientWaitSync(self._fence, self._gl.GL_SYNC_FLUSH_COMMANDS_BIT, 10_000_000_000)
        self._gl.glDeleteSync(self._fence)
        self._fence = None
        return self._frames


def _serve(connection: Connection, index: int, size: str, variables: dict[str, str], barriers: dict[int, Any]) -> None:
    """Runs the cases that the connection tells, until it tells None."""
    os.environ.update(variables)  # before MuJoCo is imported, which reads them
    threads: list[tuple[ThreadPoolExecutor, Renderers]] = []
    while (case := connection.recv()) is not None:
        case, seconds = case
        while len(threads) < case.threads:
            threads.append((ThreadPoolExecutor(1), Renderers(size, 1000 + 100 * index + 10 * len(threads))))
        chosen = threads[: case.threads]
        # One after the other: EGL's display is shared by all contexts of a process.
        for pool, renderers in chosen:
            pool.submit(renderers.grow, case.mazes).result()
        together = threading.Barrier(case.threads + 1)

        def measure(
            renderers: Renderers, case: Case = case, seconds: float = seconds, together: threading.Barrier = together
        ) -> tuple[int, float, dict[str, float]]:
            together.wait(SECONDS_TO_START)
            return renderers.run(case.way, case.mazes, seconds)

        futures = [pool.submit(measure, renderers) for pool, renderers in chosen]
        barriers[case.processes].wait(SECONDS_TO_START)
        together.wait(SECONDS_TO_START)
        try:
            connection.send([future.result() for future in futures])
        except Exception as error:  # one case that fails is no reason not to measure the others
            connection.send(error)
    os._exit(0)  # contexts of other threads cannot be freed from this one, and the driver frees them anyway


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
    answers = [connection.recv() for connection in connections[: case.processes]]
    if failures := [answer for answer in answers if isinstance(answer, Exception)]:
        return {"failed": repr(failures[0])[:300]}
    runs = [run for answer in answers for run in answer]
    frames = sum(run[0] for run in runs)
    parts = {part: sum(run[2].get(part, 0.0) for run in runs) / frames * 1000 for part in runs[0][2]}
    return {
        "frames_per_second": round(sum(run[0] / run[1] for run in runs)),
        "milliseconds_per_frame": {part: round(value, 3) for part, value in parts.items()},
    }


def main() -> None:
    config = tyro.cli(BenchConfig, prog="python -m training.bench_render")
    record = {**provenance("training.bench_render", command_arguments()), **run(config)}
    if config.out is not None:
        write_json(config.out, record)


if __name__ == "__main__":
    main()
