"""`python -m training.store`: what it prints, and how it ends."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import zarr

from tests.paths import ROOT
from tests.toy_store import make_toy_store, toy_episode, toy_header
from training.store.__main__ import main
from training.store.episode_store import EpisodeWriter, create_store, open_store


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        monkeypatch.setattr(sys, "argv", ["store", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        output = capsys.readouterr()
        return int(exit_info.value.code or 0), output.out, output.err

    return call


def test_the_module_can_be_run(tmp_path: Path) -> None:
    make_toy_store(tmp_path / "store", seeds=[4])
    command = [sys.executable, "-m", "training.store", "validate", str(tmp_path / "store")]
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{tmp_path / 'store'}: 1 episodes read, valid.\n"


def test_info_tells_what_is_in_a_store(tmp_path: Path, call) -> None:
    make_toy_store(tmp_path / "store", seeds=[0, 1, 2, 9])
    make_toy_store(tmp_path / "store", seeds=[7_000_000], split="eval")
    code, text, _ = call("info", tmp_path / "store")
    assert code == 0
    for expected in ("ToyMaze", "Discrete(3)", "4 episodes, 164 frames", "seeds 0 to 2, 9", "seeds 7000000", "bytes a"):
        assert expected in text


def test_validate_names_file_and_episode_and_ends_with_1(tmp_path: Path, call) -> None:
    make_toy_store(tmp_path / "store", seeds=range(3))
    (tmp_path / "store/train/episode_0000000001/actions/c/0").write_bytes(b"")
    code, text, errors = call("validate", tmp_path / "store")
    assert code == 1
    assert "3 episodes read, 1 problem." in text
    assert "episode_0000000001 is damaged (actions:" in errors
    assert errors.count("\n") == 1


def test_merge_and_split_do_what_they_say(tmp_path: Path, call) -> None:
    make_toy_store(tmp_path / "a", seeds=[0, 1])
    make_toy_store(tmp_path / "b", seeds=[7_000_000, 7_000_001], split="test")
    code, text, _ = call("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c")
    assert (code, text) == (0, f"{tmp_path / 'c'}: episodes 2 in train, 2 in test.\n")
    code, text, _ = call("split", tmp_path / "c", "--source", "test", "--target", "eval", "--seeds", 7_000_001)
    assert code == 0 and "1 episodes moved to 'eval'" in text
    assert open_store(tmp_path / "c").seeds("eval") == [7_000_001]
    code, text, _ = call("split", tmp_path / "c", "--source", "test", "--target", "eval", "--fraction", 1)
    assert code == 0 and open_store(tmp_path / "c").seeds("test") == []
    assert call("split", tmp_path / "c", "--source", "eval", "--target", "test")[0] == 2


@pytest.mark.parametrize(
    ("options", "result"),
    [
        (("--format", "mp4"), "frames are lossless"),
        (("--format", "mp4", "--lossy"), "frames are LOSSY"),
        (("--format", "lerobot"), "frames are lossless"),
        (("--format", "lerobot", "--images", "png"), "frames are lossless"),
        (("--format", "lerobot", "--lossy"), "frames are LOSSY"),
    ],
)
def test_export_says_whether_frames_are_exact_and_import_brings_them_back(
    tmp_path: Path, call, options: tuple[str, ...], result: str
) -> None:
    make_toy_store(tmp_path / "store", seeds=[3, 5])
    code, text, _ = call("export", tmp_path / "store", "--out", tmp_path / "out", *options)
    assert code == 0 and result in text and "82 frames in 2 episodes" in text
    code, text, _ = call("import", tmp_path / "out", "--out", tmp_path / "back", *options[:2])
    assert (code, text) == (0, f"{tmp_path / 'back'}: episodes 2 in train.\n")


def test_errors_are_one_sentence_and_end_with_2(tmp_path: Path, call) -> None:
    make_toy_store(tmp_path / "store", seeds=[0])
    other = create_store(tmp_path / "other", toy_header())
    EpisodeWriter(other).write(dataclasses.replace(toy_episode(1), seed=0))
    newer = make_toy_store(tmp_path / "newer", seeds=[0])
    zarr.open_group(newer.path, mode="r+").attrs["version"] = 2
    export = ("export", tmp_path / "store", "--out")
    for arguments, expected in [
        (("info", tmp_path / "nothing"), "There is no episode store"),
        (("validate", tmp_path / "newer"), "version 2 of the store format, this code reads 1; update wm-gym."),
        (("merge", tmp_path / "store", tmp_path / "other", "--out", tmp_path / "c"), "have the same seed, but frames"),
        ((*export, tmp_path / "x", "--format", "memory-maze"), "Memory Maze has 6 actions"),
        ((*export, tmp_path / "store", "--format", "mp4"), "exists already"),
        ((*export, tmp_path / "x", "--format", "mp4", "--images", "png"), "is for --format lerobot"),
        ((*export, tmp_path / "x", "--format", "lerobot", "--images", "png", "--lossy"), "PNG is lossless"),
        (("import", tmp_path, "--out", tmp_path / "x", "--format", "memory-maze"), "There are no NPZ files"),
        (("import", tmp_path, "--out", tmp_path / "x", "--format", "lerobot"), "LeRobotDataset v3.0 has"),
        (("import", tmp_path, "--out", tmp_path / "x", "--format", "mp4"), "writes such a folder"),
    ]:
        code, _, errors = call(*arguments)
        assert code == 2
        assert expected in errors
        assert errors.count("\n") == 1
    assert not (tmp_path / "x").exists()
