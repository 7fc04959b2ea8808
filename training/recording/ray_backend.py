"""Spreads collection over a Ray cluster: ``python -m training.collect --backend ray ...``.

Recorders are Ray actors, each with one core. They record and compress episodes and send the files; the collector alone
writes to the store, so that the nodes need no common file system. They need this project and its environments, at the
same path as on the node of the collector or installed.

When a recorder or its node dies, the episodes that were reported are in the store, the one that was being recorded is
recorded again elsewhere, and a new recorder takes the place of the dead one as soon as the cluster has a free core.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from training.recording.config import CollectConfig
from training.recording.episode import RecordingOptions, make_env, policy_seed, record_episode
from training.recording.policies import make_policy
from training.recording.schedule import Schedule
from training.store.episode import StoreHeader
from training.store.episode_files import episode_name, rename_if_new, temporary_name
from training.store.episode_store import EpisodeStore, EpisodeWriter, create_store
from wm_gym.cluster import ray_cluster

# An episode with which so many recorders died is taken for the cause.
MAX_ATTEMPTS = 3
SECONDS_BETWEEN_NOTICES = 30.0
SECONDS_BETWEEN_LOOKS = 0.5  # at what another collector has recorded meanwhile
# Decides on the renderer of an environment; a recorder gets it from the collector.
PASSED_ON = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
Files = dict[str, bytes]  # by path inside the episode's folder


class Recorder:
    """Records episodes in a process of the cluster; the actor's class."""

    def __init__(self, header: StoreHeader, split: str, variables: dict[str, str]) -> None:
        os.environ.update(variables)
        self._header, self._split = header, split
        self._options = RecordingOptions.from_json(header.recording)
        self._env = make_env(header.env_id, header.max_episode_steps, self._options)

    def node(self) -> str:
        """Name of the cluster's node; the answer comes when the recorder has a core and an environment."""
        import ray

        return ray.get_runtime_context().get_node_id()

    def record(self, seed: int) -> Files:
        """The files of the episode of a seed, as `EpisodeWriter` writes them."""
        attributes = {"policy": self._header.policy, "policy_seed": policy_seed(seed)}
        policy = make_policy(self._header.policy, self._env, attributes["policy_seed"])
        episode = record_episode(self._env, policy, seed, attributes, options=self._options)
        with tempfile.TemporaryDirectory() as folder:
            store = create_store(Path(folder) / "store", self._header)
            EpisodeWriter(store, self._split).write(episode)
            return _read_files(store.episode_path(seed, self._split))


@dataclass
class _Task:
    actor: Any
    node: str | None  # on which the actor is; None as long as it gets ready
    seed: int | None  # of the episode that it records


class _Recorders:
    """The actors and what each of them does."""

    def __init__(self, ray: Any, config: CollectConfig, header: StoreHeader, first_seed: int) -> None:
        self._ray = ray
        self._actor_class = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(Recorder)
        variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self._arguments = (header, config.split, variables)
        self._tasks: dict[Any, _Task] = {}  # by the reference to the result
        self._idle: list[tuple[Any, str]] = []  # actor, node
        self._again = deque([first_seed])  # to be given before those of the schedule
        self._deaths: Counter[int | None] = Counter()
        for _ in range(config.workers):
            self._start()

    def _start(self) -> None:
        actor = self._actor_class.remote(*self._arguments)
        self._tasks[actor.node.remote()] = _Task(actor, None, None)

    def give(self, schedule: Schedule) -> None:
        """Gives each idle recorder a seed, as long as there are any: first those whose recorder died."""
        while self._idle:
            seed = self._again.popleft() if self._again else schedule.next_seed()
            if seed is None:
                return
            actor, node = self._idle.pop()
            self._tasks[actor.record.remote(seed)] = _Task(actor, node, seed)

    def finished(self) -> Iterator[tuple[int, Files]]:
        """Waits for news; yields seeds with the files of their episodes. Replaces recorders that died.

        Raises RuntimeError if an episode fails, or kills its recorder again and again.
        """
        if not self._tasks:  # another collector records the rest
            time.sleep(SECONDS_BETWEEN_LOOKS)
            return
        done, _ = self._ray.wait(list(self._tasks), timeout=SECONDS_BETWEEN_NOTICES)
        if not done and not self._idle and all(task.seed is None for task in self._tasks.values()):
            _say(f"Waiting for the cluster: {len(self._tasks)} recorders need a core each.")
        for reference in done:
            task = self._tasks.pop(reference)
            try:
                answer = self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as error:
                raise RuntimeError(
                    f"The episode of seed {task.seed} failed on the cluster; finished episodes are kept.\n{error}"
                ) from error
            except self._ray.exceptions.RayError as error:
                self._replace(task, error)
                continue
            if task.seed is None or task.node is None:
                self._deaths[None] = 0
                self._idle.append((task.actor, answer))
            else:
                self._idle.append((task.actor, task.node))
                yield task.seed, answer

    def _replace(self, task: _Task, error: Exception) -> None:
        self._ray.kill(task.actor)  # what is only out of reach must not go on
        self._deaths[task.seed] += 1
        where = "while it got ready" if task.seed is None else f"on {task.node} in the episode of seed {task.seed}"
        if self._deaths[task.seed] >= MAX_ATTEMPTS:
            raise RuntimeError(
                f"{MAX_ATTEMPTS} recorders died, the last one {where}; finished episodes are kept.\n{error}"
            ) from error
        _say(f"A recorder died {where} ({type(error).__name__}); another one takes its place.")
        if task.seed is not None:
            self._again.append(task.seed)
        self._start()

    def stop(self) -> None:
        for actor in [*(actor for actor, _ in self._idle), *(task.actor for task in self._tasks.values())]:
            self._ray.kill(actor)


def collect_on_cluster(config: CollectConfig, store: EpisodeStore, schedule: Schedule) -> None:
    """Records what `schedule` gives out on `config.workers` recorders of the cluster at `config.ray_address`.

    Raises:
        ImportError: Ray is missing.
        ConnectionError: there is no cluster at the address.
        RuntimeError: an episode fails, or kills its recorder again and again.
    """
    while (first_seed := schedule.next_seed()) is None:
        if schedule.done:
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)  # another collector records all that is missing
    with ray_cluster(config.ray_address) as ray:
        recorders = _Recorders(ray, config, store.header, first_seed)
        try:
            with tqdm(
                total=config.frames, initial=schedule.finished_frames, unit=" frames", desc="collecting"
            ) as progress:
                while not schedule.done:
                    for seed, files in recorders.finished():
                        add_files(store, config.split, seed, files)
                        schedule.finish(seed, store.num_frames(seed, config.split))
                    recorders.give(schedule)
                    progress.update(schedule.finished_frames - progress.n)
        finally:
            recorders.stop()


def add_files(store: EpisodeStore, split: str, seed: int, files: Files) -> bool:
    """Adds an episode that another process has written, atomically; False if there is one of this seed already."""
    target = store.split_path(split) / episode_name(seed)
    temporary = target.with_name(temporary_name(seed))
    try:
        for name, content in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
        return rename_if_new(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _say(sentence: str) -> None:
    tqdm.write(sentence, file=sys.stderr)  # above the progress bar


def _read_files(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
