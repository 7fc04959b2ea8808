"""What a figure was made on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wm_gym import machine


def test_a_copy_outside_a_repository_takes_its_commit_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    monkeypatch.delenv("WM_GYM_COMMIT", raising=False)
    assert machine.commit() is None
    monkeypatch.setenv("WM_GYM_COMMIT", "abc123")
    assert machine.commit() == "abc123"


def test_in_a_repository_the_commit_is_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WM_GYM_COMMIT", "not this")
    if machine.commit() == "not this":
        pytest.skip("these tests do not run from a repository")
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", machine.commit() or "")
