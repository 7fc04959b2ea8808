"""One file of figures about agents: ``python -m agents.summary --runs dream=RUN --scores dream=JSON --out JSON``.

It puts together what agents.ppo, agents.evaluate and agents.reward_check have left, every training seed of it, says
what of it is missing, and draws the learning curves beside the file.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import tyro

from agents.environments.settings import EnvSpec
from agents.learning.real_score import read_scores
from agents.policies.loading import CONFIG_FILE
from agents.scoring.learning_curves import read_learning, write_curves
from wm_gym.files import write_json
from wm_gym.provenance import command_arguments, provenance
from wm_gym.statistics import interval95

Record = dict[str, Any]
SOURCE = ("command", "commit", "hardware", "packages", "date")
# In a spelled-out command or a JSON string; a URL's slashes follow a colon.
ABSOLUTE_FOLDER = re.compile(r"(?<![\w.:/-])/(?:[\w.+-]+/)+")


@dataclass(frozen=True)
class SummaryConfig:
    """Puts the figures of several agents into one file, with a plot of how they learned."""

    out: Path
    """JSON file; the plot is a PNG of the same name."""
    runs: tuple[str, ...] = ()
    """Runs of agents.ppo, as NAME=FOLDER."""
    scores: tuple[str, ...] = ()
    """Files of agents.evaluate, as NAME=FILE. Those of a run have its name, or one that goes on with a blank."""
    floor: str = "random"
    """Name of the scores that the others are held against, maze by maze."""
    rewards: tuple[str, ...] = ()
    """Files about the rewards in dreams (agents.reward_check, training.dream_rewards), as NAME=FILE."""
    notes: tuple[str, ...] = ()
    """Sentences that a reader of the figures must know."""

    def __post_init__(self) -> None:
        if not self.runs and not self.scores:
            raise ValueError("Nothing to put together: give --runs or --scores.")


def summarize(config: SummaryConfig, argv: Sequence[str] = ()) -> Record:
    """All figures, as they go into the file; what is missing comes first.

    Raises:
        FileNotFoundError: no such file or run.
        ValueError: what is given is no NAME=PATH, or a file is not what it should be.
    """
    training = {name: _training(path) for name, path in _named(config.runs).items()}
    scores = {name: _read(path, ("by_model", "results", "environment")) for name, path in _named(config.scores).items()}
    floor = scores.get(config.floor)
    record = {
        "notes": list(config.notes),
        "missing": [
            *(line for name, one in training.items() for line in _untrained(name, one)),
            *(line for name, one in scores.items() for line in _unplayed(name, one)),
        ],
        "floor": config.floor if floor is not None else None,
        "scores": {name: _score(one, floor) for name, one in scores.items()},
        "speed": _speed(training),
        "rewards_in_dreams": {name: _read(path, ("command",)) for name, path in _named(config.rewards).items()},
        "training": training,
        **provenance("agents.summary", argv),
    }
    return _without_folders(record)


def _named(pairs: Sequence[str]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for pair in pairs:
        name, separator, path = pair.partition("=")
        if not separator or not name or not path or name in named:
            raise ValueError(f"Files and runs are given as NAME=PATH, each with a name of its own; got {pair!r}.")
        named[name] = Path(path)
    return named


def _read(path: Path, keys: Sequence[str]) -> Record:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        record = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}).") from error
    missing = [key for key in keys if not isinstance(record, dict) or key not in record]
    if missing:
        raise ValueError(f"{path} is not a file of results: it has no {', '.join(missing)}.")
    return record


def _training(run: Path) -> Record:
    """What a run was to do, how far each training seed came, and how it learned."""
    config = _read(run / CONFIG_FILE, ("settings", "train"))
    folders = sorted(run.glob("seed_*"), key=lambda path: int(path.name.removeprefix("seed_")))
    seeds = {}
    for folder in folders:
        learning = read_learning(folder)
        last = [points[-1][0] for points in learning.values() if points]
        scores = read_scores(folder)
        seeds[folder.name] = {
            "timesteps": max([*last, *(one["timesteps"] for one in scores)], default=0),
            "scores": scores,
            "learning": learning,
        }
    return {
        "is_dream": EnvSpec(config["train"]["env"]).is_dream(),
        "planned": {
            "timesteps": _option(config, "--total-timesteps"),
            "minutes": _option(config, "--minutes"),
            "seeds": _option(config, "--seeds"),
        },
        "settings": config["settings"],
        "seeds": seeds,
        **{key: config[key] for key in SOURCE if key in config},
    }


def _option(config: Record, name: str) -> float | None:
    """An option of the command behind a run; None if it was not given."""
    words = shlex.split(config.get("command", ""))
    return float(words[words.index(name) + 1]) if name in words[:-1] else None


def _untrained(name: str, training: Record) -> list[str]:
    """What of a run was not trained, unless it was to end after a time."""
    planned, lines = training["planned"], []
    if planned["seeds"] is not None and len(training["seeds"]) < planned["seeds"]:
        lines.append(f"{name}: {len(training['seeds'])} of {planned['seeds']:.0f} training seeds were begun")
    if planned["timesteps"] is None or planned["minutes"] is not None:
        return lines
    for seed, one in training["seeds"].items():
        if one["timesteps"] < planned["timesteps"] and not any(score["stopped"] for score in one["scores"]):
            lines.append(f"{name}, {seed}: {one['timesteps']:,} of {planned['timesteps']:,.0f} steps were trained")
    return lines


def _unplayed(name: str, record: Record) -> list[str]:
    played = {model: len(results) for model, results in record["results"].items()}
    words = shlex.split(record.get("command", ""))
    wanted = (
        int(words[words.index("--episodes") + 1]) if "--episodes" in words[:-1] else max(played.values(), default=0)
    )
    models = [*record.get("model_digests", {}), *played]
    return [
        f"{name}, {model}: {played.get(model, 0)} of {wanted} episodes were played"
        for model in dict.fromkeys(models)
        if played.get(model, 0) < wanted
    ]


def _score(record: Record, floor: Record | None) -> Record:
    """The figures of a file of agents.evaluate; against the floor, if both played in the same environment."""
    by_model = {}
    for model, figures in record["by_model"].items():
        episodes = record["results"][model]
        by_model[model] = {**figures, "returns": {str(one["seed"]): one["return"] for one in episodes}}
        if floor is not None and floor is not record and _same_task(record, floor):
            by_model[model]["above_floor"] = _above(episodes, next(iter(floor["results"].values())))
    keys = ("policy", "model_digests", "environment", "mean_return", "interval95", "interval_over")
    keys += ("dreamed_return", "gap", *SOURCE)
    return {**{key: record[key] for key in keys if key in record}, "by_model": by_model}


def _same_task(one: Record, other: Record) -> bool:
    return all(one["environment"][key] == other["environment"][key] for key in ("env", "kwargs", "max_episode_steps"))


def _above(episodes: Sequence[Record], floor: Sequence[Record]) -> Record | None:
    """By how much the return is above the floor's in the same episodes, with its interval over them."""
    floors = {one["seed"]: one["return"] for one in floor}
    differences = [one["return"] - floors[one["seed"]] for one in episodes if one["seed"] in floors]
    if not differences:
        return None
    return {
        "episodes": len(differences),
        "mean": sum(differences) / len(differences),
        "interval95": interval95(differences),
    }


