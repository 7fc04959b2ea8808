"""Model and policy improve together: ``python -m agents.dyna --out RUN``.

Each round records episodes of the real environment with the policy that there is, goes on training the world model with
all that was recorded, trains the policy in the new dream, and scores it in reality. Every stage is a command of its own
that goes on where it was stopped, and so does this one, whenever it was killed. RUN/dyna.json has the commands, what
they took, and the scores.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from agents.learning.dyna_policy import VARIABLE
from wm_gym.comparison.config import DREAM_ID, REAL_ID
from wm_gym.files import write_json
from wm_gym.provenance import command_arguments, provenance
from wm_gym.seeds import FIRST_EVALUATION_SEED

STATE_FILE, LOCK_FILE, POLICY_FILE = "dyna.json", "lock", "policy.json"
FREE_TO_CHANGE = ("out", "rounds", "workers", "processes", "score_episodes")


@dataclass(frozen=True)
class DynaConfig:
    """Records, trains the world model, trains the policy in its dream, scores in reality; again and again."""

    out: Path
    """Folder of the run; an unfinished run in it is continued."""
    env: str = REAL_ID
    """The real environment."""
    rounds: int = 3
    """More of them can be added later."""
    frames: int = 100_000
    """Real frames recorded in each round."""
    first_policy: str = "random"
    """Records the first round: random, navigator (Memory Maze), or PACKAGE.MODULE:FUNCTION."""
    explore: float = 0.2
    """Part of the later rounds' episodes that it records, too."""
    recipe: str = "tiny"
    """Of training.train, in the first round."""
    later_recipe: str | None = None
    """In later rounds, which go on from the model before; None: the same."""
    model_arguments: str = ""
    """Further arguments of training.train: --model-arguments="--recipe.max-minutes 60"."""
    init_model: str | None = None
    """A checkpoint that the first round goes on from; None: it begins with nothing."""
    processes: int = 1
    """GPUs that train the world model."""
    dream: str = DREAM_ID
    """Id of the dream."""
    context_frames: int = 100
    """Real frames that a dream starts from."""
    clip_frames: int | None = None
    """Frames of each recorded clip, in which dreams start at several places; None: context_frames + 1."""
    clips: int = 64
    """Clips, of the newest episodes."""
    horizon: int = 400
    """Steps of a dream."""
    agent_arguments: str = ""
    """Further arguments of agents.ppo: --agent-arguments="--total-timesteps 20000000 --seeds 3 --memory"."""
    score_episodes: int = 50
    """Real episodes of each score, for each training seed of the policy."""
    check_seeds: int = 16
    """Real episodes in which the rewards of dreams are checked by agents.reward_check; 0: none."""
    workers: int = 1
    """Processes of real environments."""

    def __post_init__(self) -> None:
        for name in (
            "rounds",
            "frames",
            "processes",
            "context_frames",
            "clips",
            "horizon",
            "score_episodes",
            "workers",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.explore <= 1 or self.check_seeds < 0:
            raise ValueError(
                f"explore must be in [0, 1] and check_seeds at least 0, got {self.explore} and {self.check_seeds}."
            )


@dataclass(frozen=True)
class Stage:
    """A part of a round: a command that does nothing more once it is done."""

    name: str
    command: list[str]


def stages(config: DynaConfig, number: int) -> list[Stage]:
    """The stages of round `number`, from 0 on, in order."""
    folder, before = config.out / f"round_{number}", config.out / f"round_{number - 1}"
    data, model, clips = config.out / "data", folder / "model", folder / "clips.npz"
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={config.processes}"]
    launch = torchrun if config.processes > 1 else []
    recipe = config.later_recipe if number and config.later_recipe else config.recipe
    init = str(before / "model/model.safetensors") if number else config.init_model
    clip_frames = config.clip_frames or config.context_frames + 1
    dream = {
        "checkpoint": str(model / "model.safetensors"),
        "contexts": str(clips),
        "context_frames": config.context_frames,
        "horizon": config.horizon,
    }
    agent = str(folder / "agent")
    collect = [
        "--env",
        config.env,
        "--policy",
        "agents.learning.dyna_policy:act",
        "--frames",
        config.frames * (number + 1),
    ]
    train = ["--recipe", recipe, "--data", data, "--out", model, *(["--init", init] if init else [])]
    cut = ["--data", data, "--split", "train", "--newest", "--num-clips", config.clips]
    learn = ["--env", config.dream, "--env-kwargs", json.dumps(dream), "--real-env", config.env, "--out", agent]
    score = ["--policy", agent, "--env", config.env, "--episodes", config.score_episodes, "--workers", config.workers]
    result = [
        _stage("collect", "training.collect", [*collect, "--workers", config.workers, "--out", data]),
        _stage("model", "training.train", [*train, *shlex.split(config.model_arguments)], launch),
        _stage("clips", "training.make_clips", [*cut, "--num-frames", clip_frames, "--out", clips]),
        _stage(
            "agent",
            "agents.ppo",
            [*learn, *(["--init", before / "agent"] if number else []), *shlex.split(config.agent_arguments)],
        ),
        _stage("score", "agents.evaluate", [*score, "--out", folder / "score.json"]),
    ]
    if config.check_seeds:
        seeds = f"{FIRST_EVALUATION_SEED}-{FIRST_EVALUATION_SEED + config.check_seeds - 1}"
        check = ["--policy", agent, "--env", config.dream, "--env-kwargs", json.dumps(dream), "--real", config.env]
        check += ["--context", config.context_frames, "--context-policy", config.first_policy, "--seeds", seeds]
        check += ["--horizon", config.horizon, "--workers", config.workers, "--out", folder / "rewards.json"]
        result.append(_stage("rewards", "agents.reward_check", check))
    return result


def run(config: DynaConfig, argv: Sequence[str] = ()) -> dict[str, Any]:
    """Runs what is missing and returns what RUN/dyna.json holds.

    Raises:
        RuntimeError: a stage failed, or another process is at work in the folder. The same command goes on.
        ValueError: the folder holds a run of other settings, or something else.
    """
    state = _open(config, argv)
    with _lock(config.out) as lock:
        for number in range(config.rounds):
            done = state["rounds"].setdefault(str(number), {})
            for stage in stages(config, number):
                if stage.name in done:
                    continue
                if stage.name == "collect":
                    _write_policy(config, number)
                print(f"Round {number}, {stage.name}: {shlex.join(stage.command)}", flush=True)
                seconds = _call(stage, number, config.out, lock)
                done[stage.name] = {"command": shlex.join(["python", *stage.command[1:]]), "seconds": round(seconds, 1)}
                done[stage.name] |= _found(config.out / f"round_{number}", stage.name)
                write_json(config.out / STATE_FILE, state)
    return state


def describe(state: dict[str, Any]) -> str:
    """The scores of all rounds as text."""
    lines = []
    for number, done in state["rounds"].items():
        score, rewards = done.get("score", {}), done.get("rewards", {})
        if "mean_return" not in score:
            continue
        line = f"round {number}: real return {score['mean_return']:.2f}"
        if (interval := score["interval95"]) is not None:
            line += f" [{interval[0]:.2f}, {interval[1]:.2f}]"
        if rewards.get("precision") is not None:
            line += f", dreamed rewards that are real {rewards['precision']:.0%}"
        lines.append(line)
    return "\n".join(lines)


def _stage(name: str, module: str, arguments: Sequence[Any], launch: Sequence[str] = ()) -> Stage:
    return Stage(name, [sys.executable, *launch, "-m", module, *map(str, arguments)])


def _open(config: DynaConfig, argv: Sequence[str]) -> dict[str, Any]:
    """The state of the run in the folder, or that of a new one."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE_TO_CHANGE}
    path = config.out / STATE_FILE
    if not path.is_file():
        if config.out.exists() and any(config.out.iterdir()):
            raise ValueError(f"{config.out} has files that are no run of agents.dyna: give another --out.")
        state = {"settings": settings, "rounds": {}, **provenance("agents.dyna", argv)}
        write_json(path, state)
        return state
    state = json.loads(path.read_text())
    different = sorted(key for key in settings if state["settings"].get(key) != settings[key])
    if different:
        was = ", ".join(f"{key}={state['settings'].get(key)!r}" for key in different)
        raise ValueError(f"The run {config.out} has other settings ({was}): continue it with these, or give --out.")
    return state


def _write_policy(config: DynaConfig, number: int) -> None:
    """Tells `agents.learning.dyna_policy` who records the round."""
    previous = str(config.out / f"round_{number - 1}" / "agent") if number else None
    record = {"run": previous, "first_policy": config.first_policy, "explore": config.explore}
    write_json(config.out / POLICY_FILE, record)


def _call(stage: Stage, number: int, out: Path, lock: int) -> float:
    """Runs a stage; returns its seconds. A request to stop is passed on, and waits for the stage to end itself."""
    variables = {**os.environ, VARIABLE: str((out / POLICY_FILE).absolute())}
    started = time.monotonic()
    # The lock goes along: as long as the stage lives, even without its parent, no other one begins.
    process, stopped = subprocess.Popen(stage.command, env=variables, pass_fds=(lock,)), []

    def stop(*_: Any) -> None:
        stopped.append(True)
        process.terminate()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # it was interrupted as well
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if stopped:
        raise KeyboardInterrupt  # a stage that stops on request says that all went well
    if code != 0:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        raise RuntimeError(f"The stage {stage.name} of round {number} {how}; the same command goes on from there.")
    return time.monotonic() - started


def _found(folder: Path, stage: str) -> dict[str, Any]:
    """Figures of a stage that are shown for the whole run."""
    if stage == "score":
        report = json.loads((folder / "score.json").read_text())
        return {key: report.get(key) for key in ("mean_return", "interval95", "dreamed_return", "gap")}
    if stage == "rewards":
        figures = json.loads((folder / "rewards.json").read_text())["all"]
        return {key: figures[key] for key in ("precision", "recall", "dreamed_return", "real_return")}
    return {}


@contextmanager
def _lock(out: Path) -> Iterator[int]:
    """Holds the folder. Raises RuntimeError if another process does, such as a stage whose parent was killed."""
    lock = os.open(out / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"Another process is at work in {out}, perhaps a stage that outlived its parent: wait, or end it."
            ) from error
        yield lock
    finally:
        os.close(lock)


def main() -> int:
    """The command. Returns the exit status, 1 after an error."""
    try:
        arguments = command_arguments()
        print(describe(run(tyro.cli(DynaConfig, prog="python -m agents.dyna"), arguments)))
    except (OSError, RuntimeError, ValueError) as error:
        print(f"agents.dyna: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("agents.dyna: stopped; the same command goes on from there.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
