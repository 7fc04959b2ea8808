import json

import numpy as np
import pytest

from tests.tiny import save_tiny_checkpoint
from tests.toy_store import make_toy_store
from training.compare import main

for package in ("pandas", "matplotlib", "torchmetrics"):
    pytest.importorskip(package)

SEEDS = [7_000_000, 7_000_001]


@pytest.fixture
def arguments(tmp_path):
    make_toy_store(tmp_path / "store", SEEDS, split="test")
    checkpoint = save_tiny_checkpoint(tmp_path / "tiny.safetensors")
    kwargs = json.dumps({"checkpoint": str(checkpoint)})
    options = {"data": tmp_path / "store", "env-kwargs": kwargs, "context": 5, "films": 0, "device": "cpu"}
    options["out"] = tmp_path / "out"
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def test_a_dream_is_held_against_the_recorded_frames_actions_and_rewards(arguments, tmp_path):
    main([*arguments, "--steps", "12"])
    store = make_toy_store(tmp_path / "store", [], split="test")
    for seed in SEEDS:
        episode = store.read(seed, "test")
        with np.load(tmp_path / "out" / "episodes" / f"{seed:010d}.npz") as record:
            np.testing.assert_array_equal(record["reference_frames"], episode.frames[:17])
            np.testing.assert_array_equal(record["actions"], episode.actions[:16])
            np.testing.assert_array_equal(record["reference_rewards"], episode.rewards[4:16])
            np.testing.assert_array_equal(record["map_pose"], episode.pose[:17])
    results = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert results["seeds"] == SEEDS
    assert results["command"].startswith("python -m training.compare --data store ")


def test_the_end_of_a_recording_ends_the_comparison(arguments, tmp_path):
    main([*arguments, "--steps", "100", "--seeds", "7000001"])
    [episode] = json.loads((tmp_path / "out" / "compare.json").read_text())["by_episode"]
    assert (episode["steps"], episode["end_reference"]) == (36, "truncated")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--seeds", "7000005"], "no episode of seed 7000005"),
        (["--split", "eval"], "no episodes"),
        (["--split", "other"], "train, test, eval"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_what_is_not_there_is_named(arguments, tmp_path, changes, message):
    with pytest.raises(SystemExit, match=message):
        main([*arguments, *changes])
    assert not (tmp_path / "out").exists()
