"""Metrics against each other, and sentences in place of those that cannot be measured."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from training.evaluation.quality import measure_frames, metrics
from wm_gym.comparison.metrics import psnr

CPU = torch.device("cpu")


def test_every_metric_is_there_or_says_why_not() -> None:
    for metric in metrics((64, 64, 3), CPU):
        assert (metric.measure is None) == bool(metric.reason)
    assert [metric.name for metric in metrics((64, 64, 3), CPU)] == ["psnr", "ssim", "lpips"]


def test_small_frames_have_a_psnr_only() -> None:
    of_psnr, ssim, lpips = metrics((8, 8, 3), CPU)
    assert of_psnr.measure is not None
    assert "8x8" in ssim.reason
    assert "64x64" in lpips.reason


def test_without_torchmetrics_there_is_no_ssim_and_a_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    ssim = metrics((16, 16, 3), CPU)[1]
    assert ssim.measure is None
    assert "pip install" in ssim.reason


def test_lpips_is_not_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    torchvision = pytest.importorskip("torchvision")
    assert torchvision
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert "AlexNet's weights" in metrics((64, 64, 3), CPU)[2].reason


def test_psnr_is_that_of_a_comparison() -> None:
    frames, real = np.random.default_rng(0).integers(0, 255, (2, 5, 16, 16, 3), np.uint8)
    frames[3] = real[3]
    measure = metrics((16, 16, 3), CPU)[0].measure
    assert measure is not None
    assert measure(frames, real) == pytest.approx(psnr(frames, real), abs=1e-9)


def test_frames_are_measured_maze_by_maze() -> None:
    of_psnr, of_ssim, _ = metrics((16, 16, 3), CPU)
    real = np.random.default_rng(0).integers(0, 255, (2, 3, 16, 16, 3), np.uint8)
    frames = real.copy()
    frames[1, 2] = 255 - frames[1, 2]
    for metric in (of_psnr, of_ssim):
        assert metric.measure is not None
        values = measure_frames(metric.measure, frames, real)
        assert values.shape == (2, 3)
        assert np.unique(values.round(6)).size == 2
        assert values[1, 2] < values.min(where=values > values[1, 2], initial=np.inf)
