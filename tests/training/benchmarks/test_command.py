"""One command runs each benchmark by its name."""

from __future__ import annotations

import sys

import pytest

from training.benchmarks.__main__ import NAMES, main, summaries


def test_help_says_what_each_benchmark_measures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--help"])
    main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert tuple(line[0] for line in lines) == NAMES
    assert all(len(line) > 2 for line in lines), summaries()


def test_a_benchmark_takes_its_own_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "trials", "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "--scale.walks" in capsys.readouterr().out


@pytest.mark.parametrize("given", [["nothing"], []])
def test_a_benchmark_that_there_is_not_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, given: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *given])
    with pytest.raises(SystemExit, match=r"There is no benchmark .*; choose one of\n  collect"):
        main()
