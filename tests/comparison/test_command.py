import dataclasses
import shlex

import pytest

import wm_gym
from wm_gym.cli import main
from wm_gym.comparison.config import CompareConfig
from wm_gym.comparison.identity import CheckpointIdentity
from wm_gym.comparison.report_text import Subject, command
from wm_gym.seeds import parse_seeds


def test_compare_is_a_function_of_the_package():
    assert callable(wm_gym.compare)


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["compare", "--help"])
    assert exit_info.value.code == 0
    output = capsys.readouterr().out
    for entry in dataclasses.fields(CompareConfig):
        assert f"--{entry.name.replace('_', '-')}" in output


def test_an_error_is_one_line_without_a_traceback(capsys, tmp_path):
    assert main(["compare", "--env", "Unknown-v0", "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("wm-gym: Cannot make the environment 'Unknown-v0'")


def test_seeds_are_numbers_and_ranges_each_taken_once():
    assert parse_seeds("3-5, 9,4") == [3, 4, 5, 9]


@pytest.mark.parametrize("text", ["", "a", "1-", "-3", "5-3", "1--3", "4294967296", "1;2"])
def test_other_seeds_are_an_error(text):
    with pytest.raises(ValueError, match=r"[Ss]eeds"):
        parse_seeds(text)


def subject(config, **changes):
    checkpoint = CheckpointIdentity("runs/one/model.safetensors", "0", [])
    values = {
        "config": config,
        "env_kwargs": {},
        "reference_id": config.against or config.real,
        "reference_kwargs": {},
        "policy": config.policy,
        "recording": None,
        "env_checkpoint": checkpoint,
        "reference_checkpoint": None,
        **changes,
    }
    return Subject(**values)


def test_the_recorded_command_names_what_differs_from_the_default_and_no_folder_of_this_machine(tmp_path):
    kwargs = f'{{"checkpoint": "{tmp_path}/model.safetensors"}}'
    words = command(
        subject(
            CompareConfig(steps=7, seeds="1-2", env_kwargs=kwargs, out=tmp_path / "a b", policy=f"{tmp_path}/ppo.zip")
        )
    )
    expected = ["wm-gym", "compare", "--env-kwargs", '{"checkpoint": "model.safetensors"}', "--policy", "ppo.zip"]
    expected += ["--steps", "7"]
    assert shlex.split(words) == [*expected, "--seeds", "1-2", "--out", "a b"]


def test_two_sides_of_one_name_are_told_apart():
    config = CompareConfig(against="LSSVWM-MemoryMaze-v0")
    twice = CheckpointIdentity("runs/two/model.safetensors", "1", [])
    assert subject(config, reference_checkpoint=twice).names == ("model (A)", "model (B)")
    assert subject(CompareConfig()).names == ("real", "dream")
