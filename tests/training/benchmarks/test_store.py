"""The benchmark of the store measures what it says, on a store of toy episodes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.toy_store import make_toy_store
from training.benchmarks.store import BenchStore, main


def test_the_benchmark_reports_rates_ratio_and_provenance(tmp_path: Path) -> None:
    path = make_toy_store(tmp_path / "store", seeds=range(2), max_episode_steps=120).path
    main(BenchStore(tmp_path / "results.json", store=path, windows=(60, 121), frames_per_round=300, rounds=2))
    report = json.loads((tmp_path / "results.json").read_text())
    assert [result["window"] for result in report["windows"]] == [60, 121]
    for result in report["windows"]:
        assert all(result[name]["frames_per_second"] > 0 for name in ("store", "memmap", "zarr", "zstd_only"))
        rates = (result[name]["frames_per_second"] for name in ("store", "memmap"))
        assert result["ratio_to_memmap"] == pytest.approx(next(rates) / next(rates))
    assert report["store"]["num_frames"] == 242
    assert {"command", "commit", "hardware", "load_average", "required_frames_per_second"} <= set(report)


def test_windows_longer_than_every_episode_are_an_error(tmp_path: Path) -> None:
    path = make_toy_store(tmp_path / "store", seeds=[0]).path
    with pytest.raises(ValueError, match="No episode has 50 frames; the longest has 41"):
        main(BenchStore(tmp_path / "results.json", store=path, windows=(50,)))
