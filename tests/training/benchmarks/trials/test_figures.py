"""Figures of all runs become means over seeds and differences within a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from training.benchmarks.trials.figures import summary


def run(kept: float, f1: float | None = 0.5, num_walks: int = 5) -> dict[str, Any]:
    values = (kept + np.linspace(-1, 1, num_walks)).tolist()
    return {"kept": values, "cleared": [12.0] * num_walks, "reward_f1": f1, "num_parameters": 7}


def refresh(never: float, refreshed: float) -> dict[str, Any]:
    of_interval = {"never": [never] * 5, "refreshed": [refreshed] * 5}
    return {"0": of_interval | {"never_per_frame": [never] * 3, "refreshed_per_frame": [refreshed] * 3}}


def test_an_option_is_compared_with_the_baseline_of_the_same_seed() -> None:
    runs = {"baseline": [run(20.0), run(24.0)], "option": [run(21.0, None), run(27.0)]}
    record = summary(runs, [refresh(20.0, 18.0), refresh(24.0, 23.0)])
    option = record["runs"]["option"]
    assert option["difference"]["value"] == pytest.approx(2.0)
    assert option["difference"]["per_seed"] == pytest.approx([1.0, 3.0])
    assert option["difference"]["spread"] == pytest.approx(np.sqrt(2.0), abs=1e-3)
    # Walks differ by 2 dB among themselves, but the option does the same to each.
    assert option["difference"]["low"] == option["difference"]["high"] == pytest.approx([1.0, 3.0])
    assert option["kept_minus_cleared"]["per_seed"] == pytest.approx([9.0, 15.0])
    assert option["reward_f1"]["value"] == pytest.approx(0.25), "no reward told and none there is no hit"
    assert "difference" not in record["runs"]["baseline"]
    of_interval = record["state_refresh"]["0"]
    assert of_interval["difference"]["per_seed"] == pytest.approx([-2.0, -1.0])
    assert of_interval["refreshed_per_frame"] == pytest.approx([20.5] * 3)


def test_one_seed_has_no_spread() -> None:
    record = summary({"baseline": [run(20.0)], "option": [run(21.0)]}, [refresh(20.0, 18.0)])
    assert record["runs"]["option"]["difference"]["spread"] is None
