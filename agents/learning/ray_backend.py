"""Spreads training over a Ray cluster: ``python -m agents.ppo --backend ray ...``.

Each policy is trained by an actor on some node. Its files (models, scores, curves) come to this machine while it
learns, so that the nodes need no common file system; they need this project, its environments, and the checkpoints and
clips of dreams at the same paths. When a node dies, the policy is trained on elsewhere from what had come.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from agents.learning.config import PpoConfig
from agents.learning.real_score import SCORES_FILE
from agents.policies.loading import CONFIG_FILE
from wm_gym.cluster import ray_cluster
from wm_gym.files import atomic_path

MAX_ATTEMPTS = 3  # of a policy whose learners die
SECONDS_BETWEEN_COPIES = 20.0
# Decides on the renderer of an environment; a learner gets it from this process.
PASSED_ON = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
Job = tuple[PpoConfig, int]  # a run and a training seed
TrainSeed = Callable[[PpoConfig, int], None]
Files = dict[str, bytes]  # by path inside the run's folder


class Learner:
    """Trains one policy in a process of the cluster, in a folder of its own; the actor's class."""

    def __init__(self, job: Job, train_seed: TrainSeed, files: Files, variables: dict[str, str]) -> None:
        os.environ.update(variables)
        self._folder = tempfile.TemporaryDirectory()
        config, self._seed = job
        self._config = dataclasses.replace(config, out=Path(self._folder.name) / "run")
        self._train_seed = train_seed
        write_files(self._config.out, files)
        self._sent = _marks(self._config.out)

    def train(self) -> None:
        """Trains to the end."""
        self._train_seed(self._config, self._seed)

    def changes(self) -> Files:
        """The files that are new or others than at the last call. Runs beside `train`."""
        marks = _marks(self._config.out)
        changed = [name for name, mark in marks.items() if self._sent.get(name) != mark]
        self._sent = marks
        return read_files(self._config.out, changed)


@dataclass
class _Task:
    job: Job
    actor: Any
    training: Any  # reference to the end of training
    copying: Any = None  # reference to changed files, if they were asked for
    copied: float = field(default_factory=time.monotonic)


class _Learners:
    """The actors, each with its job."""

    def __init__(self, ray: Any, train_seed: TrainSeed, cpus: int, gpus: float) -> None:
        self._ray, self._train_seed = ray, train_seed
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        # One thread trains, the other sends files.
        self._actor_class = ray.remote(max_concurrency=2, **options)(Learner)
        self._variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self._deaths: dict[str, int] = {}
        self.tasks: list[_Task] = []

    def start(self, job: Job) -> None:
        folder = job[0].out
        own = [name for name in _marks(folder) if name == CONFIG_FILE or name.startswith(f"seed_{job[1]}/")]
        actor = self._actor_class.remote(job, self._train_seed, read_files(folder, own), self._variables)
        self.tasks.append(_Task(job, actor, actor.train.remote()))

    def look(self, seconds: float) -> int:
        """Waits for news, at most so long. Returns how many policies are done. Raises RuntimeError if one failed."""
        exceptions, done = self._ray.exceptions, 0
        self._ray.wait([task.training for task in self.tasks], timeout=seconds)
        for task in list(self.tasks):
            ended = bool(self._ray.wait([task.training], timeout=0)[0])
            try:
                if ended:
                    self._ray.get(task.training)
                self._copy(task, ended)
            except exceptions.RayTaskError as error:
                raise RuntimeError(f"Training of {_name(task.job)} failed on the cluster.\n{error}") from error
            except exceptions.RayError as error:
                self._replace(task, error)
                continue
            if ended:
                self._ray.kill(task.actor)
                self.tasks.remove(task)
                done += 1
        return done

    def stop(self) -> None:
        for task in self.tasks:
            self._ray.kill(task.actor)

    def _copy(self, task: _Task, now: bool) -> None:
        """Brings files here: what was asked for and has come; at the end of training, all that is missing."""
        if task.copying is not None and (now or self._ray.wait([task.copying], timeout=0)[0]):
            write_files(task.job[0].out, self._ray.get(task.copying))
            task.copying, task.copied = None, time.monotonic()
        if now:
            write_files(task.job[0].out, self._ray.get(task.actor.changes.remote()))
        elif task.copying is None and time.monotonic() - task.copied > SECONDS_BETWEEN_COPIES:
            task.copying = task.actor.changes.remote()

    def _replace(self, task: _Task, error: Exception) -> None:
        self._ray.kill(task.actor)  # what is only out of reach must not go on
        self.tasks.remove(task)
        name = _name(task.job)
        self._deaths[name] = self._deaths.get(name, 0) + 1
        if self._deaths[name] >= MAX_ATTEMPTS:
            raise RuntimeError(f"{MAX_ATTEMPTS} learners of {name} died; what they saved is kept.\n{error}") from error
        tqdm.write(f"The learner of {name} died ({type(error).__name__}); another one goes on.", file=sys.stderr)
        self.start(task.job)


def train_on_cluster(jobs: Sequence[Job], train_seed: TrainSeed, address: str | None, cpus: int, gpus: float) -> None:
    """Trains policies at the same time, as many as the cluster has room for.

    Args:
        jobs: runs with config.json in their folders, and training seeds.
        train_seed: trains one policy in the folder of its run.
        address: of the cluster.
        cpus, gpus: for each policy.

    Raises:
        ImportError: Ray is missing.
        ConnectionError: there is no cluster at the address.
        RuntimeError: training failed, or killed its learner again and again.
    """
    if not jobs:
        return
    with ray_cluster(address) as ray:
        learners = _Learners(ray, train_seed, cpus, gpus)
        try:
            for job in jobs:
                learners.start(job)
            with tqdm(total=len(jobs), unit=" policies", desc="training") as progress:
                while learners.tasks:
                    progress.update(learners.look(SECONDS_BETWEEN_COPIES))
        finally:
            learners.stop()


def read_files(folder: Path, names: Sequence[str]) -> Files:
    """Files of a folder by their paths in it.

    Scores are read first, and written last: they never tell of a model that is newer than the one beside them.
    """
    first_scores = sorted(names, key=lambda name: Path(name).name != SCORES_FILE)
    return {name: (folder / name).read_bytes() for name in first_scores}


def write_files(folder: Path, files: Files) -> None:
    """Writes files of `read_files`, each as a whole or not at all. What is left out stays as it is."""
    for name, content in reversed(files.items()):
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(content)


def _marks(folder: Path) -> dict[str, tuple[int, int]]:
    """What tells files that were changed; half-written ones, whose names begin with a dot, are left out."""
    marks = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            stat = path.stat()
            marks[str(path.relative_to(folder))] = stat.st_mtime_ns, stat.st_size
    return marks


def _name(job: Job) -> str:
    return f"{job[0].out.name}/seed_{job[1]}"
