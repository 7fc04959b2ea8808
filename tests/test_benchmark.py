"""The benchmark: one quick run on the CPU writes every part, and figures are judged as the targets say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from examples import benchmark
from examples.benchmark import BenchConfig, run
from tests.tiny import save_maze_sized_checkpoint, tiny_model
from training.benchmarks.speed.batches import bytes_per_step
from training.benchmarks.speed.latency import FULL, OURS, SLIDING
from training.benchmarks.speed.report import plot, table, tables
from training.benchmarks.speed.steppers import GraphStepper, seen_state, transformer_stepper
from training.benchmarks.speed.targets import judge
from training.benchmarks.speed.timing import Deadline, latency
from training.benchmarks.speed.training_step import TrainingSettings, measure_lengths


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_maze_sized_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors"))


def config(checkpoint: str, **changes: Any) -> BenchConfig:
    return BenchConfig(checkpoint=checkpoint, device="cpu", quick=True, **changes)


def test_a_quick_run_measures_all_parts_and_draws_them(checkpoint: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "speed_cpu.json"
    record = run(config(checkpoint, out=out))
    assert json.loads(out.read_text()) == record
    assert "errors" not in record

    times = {(row["model"], row["frame"]): row for row in record["latency"]["rows"] if "median_ms" in row}
    assert {(name, age) for name in (OURS, FULL, SLIDING) for age in (2, 10)} <= times.keys()
    assert all(0 < row["median_ms"] <= row["p99_ms"] and row["num_steps"] >= 5 for row in times.values())
    assert times[OURS, 2]["state_bytes"] == times[OURS, 10]["state_bytes"]
    assert times[SLIDING, 2]["state_bytes"] == times[SLIDING, 10]["state_bytes"]
    assert times[FULL, 2]["state_bytes"] < times[FULL, 10]["state_bytes"]

    batches = record["batch"]["rows"]
    assert [row["batch"] for row in batches] == [1, 2]
    assert batches[1]["state_bytes"] == 2 * batches[0]["state_bytes"]
    for row in batches:
        assert row["frames_per_second"] == pytest.approx(1000 * row["batch"] / row["step_ms"], rel=0.01)
        expected = row["frames_per_second"] / row["roofline_frames_per_second"]
        assert row["share_of_roofline"] == pytest.approx(expected, rel=0.02, abs=1e-3)
    assert record["batch"]["env"]["num_envs"] == 2

    training = record["training"]
    assert [(row["model"], row["length"], row["batch"]) for row in training["rows"]] == [
        (OURS, 2, 2), (FULL, 2, 2), (OURS, 4, 1), (FULL, 4, 1)
    ]  # fmt: skip
    assert training["recipe"]["frames_per_second"] > 0
    (target,) = record["targets"]
    assert target["met"] == (target["measured"] >= 10)

    drawn = plot(record, out)
    assert [path.name for path in drawn] == [f"speed_cpu_{part}.png" for part in ("latency", "batch", "training")]
    assert all(path.stat().st_size > 10_000 for path in drawn)
    text = tables(record)
    assert all(word in text for word in ("Latency", "Batches", "Training", "Targets", "sliding-window transformer"))


def test_a_part_that_fails_keeps_the_others_and_ends_with_its_name(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("the disk is full of dreams")

    monkeypatch.setattr(benchmark, "measure_batch_part", fail)
    out = tmp_path / "speed.json"
    arguments = ["--checkpoint", checkpoint, "--device", "cpu", "--quick", "--no-plots", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments, "--parts", "batch", "latency"])
    with pytest.raises(SystemExit, match=r"some parts failed: \{'batch': 'RuntimeError: the disk is full of dreams'\}"):
        benchmark.main()
    record = json.loads(out.read_text())
    assert record["errors"] and any("median_ms" in row for row in record["latency"]["rows"])
    assert "full of dreams" in capsys.readouterr().err


def test_what_does_not_fit_into_the_time_is_skipped_by_name(checkpoint: str) -> None:
    rows = run(config(checkpoint, parts=("latency",), latency_seconds=0.0))["latency"]["rows"]
    assert "median_ms" in rows[0]  # ours at its first age is always measured
    settings = TrainingSettings(lengths=(4, 8), frames_per_step=8)
    training = list(measure_lengths(tiny_model().config, torch.device("cpu"), settings, Deadline(0.0)))
    skipped = [row for row in rows if "skipped" in row] + training
    assert len(skipped) == 7 + 4
    assert all(row["skipped"] == "the time limit of this part was reached" for row in skipped)
    assert "skipped: the time limit" in table(rows, ("model", "frame", "median_ms"))


def test_a_step_moves_its_states_in_and_out_and_the_weights_in() -> None:
    model = tiny_model()
    state = seen_state(model, 5)
    layers = state.layers
    scan = sum(layer.ssm_state.numel() + layer.conv_state.numel() for layer in layers)
    window = sum(layer.kv_cache.numel() for layer in layers)
    weights = sum(parameter.numel() for parameter in model.parameters())
    per_dream = 4 * (2 * scan + window + window // model.config.window)
    assert bytes_per_step(model, state, 1) == per_dream + 4 * weights
    assert bytes_per_step(model, state, 7) == 7 * per_dream + 4 * weights


def test_rows_of_a_measured_batch_are_the_dream_that_it_starts_from() -> None:
    model = tiny_model()
    one = seen_state(model, 5)
    stepper = GraphStepper(model, one, 70)
    loaded = stepper.graph.state().to_tensors()
    for name, tensor in one.to_tensors().items():
        torch.testing.assert_close(loaded[name], tensor.expand(70, *tensor.shape[1:]), rtol=0, atol=0)
    assert stepper().shape == (70, 16, 16, 3)


def test_a_standing_transformer_keeps_its_age_and_fills_its_cache() -> None:
    stepper = transformer_stepper(tiny_model(), "causal_transformer", 9)
    sizes = {stepper.state.num_bytes()}
    frames = [stepper() for _ in range(2)]
    sizes.add(stepper.state.num_bytes())
    assert len(sizes) == 1 and stepper.state.num_frames.tolist() == [9]
    assert (stepper.state.layers[0].key[:, :8] != 0).all()  # pyright: ignore[reportAttributeAccessIssue]
    assert frames[0].dtype == torch.uint8 and not torch.equal(frames[0], frames[1])  # noise is drawn anew


def test_latency_counts_steps_and_ignores_the_warm_up() -> None:
    calls = []
    timed = latency(lambda: calls.append(0), torch.device("cpu"), num_steps=20, seconds=10.0, num_warm_ups=4)
    assert (timed["num_steps"], len(calls)) == (20, 24)
    slow = latency(lambda: calls.append(0), torch.device("cpu"), num_steps=20, seconds=0.0, num_warm_ups=0)
    assert slow["num_steps"] == 5


def h200_record(median: float, transformer: float, allocated: int = 100) -> dict[str, Any]:
    def row(model: str, frame: int, output: str, ms: float, **more: int) -> dict[str, Any]:
        return {"model": model, "frame": frame, "output": output, "median_ms": ms, "p99_ms": 1.2 * ms, **more}

    rows = [row(OURS, 10, "host", median + 0.2), row(OURS, 10, "device", median, allocated_bytes=100, peak_bytes=10)]
    rows.append(row(OURS, 10_000, "device", 1.02 * median, allocated_bytes=allocated, peak_bytes=10))
    rows.append(row(FULL, 10_000, "device", transformer, peak_bytes=400))
    batches = [
        {"batch": size, "frames_per_second": rate, "share_of_roofline": share}
        for size, rate, share in ((64, 30_000.0, 0.7), (256, 42_000.0, 0.45))
    ]
    batches.append({"batch": 1024, "skipped": "not enough memory"})
    real = {"one_process": 690.0, "one_process_as_published": 80.0}
    return {"latency": {"rows": rows}, "batch": {"rows": batches, "real_env": real}}


def test_targets_are_met_missed_or_not_measured() -> None:
    judged = [target["met"] for target in judge(h200_record(1.0, 30.0), "cuda")]
    # device, host, tail, time, bytes, 20x, 20x, 40,000, roofline, real as published and direct, training, overhead
    assert judged == [True, True, True, True, True, True, True, True, False, True, False, None, None]
    judged = [target["met"] for target in judge(h200_record(1.4, 10.0, allocated=101), "cuda")]
    assert judged[:7] == [False, False, True, True, False, False, True]
    assert all(target["met"] is None for target in judge({}, "cuda") + judge({}, "cpu"))
