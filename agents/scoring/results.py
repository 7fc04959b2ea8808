"""Files of results that grow episode by episode, and the policies that they are about."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from agents.environments.settings import MemorySpec
from agents.policies.loading import CONFIG_FILE, run_memory, run_models

Result = dict[str, Any]  # of an episode; has "seed"

NUM_RESAMPLES = 10_000
Z95 = 1.959964  # standard normal


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
        # Files of versions that did not have a setting yet lack it, which is as if it were None.
        kept = {key: record[key] if settings[key] is not None else record.get(key) for key in settings}
        results = record["results"]
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


def proportion95(parts: Sequence[int], wholes: Sequence[int]) -> list[float] | None:
    """95% interval of sum(parts) / sum(wholes); None if there is nothing to count.

    The hull of two: Wilson's (1927), which takes single rewards as independent and stays honest where all or none are
    right, and the percentiles of resampled episodes, whose rewards may be right or wrong together.

    Args:
        parts, wholes: counts of each episode.
    """
    total = sum(wholes)
    if total == 0:
        return None
    share = sum(parts) / total
    centre = (share + Z95**2 / (2 * total)) / (1 + Z95**2 / total)
    half = Z95 * math.sqrt(share * (1 - share) / total + Z95**2 / (4 * total**2)) / (1 + Z95**2 / total)
    bounds = [centre - half, centre + half]
    counts = np.array([parts, wholes], np.int64)
    drawn = np.random.default_rng(0).integers(len(wholes), size=(NUM_RESAMPLES, len(wholes)))
    sums = counts[:, drawn].sum(-1)
    low, high = np.percentile(sums[0][sums[1] > 0] / sums[1][sums[1] > 0], (2.5, 97.5))
    return [max(0.0, min(bounds[0], float(low))), min(1.0, max(bounds[1], float(high)))]


def gap(dreamed: float, real: float) -> float | None:
    """The part of the dreamed return that reality did not give, (dreamed - real) / dreamed; None without any."""
    return None if dreamed == 0 else (dreamed - real) / dreamed
