"""Records whole episodes of an environment: ``python -m training.collect --env ID --frames N --out PATH``.

Episode i is the environment's episode of seed `seed + i`, so what a store holds depends neither on the number of
workers nor on how often the run was killed: the same command goes on where it stopped.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import tyro
from tqdm import tqdm

from training.policies import make_policy
from training.provenance import package_versions
from training.ray_backend import collect_on_cluster
from training.recording import FrameSource, RecordingOptions, make_env, record_seeds, recorded_action_space
from training.store import EpisodeStore, EpisodeWriter, StoreHeader, check_seed, create_store

# Workers fill the cores, so that none of them may start threads of its own.
SINGLE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
SECONDS_TO_STOP = 10.0


@dataclass(frozen=True)
class CollectConfig:
    """Records episodes of an environment into a Zarr store, or continues one."""

    env: str
    """Environment id, as gym.make takes it: wm_gym/MemoryMaze-9x9-v0, or module:Id (minigrid:MiniGrid-Empty-8x8-v0)."""
    out: Path
    """Path of the store."""
    frames: int
    """Stops when the episodes of seeds seed, seed + 1, ... have this many frames together."""
    policy: str = "navigator"
    """navigator, random, or PACKAGE.MODULE:FUNCTION, called as function(env, seed), see training/policies.py."""
    recording: Annotated[RecordingOptions, tyro.conf.arg(name="")] = field(default_factory=RecordingOptions)
    """Which image is recorded, and of which size."""
    workers: int = 1
    """Number of processes."""
    seed: int = 0
    """Seed of the first episode; from 7,000,000 on for evaluation only."""
    split: Literal["train", "test", "eval"] = "train"
    """Part of the store that receives the episodes."""
    max_episode_steps: int | None = None
    """Truncates episodes after so many steps; None keeps the environment's own limit."""
    egl_devices: int = 1
    """With MUJOCO_GL=egl: number of GPUs over which the workers are spread."""
    backend: Literal["local", "ray"] = "local"
    """Where the workers run: on this machine, or spread over a Ray cluster."""
    ray_address: str | None = None
    """With backend ray: address of the cluster, or "auto"; None takes RAY_ADDRESS, or this machine."""


