"""Files of results that grow episode by episode, and the policies that they are about."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.special import stdtrit

from agents.environments import MemorySpec
from agents.policies import CONFIG_FILE, run_memory, run_models

Result = dict[str, Any]  # of an episode; has "seed"


def policy_models(policy: str) -> tuple[dict[str, str], MemorySpec | None]:
    """What `policy_maker` takes, by name: each training seed of a run of `agents.ppo`, or else the policy itself.

    Also the memory that they see, None if they see none. Raises FileNotFoundError for a run that has saved nothing yet.
    """
    run = Path(policy)
    if (run / CONFIG_FILE).is_file():
        return {name: str(path) for name, path in run_models(run).items()}, run_memory(run)
    is_model = run.suffix == ".zip" and (run.parent.parent / CONFIG_FILE).is_file()
    return {"policy": policy}, run_memory(run.parent.parent) if is_model else None


def policy_settings(policy: str, models: dict[str, str]) -> dict[str, Any]:
    """What tells policies from others in a file of results, changed model files among them."""
    digests = {name: digest(path) for name, path in models.items()}
    return {"policy": Path(policy).name if Path(policy).is_absolute() else policy, "model_digests": digests}


def digest(path: str) -> str | None:
    """What tells a file from the one that it was; None for what is no file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if Path(path).is_file() else None


def kept_results(path: Path, settings: dict[str, Any], command: str) -> dict[str, list[Result]]:
    """The episodes of each model that an earlier call of `command` has played, {} without a file.

    Raises ValueError if the file is another one's, or its settings were others.
    """
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text())
        kept, results = {key: record[key] for key in settings}, record["results"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file of {command} ({error}): give another --out.") from error
    given = json.loads(json.dumps(settings))
    different = [key for key in given if kept[key] != given[key]]
    if different:
        was = ", ".join(f"{key}={kept[key]!r}" for key in different)
        raise ValueError(f"{path} holds results of other settings ({was}): give another --out.")
    return results


def interval95(values: Sequence[float]) -> list[float] | None:
    """Student's 95% confidence interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = float(stdtrit(len(values) - 1, 0.975)) * deviation / math.sqrt(len(values))
    return [mean - half, mean + half]


def gap(dreamed: float, real: float) -> float | None:
    """The part of the dreamed return that reality did not give, (dreamed - real) / dreamed; None without any."""
    return None if dreamed == 0 else (dreamed - real) / dreamed
