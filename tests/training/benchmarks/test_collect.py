"""The benchmark of the real environment."""

from __future__ import annotations

import importlib.util

import pytest

from training.benchmarks.collect import BenchConfig, run


@pytest.mark.skipif(importlib.util.find_spec("memory_maze") is None, reason="the memory-maze extra is not installed")
@pytest.mark.real_env
@pytest.mark.slow
def test_it_counts_whole_episodes_of_all_workers_and_says_where_the_time_went() -> None:
    record = run(BenchConfig(implementations=("direct",), episodes=1, workers=2))
    direct = record["implementations"]["direct"]
    assert direct["frames"] == 2 * 1001
    assert direct["frames_per_second"] == pytest.approx(2 * direct["frames_per_second_per_process"], rel=0.01)
    assert direct["frames_per_second"] < direct["frames_per_second_without_resets"]
    milliseconds = direct["milliseconds_per_frame"]
    assert 0 < sum(milliseconds.values()) < 2000 / direct["frames_per_second"] * 1.05
    assert milliseconds["render"] > 0
    assert "direct_over_upstream" not in record


def test_a_number_below_1_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="Only the direct implementation"):
        run(BenchConfig(envs_per_worker=2))
    for config, name in ((BenchConfig(episodes=0), "episodes"), (BenchConfig(workers=0), "workers")):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            run(config)