def _speed(training: dict[str, Record]) -> Record:
    """Frames per second with learning, of the fastest stretch between two scores; each dream against each real run."""
    fastest = {}
    for name, run in training.items():
        speeds = [one["frames_per_second"] for seed in run["seeds"].values() for one in seed["scores"]]
        if known := [speed for speed in speeds if speed is not None]:
            fastest[name] = max(known)
    ratios = {
        f"{dream} / {real}": fastest[dream] / fastest[real]
        for dream in fastest
        for real in fastest
        if training[dream]["is_dream"] and not training[real]["is_dream"]
    }
    return {"frames_per_second": fastest, "ratios": ratios}


def _without_folders(value: Any) -> Any:
    """The same record, with absolute paths reduced to their names, which mean the same elsewhere."""
    if isinstance(value, dict):
        return {key: _without_folders(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(one) for one in value]
    return ABSOLUTE_FOLDER.sub("", value) if isinstance(value, str) else value


def describe(record: Record) -> str:
    """The figures as a few lines of text."""
    lines = []
    for name, score in record["scores"].items():
        for model, one in score["by_model"].items():
            low_high = one["interval95"]
            interval = "" if low_high is None else f" [{low_high[0]:.2f}, {low_high[1]:.2f}]"
            label = name if model == "policy" else f"{name}, {model}"
            lines.append(f"{label}: {one['mean_return']:.2f}{interval} over {one['episodes']} episodes")
    lines += [f"{name}: {speed:,.0f} frames/s" for name, speed in record["speed"]["frames_per_second"].items()]
    lines += [f"{name}: {ratio:.0f} times" for name, ratio in record["speed"]["ratios"].items()]
    return "\n".join([*lines, *(f"missing: {line}" for line in record["missing"])])


def main() -> int:
    """The command. Returns the exit status, 1 after an error."""
    try:
        config = tyro.cli(SummaryConfig, prog="python -m agents.summary")
        record = summarize(config, command_arguments())
        write_curves(config.out.with_suffix(".png"), record)
        write_json(config.out, record)
        print(describe(record))
    except (ImportError, OSError, ValueError, gym.error.Error) as error:
        print(f"agents.summary: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
