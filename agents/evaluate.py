"""Scores a policy in an environment: ``python -m agents.evaluate --policy P --env ID --episodes 50 --out JSON``.

The file is written after every episode, and the same command goes on where it stopped. Episode i is that of environment
seed `seed + i`, whoever acts and in however many processes.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
import tyro
from scipy.special import stdtrit
from tqdm import tqdm

from agents.environments import EnvSpec, parse_kwargs
from agents.policies import CONFIG_FILE, policy_maker, run_memory, run_models
from wm_gym.files import write_json
from wm_gym.provenance import command_arguments, provenance

FIRST_EVALUATION_SEED = 7_000_000
POLICY_STREAM = 1 << 32  # keeps a policy's random numbers apart from those of its environment

Result = dict[str, Any]  # {"seed": int, "return": float, "length": int}


@dataclass(frozen=True)
class EvaluateConfig:
    """Scores a policy over whole episodes: mean return and its 95% interval."""

    policy: str
    """random, navigator, oracle, PACKAGE.MODULE:FUNCTION, a Stable-Baselines3 file, or the folder of a run of
    agents.ppo, whose training seeds are all scored."""
    out: Path
    """JSON file."""
    env: str = "wm_gym/MemoryMaze-9x9-v0"
    """Environment id."""
    env_kwargs: str = "{}"
    """Further arguments of gym.make, as JSON."""
    episodes: int = 50
    """Number of episodes, for each training seed of a run."""
    seed: int = FIRST_EVALUATION_SEED
    """Seed of the first episode; nothing is trained on those from 7,000,000 on."""
    workers: int = 0
    """Number of processes; 0: one per core. 1: none beside this one."""
    max_episode_steps: int | None = None
    """Truncates episodes; None: as the environment does."""

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.workers < 0 or self.seed < 0:
            raise ValueError(
                f"episodes must be at least 1, workers and seed at least 0, got {self.episodes}, {self.workers} and "
                f"{self.seed}."
            )


def evaluate(config: EvaluateConfig, argv: Sequence[str] = ()) -> dict[str, Any]:
    """Plays what is missing in `config.out` and returns the figures over all of its episodes, as the file has them.

    Raises:
        FileNotFoundError: no such run, model or checkpoint.
        ValueError: a policy that does not fit the environment, or a file with the results of other settings.
    """
    is_run = (Path(config.policy) / CONFIG_FILE).is_file()
    run = Path(config.policy)
    models = {name: str(path) for name, path in run_models(run).items()} if is_run else {"policy": config.policy}
    memory = run_memory(run) if is_run else None
    spec = EnvSpec(config.env, parse_kwargs(config.env_kwargs), config.max_episode_steps, memory)
    settings = {
        "policy": _portable(config.policy),
        "model_digests": {name: _digest(path) for name, path in models.items()},
        "environment": spec.to_json(),
        "first_seed": config.seed,
    }
    results = _kept_results(config.out, settings)
    for name, path in models.items():
        done = results.setdefault(name, [])
        seeds = range(config.seed, config.seed + config.episodes)
        missing = sorted(set(seeds) - {result["seed"] for result in done})
        for result in score(spec, path, missing, config.workers):
            done.append(result)
            done.sort(key=lambda one: one["seed"])
            write_json(config.out, _report(settings, results, argv))
    report = _report(settings, results, argv)
    if is_run and (dreamed := _dreamed(run, report)) is not None:
        report |= dreamed
    write_json(config.out, report)
    return report


def score(spec: EnvSpec, policy: str, seeds: Sequence[int], workers: int = 1) -> Iterator[Result]:
    """Plays the episodes of `seeds`, in any order; the result of each comes when it ends.

    Args:
        spec: the environment; every process makes one.
        policy: as `EvaluateConfig.policy`, but a file in place of a run.
        seeds: of the episodes.
        workers: processes, 0 for one per core; with 1 all is done in this one.

    Raises what making the environment or the policy raises; RuntimeError if a process dies.
    """
    workers = min(workers or os.cpu_count() or 1, len(seeds))
    if workers <= 1:
        env, make = spec.make() if seeds else None, policy_maker(policy)
        try:
            for seed in tqdm(seeds, desc="episodes", leave=False, disable=None):
                assert env is not None
                yield play(env, make, seed)
        finally:
            if env is not None:
                env.close()
        return
    # Spawned, for a renderer or a CUDA context does not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (spec, policy)) as pool:
        futures = [pool.submit(_play_in_worker, seed) for seed in seeds]
        try:
            for future in tqdm(as_completed(futures), total=len(seeds), desc="episodes", leave=False, disable=None):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def play(env: gym.Env[Any, Any], make: Callable[[gym.Env[Any, Any], int], Any], seed: int) -> Result:
    """One whole episode of the environment's `seed`, with a policy that is decided by the seed, too."""
    policy = make(env, seed + POLICY_STREAM)
    obs, info = env.reset(seed=seed)
    policy.reset(info)
    total, length, ended = 0.0, 0, False
    while not ended:
        obs, reward, terminated, truncated, info = env.step(policy(obs, info))
        total, length, ended = total + float(reward), length + 1, terminated or truncated
    return {"seed": seed, "return": total, "length": length}


