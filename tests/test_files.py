import json

import pytest

from wm_gym.files import atomic_path, write_json


def test_a_finished_file_takes_the_name_and_the_mode_of_any_new_file(tmp_path):
    target = tmp_path / "folder" / "a.txt"
    with atomic_path(target) as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("new")
        temporary.chmod(0o600)
    other = tmp_path / "other"
    other.touch()
    assert target.read_text() == "new"
    assert target.stat().st_mode == other.stat().st_mode


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_record_that_is_no_json_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / "figures.json"
    write_json(path, {"psnr": 1.5})
    with pytest.raises(TypeError):
        write_json(path, {"psnr": object()})
    assert json.loads(path.read_text()) == {"psnr": 1.5}
    assert list(tmp_path.iterdir()) == [path]
