"""The command line, and the real Memory Maze beside a dream."""

from __future__ import annotations

import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wm_gym.play
from tests.tiny import save_maze_sized_checkpoint
from wm_gym.cli import main
from wm_gym.play.command import Play, Troupe
from wm_gym.play.controls import MEMORY_MAZE


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["play", "--help"])
    assert exit_info.value.code == 0
    output = capsys.readouterr().out
    for name in ("real", "port", "host", "env", "checkpoint", "policy", "max-players", "device", "record-dir"):
        assert f"--{name}" in output


def test_without_the_extra_web_one_sentence_says_what_to_install(monkeypatch, capsys) -> None:
    for name in [name for name in sys.modules if name.startswith(("wm_gym.play.server", "wm_gym.play.connection"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(wm_gym.play, "server", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["play", "--port", "0"]) == 1
    assert "pip install 'wm-gym[web]'" in capsys.readouterr().err


def test_the_packaged_dream_is_steered_by_arrows() -> None:
    assert Troupe(Play(denoising_steps=1)).controls is MEMORY_MAZE


@pytest.mark.real_env
def test_two_players_in_real_mazes_go_back_to_the_very_frame(tmp_path: Path) -> None:
    checkpoint = save_maze_sized_checkpoint(tmp_path / "model.safetensors")
    troupe = Troupe(Play(real=True, checkpoint=str(checkpoint), context_frames=4, denoising_steps=1))
    assert troupe.controls is MEMORY_MAZE

    def play(seed: int) -> tuple[Any, Any]:
        session = troupe.make_session()
        deque(session.start(seed), maxlen=0)
        session.step(4)
        moment = session.remember()
        there = session.step(1).views
        deque(session.go_back(moment), maxlen=0)
        again = session.step(1).views
        session.close()
        return there, again

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(play, (7_000_001, 7_000_002)))
    for there, again in results:
        assert np.array_equal(there["dream"], again["dream"])
        assert np.array_equal(there["real"], again["real"])
    assert not np.array_equal(results[0][0]["real"], results[1][0]["real"])