def interval95(values: Sequence[float]) -> list[float] | None:
    """Student's 95% confidence interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = float(stdtrit(len(values) - 1, 0.975)) * deviation / math.sqrt(len(values))
    return [mean - half, mean + half]


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Mean return of episodes, its interval, and mean length."""
    returns = [result["return"] for result in results]
    return {
        "episodes": len(returns),
        "mean_return": math.fsum(returns) / len(returns),
        "interval95": interval95(returns),
        "mean_length": math.fsum(result["length"] for result in results) / len(results),
    }


class _Worker:
    """What a process keeps between its episodes."""

    env: gym.Env[Any, Any]
    make: Callable[[gym.Env[Any, Any], int], Any]


def _start_worker(spec: EnvSpec, policy: str) -> None:
    torch.set_num_threads(1)
    _Worker.env = spec.make()
    _Worker.make = policy_maker(policy)


def _play_in_worker(seed: int) -> Result:
    return play(_Worker.env, _Worker.make, seed)


def _portable(policy: str) -> str:
    return Path(policy).name if Path(policy).is_absolute() else policy


def _digest(policy: str) -> str | None:
    """What tells a model file from the one that it was; None for a policy that is no file."""
    return hashlib.sha256(Path(policy).read_bytes()).hexdigest()[:16] if Path(policy).is_file() else None


def _kept_results(path: Path, settings: dict[str, Any]) -> dict[str, list[Result]]:
    """The episodes that an earlier call has played."""
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text())
        kept, results = {key: record[key] for key in settings}, record["results"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file of agents.evaluate ({error}): give another --out.") from error
    different = [key for key in settings if kept[key] != settings[key]]
    if different:
        was = ", ".join(f"{key}={kept[key]!r}" for key in different)
        raise ValueError(f"{path} holds results of other settings ({was}): give another --out.")
    return results


def _report(settings: dict[str, Any], results: dict[str, list[Result]], argv: Sequence[str]) -> dict[str, Any]:
    """All figures. Over several training seeds the interval is that of their means; else it is over episodes."""
    played = {name: one for name, one in results.items() if one}
    by_model = {name: summary(one) for name, one in played.items()}
    means = [one["mean_return"] for one in by_model.values()]
    return {
        **settings,
        "mean_return": math.fsum(means) / len(means),
        "interval95": interval95(means) if len(means) > 1 else next(iter(by_model.values()))["interval95"],
        "interval_over": "training seeds" if len(means) > 1 else "episodes",
        "by_model": by_model,
        "results": results,
        **provenance("agents.evaluate", argv),
    }


def _dreamed(run: Path, report: dict[str, Any]) -> dict[str, Any] | None:
    """What the agents of a run got in their dreams, over as many steps as the real episodes had, and the gap."""
    rates = []
    for name in report["by_model"]:
        path = run / name / "dreamed.json"
        if not path.is_file():
            return None
        rates.append(json.loads(path.read_text())["reward_per_step"])
    lengths = [one["mean_length"] for one in report["by_model"].values()]
    dreamed = sum(rate * length for rate, length in zip(rates, lengths, strict=True)) / len(rates)
    return {"dreamed_return": dreamed, "gap": gap(dreamed, report["mean_return"])}


def gap(dreamed: float, real: float) -> float | None:
    """The part of the dreamed return that reality did not give, (dreamed - real) / dreamed; None without any."""
    return None if dreamed == 0 else (dreamed - real) / dreamed


def describe(report: dict[str, Any]) -> str:
    """The figures as a few lines of text."""
    lines = []
    for name, one in report["by_model"].items():
        lines.append(f"{name:>10}: {_with_interval(one)} over {one['episodes']} episodes")
    if len(lines) > 1:
        lines.append(f"{'all':>10}: {_with_interval(report)} over {len(lines)} {report['interval_over']}")
    if "dreamed_return" in report:
        gap_text = "none" if report["gap"] is None else f"{report['gap']:.0%}"
        lines.append(f"{'dreamed':>10}: {report['dreamed_return']:.2f} in as many steps, a gap of {gap_text}")
    return "\n".join(lines)


def _with_interval(figures: dict[str, Any]) -> str:
    low_high = figures["interval95"]
    interval = "" if low_high is None else f" [{low_high[0]:.2f}, {low_high[1]:.2f}]"
    return f"{figures['mean_return']:.2f}{interval}"


def main() -> int:
    """The command. Returns the exit status, 1 after an error."""
    try:
        config = tyro.cli(EvaluateConfig, prog="python -m agents.evaluate")
        print(describe(evaluate(config, command_arguments())))
    except (ImportError, OSError, TypeError, ValueError, gym.error.Error) as error:
        print(f"agents.evaluate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
