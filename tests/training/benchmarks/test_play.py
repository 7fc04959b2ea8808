"""The benchmark of the page measures a real server, here with a tiny dream."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.play.serving import tiny_play
from training.benchmarks.play import BenchPlay, Measured, main, targets


def test_the_benchmark_reports_pace_latency_and_the_servers_share(tmp_path: Path) -> None:
    play = tiny_play(tmp_path)
    options = ["--checkpoint", play.checkpoint, "--contexts", play.contexts, "--context-frames", "6"]
    out = tmp_path / "results.json"
    main(BenchPlay(out, paces=(10.0,), seconds=1.5, warm_up=0.3, denoising_steps=1, play=tuple(map(str, options))))
    report = json.loads(out.read_text())
    (result,) = report["paces"]
    assert 3 < result["frames_per_second"] < 11  # no faster than the pace
    assert 0 < result["server_ms"]["median"] <= result["server_ms"]["max"]
    assert result["key_to_frame_ms"]["median"] > 0
    assert set(report["targets"]) == {"pace", "frames_per_second", "key_to_frame_ms", "server_ms"}
    assert {"command", "commit", "hardware", "load_average"} <= set(report)


def test_a_target_is_met_or_missed_by_what_was_measured() -> None:
    quantiles = {"median": 1.0, "p95": 150.0, "p99": 4.0}
    result = {"pace": 10.0, "frames_per_second": 7.9, "key_to_frame_ms": quantiles, "server_ms": quantiles}
    judged = targets("cpu", [result])
    assert [judged[name]["met"] for name in ("frames_per_second", "key_to_frame_ms", "server_ms")] == [
        False,
        True,
        True,
    ]
    assert targets("cuda:0", [result]) == {}


def test_too_few_frames_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="give --seconds more"):
        Measured().summary(10.0)