def collect(config: CollectConfig) -> EpisodeStore:
    """Records what is missing and returns the store.

    Raises:
        ValueError: a number below 1, an unknown environment or policy, seeds of another split, or a store of another
            environment.
        RuntimeError: a worker died; finished episodes are kept.
    """
    for name in ("frames", "workers", "egl_devices", "max_episode_steps"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    check_seed(config.seed, config.split)
    store, max_frames = _prepare_store(config)
    writer = EpisodeWriter(store, config.split)
    writer.remove_abandoned()
    schedule = Schedule(store, config.split, config.seed, config.frames, max_frames)
    try:
        if config.backend == "ray":
            collect_on_cluster(config, store, schedule)
        else:
            with _worker_processes(config, schedule) as workers:
                _run(workers, schedule, config.frames)
    finally:
        writer.remove_abandoned()
    return store


class Schedule:
    """Gives out seeds, the next one only if the episodes before it cannot have enough frames. So a finished run has
    the same episodes whatever the number of workers: the shortest row of seeds that is long enough.

    Args:
        store, split: where episodes that are there already are looked up.
        first_seed: start of the row.
        num_frames: what the row must have.
        max_frames: the most that an episode can have. If None, the longest one so far stands in, and the episodes that
            are started before any has finished may be more than are needed.
    """

    def __init__(
        self, store: EpisodeStore, split: str, first_seed: int, num_frames: int, max_frames: int | None
    ) -> None:
        self._recorded = {seed: store.num_frames(seed, split) for seed in store.seeds(split)}
        self._split = split
        self._next_seed = first_seed
        self._num_frames = num_frames
        self._max_frames = max_frames
        self._longest = max(self._recorded.values(), default=1)
        self._running: set[int] = set()
        self.finished_frames = 0

    @property
    def done(self) -> bool:
        return not self._running and self.finished_frames >= self._num_frames

    def next_seed(self) -> int | None:
        """Seed of an episode that is needed for certain, or None: ask again when another one has finished.

        Raises ValueError if the row runs into the seeds of another split.
        """
        expected = self._max_frames or self._longest
        while self.finished_frames + len(self._running) * expected < self._num_frames:
            seed = self._next_seed
            check_seed(seed, self._split)
            self._next_seed += 1
            if seed not in self._recorded:
                self._running.add(seed)
                return seed
            self.finished_frames += self._recorded[seed]
        return None

    def finish(self, seed: int, num_frames: int) -> None:
        self._running.remove(seed)
        self._longest = max(self._longest, num_frames)
        self.finished_frames += num_frames


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    seed: int | None = None  # of the episode that it records; None if it has nothing to do
    frames: int = 0  # of this episode, so far

    def give(self, seed: int | None) -> None:
        self.seed, self.frames = seed, 0
        if seed is not None:
            try:
                self.connection.send(seed)
            except OSError:
                self.fail()

    def receive(self) -> tuple[str, int]:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.fail()

    def fail(self) -> NoReturn:
        """Raises RuntimeError that says how the process ended."""
        self.process.join(SECONDS_TO_STOP)
        code = self.process.exitcode
        killed = f" (killed by {signal.Signals(-code).name})" if code is not None and code < 0 else ""
        raise RuntimeError(
            f"Worker {self.process.name} died with exit code {code}{killed} in the episode of seed {self.seed}; "
            "finished episodes are kept, and the same command goes on from there."
        )


def _prepare_store(config: CollectConfig) -> tuple[EpisodeStore, int | None]:
    """Opens or makes the store; also returns the most frames an episode can have, None if that is not known."""
    env = make_env(config.env, config.max_episode_steps, config.recording)
    try:
        make_policy(config.policy, env, 0)  # raises ValueError before any worker starts
        header = StoreHeader(
            env_id=config.env,
            observation_space=FrameSource(env, config.recording).space(),
            action_space=recorded_action_space(env.action_space),
            policy=config.policy,
            max_episode_steps=config.max_episode_steps,
            recording=config.recording.to_json(),
            packages=package_versions(),
        )
        max_steps = env.spec.max_episode_steps if env.spec is not None else None
    finally:
        env.close()
    return create_store(config.out, header), None if max_steps is None else max_steps + 1


def _run(workers: list[_Worker], schedule: Schedule, num_frames: int) -> None:
    """Gives out seeds and shows progress until all episodes are there."""
    with tqdm(total=num_frames, initial=schedule.finished_frames, unit=" frames", desc="collecting") as bar:
        while not schedule.done:
            busy = {worker.connection: worker for worker in workers if worker.seed is not None}
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                kind, count = worker.receive()
                if kind == "finished" and worker.seed is not None:
                    schedule.finish(worker.seed, count)
                    worker.give(None)
                else:
                    worker.frames += count
            for worker in workers:
                if worker.seed is None:
                    worker.give(schedule.next_seed())
            bar.update(schedule.finished_frames + sum(worker.frames for worker in workers) - bar.n)


@contextmanager
def _worker_processes(config: CollectConfig, schedule: Schedule) -> Iterator[list[_Worker]]:
    """Starts as many workers as there is work for, each with its first seed; afterwards none of them is left."""
    workers: list[_Worker] = []
    try:
        while len(workers) < config.workers and (seed := schedule.next_seed()) is not None:
            workers.append(_start_worker(config, len(workers)))
            workers[-1].give(seed)
        yield workers
    except BaseException:
        for worker in workers:
            worker.process.terminate()
        raise
    finally:
        for worker in workers:
            worker.connection.close()  # tells it to end
        for worker in workers:
            worker.process.join(SECONDS_TO_STOP)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def _start_worker(config: CollectConfig, index: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, config.out, config.split, config.env, config.policy, config.max_episode_steps)
    process = context.Process(target=record_seeds, args=arguments, name=f"collect-{index}", daemon=True)
    variables = dict(SINGLE_THREAD)
    if config.egl_devices > 1 and os.environ.get("MUJOCO_GL") == "egl" and "MUJOCO_EGL_DEVICE_ID" not in os.environ:
        variables["MUJOCO_EGL_DEVICE_ID"] = str(index % config.egl_devices)
    with _environment(variables), _ignored_interrupt():
        process.start()
    theirs.close()  # else its death would not end the connection
    return _Worker(process, ours)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for a process that is started inside."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _ignored_interrupt() -> Iterator[None]:
    """A process started inside ignores Ctrl-C, which reaches the whole group: ending it is the collector's part."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        config = tyro.cli(CollectConfig, prog="python -m training.collect")
        store = collect(config)
        seeds = store.seeds(config.split)
        num_frames = sum(store.num_frames(seed, config.split) for seed in seeds)
        print(f"{config.out}: {num_frames} frames in {len(seeds)} episodes of split {config.split!r}.")
    except KeyboardInterrupt:
        print("Interrupted; finished episodes are kept, and the same command goes on from there.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except RuntimeError as error:
        sys.exit(str(error))
    except (ValueError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
