"""Records whole episodes of an environment in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NoReturn

from tqdm import tqdm

from training.recording.config import CollectConfig
from training.recording.episode import FrameSource, make_env, recorded_action_space
from training.recording.policies import make_policy
from training.recording.ray_backend import collect_on_cluster
from training.recording.recorder import record_seeds
from training.recording.schedule import Claims, Schedule
from training.store.episode_store import EpisodeStore, EpisodeWriter, StoreHeader, check_seed, create_store
from wm_gym.provenance import package_versions

# Workers fill the cores, so that none of them may start threads of its own.
SINGLE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
SECONDS_TO_STOP = 10.0
SECONDS_BETWEEN_LOOKS = 0.5  # at what another collector has recorded meanwhile


def collect(config: CollectConfig) -> EpisodeStore:
    """Records what is missing and returns the store.

    Raises:
        ValueError: a number below 1, an unknown environment or policy, seeds of another split, or a store of another
            environment.
        RuntimeError: a worker died; finished episodes are kept.
    """
    return record_missing(config)[0]


def record_missing(config: CollectConfig) -> tuple[EpisodeStore, int]:
    """As `collect`; also the number of episodes that were recorded here, and not before or by another collector."""
    for name in ("frames", "workers", "envs_per_worker", "egl_devices", "max_episode_steps"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if config.backend == "ray" and config.envs_per_worker > 1:
        raise ValueError("Recorders on a cluster have one environment each: leave --envs-per-worker out with ray.")
    check_seed(config.seed, config.split)
    store, max_frames = _prepare_store(config)
    writer = EpisodeWriter(store, config.split)
    writer.remove_abandoned()
    with closing(Claims(store.split_path(config.split))) as claims:
        schedule = Schedule(store, config.split, config.seed, config.frames, max_frames, claims)
        try:
            if config.backend == "ray":
                collect_on_cluster(config, store, schedule)
            else:
                with _worker_processes() as workers:
                    _run(config, workers, schedule)
        finally:
            writer.remove_abandoned()
    return store, schedule.num_recorded


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    frames: dict[int, int] = field(default_factory=dict)  # so far, by seed of the episodes that it records

    def give(self, seed: int) -> None:
        self.frames[seed] = 0
        try:
            self.connection.send(seed)
        except OSError:
            self.fail()

    def receive(self) -> tuple[str, int, int]:
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
            f"Worker {self.process.name} died with exit code {code}{killed} while it recorded seed "
            f"{', '.join(map(str, self.frames))}; finished episodes are kept, and the same command goes on from there."
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


def _run(config: CollectConfig, workers: list[_Worker], schedule: Schedule) -> None:
    """Gives out seeds and shows progress until all episodes are there."""
    _give(config, workers, schedule)
    with tqdm(total=config.frames, initial=schedule.finished_frames, unit=" frames", desc="collecting") as bar:
        while not schedule.done:
            busy = {worker.connection: worker for worker in workers if worker.frames}
            for connection in wait(list(busy), SECONDS_BETWEEN_LOOKS if schedule.waits_for_others else None):
                worker = busy[connection]  # type: ignore[index]
                kind, seed, count = worker.receive()
                if kind == "finished":
                    del worker.frames[seed]
                    schedule.finish(seed, count)
                else:
                    worker.frames[seed] += count
            _give(config, workers, schedule)
            bar.update(schedule.finished_frames + sum(sum(worker.frames.values()) for worker in workers) - bar.n)


def _give(config: CollectConfig, workers: list[_Worker], schedule: Schedule) -> None:
    """Seeds for those workers that can record more, the idle ones first; starts workers as long as there is work."""
    while True:
        idlest = min(workers, key=lambda worker: len(worker.frames), default=None)
        may_start = len(workers) < config.workers and (idlest is None or idlest.frames)
        if not may_start and (idlest is None or len(idlest.frames) == config.envs_per_worker):
            return
        seed = schedule.next_seed()
        if seed is None:
            return
        if may_start or idlest is None:
            idlest = _start_worker(config, len(workers))
            workers.append(idlest)
        idlest.give(seed)


@contextmanager
def _worker_processes() -> Iterator[list[_Worker]]:
    """A list of workers, of which none is left afterwards."""
    workers: list[_Worker] = []
    try:
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
    what = (config.out, config.split, config.env, config.policy, config.max_episode_steps, config.envs_per_worker)
    process = context.Process(target=record_seeds, args=(theirs, *what), name=f"collect-{index}", daemon=True)
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
