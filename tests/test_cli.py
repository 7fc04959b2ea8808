import sys

import pytest

from tests.tiny import save_maze_sized_checkpoint
from wm_gym.cli import main


def test_help_names_the_subcommand_and_its_options(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["demo", "--help"])
    assert exit_info.value.code == 0
    output = capsys.readouterr().out
    for option in ("--out", "--seed", "--context", "--steps", "--checkpoint", "--device"):
        assert option in output


@pytest.mark.parametrize("arguments", [[], ["dream"], ["demo", "--steps", "many"], ["demo", "--unknown", "1"]])
def test_wrong_usage_exits_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2


def test_an_error_is_one_line_without_a_traceback(capsys):
    assert main(["demo", "--checkpoint", "unknown"]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("wm-gym: No checkpoint 'unknown'")
    assert "\n" not in error


def test_demo_writes_its_files(tmp_path, monkeypatch):
    pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setitem(sys.modules, "memory_maze", None)
    checkpoint = save_maze_sized_checkpoint(tmp_path / "model.safetensors")
    out = tmp_path / "out"
    arguments = ["demo", "--out", str(out), "--context", "4", "--steps", "3", "--checkpoint", str(checkpoint)]
    assert main(arguments) == 0
    assert sorted(path.name for path in out.iterdir()) == ["demo.json", "demo.mp4", "demo.png"]
