"""The command `wm-gym play`: what it can be told, and the stage that comes of it."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import gymnasium as gym
import torch

from wm_gym.checkpoint import load_checkpoint
from wm_gym.play.controls import Controls, controls_for
from wm_gym.play.denoising_steps import SHARP, Passes, choose_passes
from wm_gym.play.protocol import MAX_FPS, MIN_FPS
from wm_gym.play.session import MAX_MOMENTS, Session
from wm_gym.play.world import Recorder, World
from wm_gym.policies.base import WALKERS
from wm_gym.policies.loading import load_policy

if TYPE_CHECKING:
    from wm_gym.play.server import Stage

DREAM_ENTRY_POINT = "wm_gym.envs.world_model:WorldModelEnv"
DEFAULT_CONTEXT_FRAMES = 100


@dataclass(frozen=True)
class Play:
    """A page in the browser on which a dream is played, with --real beside the real environment under the same keys."""

    env: str = "LSSVWM-MemoryMaze-v0"
    """What is played, as gym.make takes it: a dream, or any environment that observes images; MODULE:ID imports."""
    real: bool = False
    """Shows the real environment too. Its first frames, walked by the navigator, are the context of the dream."""
    real_env: str = "wm_gym/MemoryMaze-9x9-v0"
    """Which one that is; its spaces must be those of `env`."""
    checkpoint: str | None = None
    """Of the dream: packaged name, path, or Hugging Face Hub id."""
    contexts: str | None = None
    """Clips from which dreams start without --real: packaged name or path."""
    context_frames: int | None = None
    """Real frames that a dream reads first; 100 if not given."""
    denoising_steps: Literal["auto"] | int = "auto"
    """Network passes per dreamed frame. One predicts the mean of what may come, and blurs; two draw a sharp sample.
    auto measures a step as the server starts: two where it takes 80 ms at most, which keeps 10 frames/s, else one."""
    device: str = "cpu"
    """Where the model runs."""
    env_kwargs: str = "{}"
    """Further arguments of gym.make for `env`, as a JSON object: '{"horizon": 5000}'."""
    policy: str | None = None
    """Plays until a key takes over: random, navigator (needs --real), PACKAGE.MODULE:FUNCTION, or a model PATH.zip of
    Stable-Baselines3."""
    record_dir: Path | None = None
    """Folder for recordings, an episode store for each environment, which training reads."""
    recorder: str = "training.record:RecordEpisodes"
    """PACKAGE.MODULE:CLASS that records: called as CLASS(env, path), it gives an environment that writes its episodes
    to `path`. The default comes with this repository, not with the wheel."""
    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 lets everybody in who can reach this machine."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    allow_host: tuple[str, ...] = ()
    """Further names under which pages may reach the server, such as that of a proxy before it."""
    max_players: int = 4
    """Players at a time; each has a dream of their own, and all share the weights."""
    fps: float = 10.0
    """Frames per second in the beginning; the page can change it."""


def run_play(config: Play) -> None:
    """Serves until it is interrupted.

    Raises:
        ImportError: the extra web, or a package that an environment needs, is missing.
        OSError: the port is taken.
        TypeError, ValueError, FileNotFoundError: an argument that does not fit.
    """
    try:
        from wm_gym.play import server
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "starlette", "uvicorn"):
            raise
        raise ImportError("wm-gym play needs FastAPI and uvicorn: `pip install 'wm-gym[web]'`.") from error
    # First of all the port: to find it taken should not cost the loading of a model.
    with server.listen(config.host, config.port) as listener:
        # In a thread that ends: OpenMP keeps a team for each thread that has computed, and once the teams have more
        # threads than there are cores, all of them wait asleep, which made a player's steps 1.6 times as slow.
        with ThreadPoolExecutor(max_workers=1) as setting_up:
            stage = setting_up.submit(make_stage, config).result()
        app = server.make_app(stage, config.allow_host)
        host = f"[{config.host}]" if ":" in config.host else config.host
        print(f"wm-gym play: open http://{host}:{listener.getsockname()[1]} (Ctrl-C stops it)", flush=True)
        if (passes := stage.welcome["main"]["passes"]) is not None:
            print(passes["reason"], flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.make_server(app).run(sockets=[listener])


def make_stage(config: Play) -> Stage:
    """Checks everything that can be checked before a player comes. Raises as `run_play`."""
    from wm_gym.play.server import Stage

    if not MIN_FPS <= config.fps <= MAX_FPS:
        raise ValueError(f"fps must be from {MIN_FPS:.0f} to {MAX_FPS:.0f}, got {config.fps}.")
    if config.max_players < 1:
        raise ValueError(f"max_players must be at least 1, got {config.max_players}.")
    if config.record_dir is not None and config.record_dir.exists() and not config.record_dir.is_dir():
        raise ValueError(f"record_dir must be a folder, and {config.record_dir} is a file.")
    troupe = Troupe(config)
    return Stage(troupe.make_session, troupe.welcome(), troupe.controls.idle_action, config.fps, config.max_players)


class Troupe:
    """Makes the sessions of a server: each has environments of its own, and the dreams share their weights."""

    def __init__(self, config: Play) -> None:
        self._config = config
        self._is_dream, self._arguments = _arguments(config)
        # Where the number of passes is not settled yet, this one is made for trying out what two of them cost.
        untold = {"num_denoising_steps": SHARP} if self._is_dream else {}
        self._first = _make(config.env, untold | self._arguments)
        if self._is_dream and config.policy in WALKERS and not config.real:
            raise ValueError(f"The {config.policy} reads the map of the real maze: add --real.")
        self.label = "dream" if self._is_dream else "environment"
        World(self._first, self.label)
        name = _played_environment(config, self._is_dream, self._arguments)
        self.controls: Controls = controls_for(self._first.action_space, name, config.policy is not None)
        if config.policy is not None:
            load_policy(config.policy, self._first)
        self._passes = self._try_out()
        self._recorder = None if config.record_dir is None else _import_recorder(config.recorder)
        self._recording_lock = threading.Lock()
        # Two threads can use a CPU side by side. On a GPU they would only disturb each other's graph captures.
        on_gpu = torch.device(config.device).type == "cuda"
        self._device_lock: AbstractContextManager[Any] | None = threading.Lock() if on_gpu else None

    def make_session(self) -> Session:
        """A session for one more player, to be used in the thread that calls this."""
        config = self._config
        with self._device_lock or contextlib.nullcontext():
            env = _make(config.env, self._arguments)
            if self._is_dream:
                share_weights(self._first, env)
        real = World(_make(config.real_env, {}), "real") if config.real else None
        policy = None if config.policy is None else load_policy(config.policy, env)
        main = World(env, self.label, self._device_lock)
        makers = None if self._recorder is None else lambda: self._make_recorders(main, real)
        return Session(main, real, policy, makers, config.context_frames or DEFAULT_CONTEXT_FRAMES)

    def welcome(self) -> dict[str, Any]:
        """What the page is told first."""
        config = self._config
        return {
            "main": {"label": self.label, "id": config.env, "passes": self._passes and self._passes.to_json()},
            "real": {"label": "real", "id": config.real_env} if config.real else None,
            "controls": self.controls.to_json(),
            "policy": config.policy,
            "can_record": config.record_dir is not None,
            "fps": config.fps,
            "fps_range": [MIN_FPS, MAX_FPS],
            "max_moments": MAX_MOMENTS,
        }

    def _try_out(self) -> Passes | None:
        """Checks how episodes begin, and settles how many network passes a frame gets. None if nothing is dreamed."""
        with contextlib.ExitStack() as stack:
            others = []
            if self._config.real:
                others.append(stack.enter_context(contextlib.closing(_make(self._config.real_env, {}))))
                self._check_spaces(others[0])
            else:
                # So that clips that are not there, or too short, are known before anybody comes.
                self._first.reset(seed=0)
            if not self._is_dream:
                return None
            if "num_denoising_steps" in self._arguments:
                return Passes(self._arguments["num_denoising_steps"])
            passes = choose_passes(self._first, others)
        self._arguments["num_denoising_steps"] = passes.number
        return passes

    def _check_spaces(self, real: gym.Env[Any, Any]) -> None:
        ours, theirs = self._first, real
        if (ours.observation_space, ours.action_space) != (theirs.observation_space, theirs.action_space):
            raise ValueError(
                "Only environments of the same spaces can be played side by side: "
                f"{self._config.env} has {ours.observation_space} and {ours.action_space}, "
                f"{self._config.real_env} has {theirs.observation_space} and {theirs.action_space}."
            )

    def _make_recorders(self, main: World, real: World | None) -> list[Recorder]:
        """A recorder for each world, into one store for each environment."""
        folder, recorder = self._config.record_dir, self._recorder
        assert folder is not None and recorder is not None

        def into(env_id: str) -> Recorder:
            path = folder / re.sub(r"[^\w.-]+", "-", env_id)

            def record(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
                with self._recording_lock:  # two players may make the same store at the same time
                    return recorder(env, path)

            return record

        return [into(self._config.env)] + ([] if real is None else [into(self._config.real_env)])


def share_weights(source: gym.Env[Any, Any], target: gym.Env[Any, Any]) -> None:
    """Lets a dream use the weights of another one of the same checkpoint; its own copy is freed."""
    models = [env.unwrapped.model for env in (source, target)]  # pyright: ignore[reportAttributeAccessIssue]
    for theirs, own in zip(models[0].parameters(), models[1].parameters(), strict=True):
        own.data = theirs.data


def _arguments(config: Play) -> tuple[bool, dict[str, Any]]:
    """Whether `env` is a dream, and what gym.make is given for it."""
    try:
        kwargs = json.loads(config.env_kwargs)
    except json.JSONDecodeError as error:
        raise ValueError(f"env_kwargs must be a JSON object, got {config.env_kwargs!r} ({error}).") from error
    if not isinstance(kwargs, dict):
        raise ValueError(f"env_kwargs must be a JSON object, got {config.env_kwargs!r}.")
    of_dreams = {"checkpoint": config.checkpoint, "contexts": config.contexts, "context_frames": config.context_frames}
    given: dict[str, Any] = {name: value for name, value in of_dreams.items() if value is not None}
    if _spec(config.env).entry_point != DREAM_ENTRY_POINT:
        if given:
            raise ValueError(f"{config.env} is not a dream of ours: it takes no {' and no '.join(given)}.")
        return False, kwargs
    if config.denoising_steps != "auto":
        given["num_denoising_steps"] = config.denoising_steps
    return True, {"device": config.device, **given, **kwargs}


def _spec(env_id: str) -> Any:
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gym.spec(name)
    except gym.error.Error as error:
        raise ValueError(f"There is no environment {env_id!r}: {error}") from error


def _make(env_id: str, arguments: dict[str, Any]) -> gym.Env[Any, Any]:
    try:
        # The checker would step what a player has not begun to play, and warn on the console of a server.
        return gym.make(env_id, disable_env_checker=True, **arguments)
    except gym.error.Error as error:
        raise ValueError(f"Cannot make {env_id!r}: {error}") from error


def _played_environment(config: Play, is_dream: bool, arguments: dict[str, Any]) -> str:
    """Id of the real environment that is played, or dreamed of as far as the checkpoint tells."""
    if config.real:
        return config.real_env
    if not is_dream:
        return config.env
    checkpoint = arguments.get("checkpoint", "memory-maze")
    return str(load_checkpoint(checkpoint).metadata.get("env_id", ""))


def _import_recorder(spec: str) -> Callable[[gym.Env[Any, Any], Path], gym.Env[Any, Any]]:
    module, _, name = spec.partition(":")
    try:
        recorder = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError) as error:
        raise ImportError(
            f"Recording needs {spec}, which cannot be imported ({error}): run the command in the root of the "
            "repository with the extra train installed, or give --recorder."
        ) from error
    if not callable(recorder):
        raise ValueError(f"The module {module} has no {name!r} that could record.")
    return cast(Callable[[gym.Env[Any, Any], Path], gym.Env[Any, Any]], recorder)
