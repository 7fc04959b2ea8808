"""Files of results that grow episode by episode, and the policies that they are about."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wm_gym.statistics import interval95

Result = dict[str, Any]  # of an episode; has "seed"


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


def gap(dreamed: float, real: float) -> float | None:
    """The part of the dreamed return that reality did not give, (dreamed - real) / dreamed; None without any."""
    return None if dreamed == 0 else (dreamed - real) / dreamed


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Mean return of episodes, its interval, and mean length."""
    returns = [result["return"] for result in results]
    return {
        "episodes": len(returns),
        "mean_return": math.fsum(returns) / len(returns),
        "interval95": interval95(returns),
        "mean_length": math.fsum(result["length"] for result in results) / len(results),
    }
