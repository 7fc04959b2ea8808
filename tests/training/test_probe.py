"""The probe's command on toy walks, and its figures on answers that are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import PLANAR_POSE, SMALL_MAP, VECTOR_POSE, save_tiny_checkpoint, tiny_model
from tests.toy_store import TOY_ENV, toy_episode, toy_header
from training.probe import constant, main, probe_figures, split_mazes
from training.probes.memories import Walk, memories_after
from training.probes.probe_model import ProbeData
from training.store.episode_store import EpisodeWriter, create_store

FIRST = 7_000_000
SMALL = ["--training.max-epochs", "3", "--training.width", "16", "--radius", "1", "--moments", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "walks"
    writer = EpisodeWriter(create_store(path, replace(toy_header(), max_episode_steps=11)), "test")
    for seed in range(FIRST, FIRST + 12):
        writer.write(toy_episode(seed, 11))
    return path


def arguments(store: Path, checkpoint: Path, out: Path, *options: str) -> list[str]:
    given = ["--env", TOY_ENV, "--policy", "random", "--seeds", f"{FIRST}-{FIRST + 11}", "--context", "12"]
    return ["--checkpoint", str(checkpoint), "--rollouts", str(store), "--out", str(out), *given, *SMALL, *options]


def test_the_command_writes_what_every_source_knows(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "probe.json"
    main(arguments(store, save_tiny_checkpoint(tmp_path / "model.safetensors"), out))
    record = json.loads(out.read_text())
    assert list(record["columns"]) == ["state", "cleared_state", "last_frame", "constant"]
    assert record["num_mazes"] == {"training": 8, "validation": 1, "test": 3}
    walls = record["columns"]["constant"]["walls"]
    assert walls["all"]["value"] == 1.0  # the toy has no walls
    assert walls["seen"]["count"] + walls["unseen"]["count"] == walls["all"]["count"]
    objects = record["columns"]["state"]["objects"]
    assert objects["all"]["count"] == 3 * 4
    assert objects["all"]["low"] <= objects["all"]["value"] <= objects["all"]["high"]
    assert record["command"].startswith("python -m training.probe --checkpoint model.safetensors")
    assert "cleared_state" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", f"{FIRST}-{FIRST + 1}"], "too few"),
        (["--seeds", "5-30"], "is for training"),
        (["--moments", "7"], "7 moments do not fit"),
        (["--checkpoint", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_what_cannot_be_probed_is_one_sentence(store: Path, tmp_path: Path, options: list[str], message: str) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model.safetensors")
    with pytest.raises(SystemExit, match=message):
        main(arguments(store, checkpoint, tmp_path / "x.json", *options))
    assert not (tmp_path / "x.json").exists()


def test_a_planar_model_is_asked_for_a_map_around_the_start(store: Path, tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model.safetensors", tiny_model(pose=PLANAR_POSE))
    records = []
    for around in ("start", "agent"):
        options = () if around == "start" else ("--around", "agent")
        main(arguments(store, checkpoint, tmp_path / "probe.json", *options))
        records.append(json.loads((tmp_path / "probe.json").read_text()))
    assert [record["around"] for record in records] == ["start", "agent"]
    assert [record["conditioning"] for record in records] == ["pose", "pose"]
    assert records[0]["columns"]["state"] != records[1]["columns"]["state"]


def test_a_model_that_needs_poses_is_not_probed_by_action(store: Path, tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model.safetensors", tiny_model(pose=PLANAR_POSE))
    with pytest.raises(SystemExit, match="take --conditioning pose"):
        main(arguments(store, checkpoint, tmp_path / "x.json", "--conditioning", "action"))


def test_a_model_that_is_given_recorded_poses_is_refused(store: Path, tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model.safetensors", tiny_model(pose=VECTOR_POSE))
    with pytest.raises(SystemExit, match="would read them"):
        main(arguments(store, checkpoint, tmp_path / "x.json"))


def test_walks_that_are_read_once_are_remembered_at_every_moment_as_if_read_up_to_it() -> None:
    model = tiny_model(pose=PLANAR_POSE)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (3, 20, 16, 16, 3), dtype=torch.uint8, generator=generator)
    actions, poses = torch.randint(2, (3, 19), generator=generator), torch.randn(3, 20, 4, generator=generator)
    with torch.no_grad():
        at_moments = memories_after(model, Walk(frames, actions, poses), [5, 12, 20], "")
        for length in (5, 12, 20):
            alone = memories_after(model, Walk(frames, actions, poses), [length], "")[length]
            torch.testing.assert_close(at_moments[length], alone, atol=1e-3, rtol=1e-2)
        without_the_first = memories_after(model, Walk(frames, actions, poses), [20], "", first=11)[20]
    assert (without_the_first[0] - at_moments[20][0]).abs().max() > 1e-4


def test_no_maze_is_in_two_parts() -> None:
    test, validation, training = split_mazes(40, 0.25, 0.1)
    assert (len(test), len(validation), len(training)) == (10, 4, 26)
    assert torch.cat([test, validation, training]).unique().numel() == 40


def truth() -> ProbeData:
    walls = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    inside = torch.tensor([[True, True, True], [True, True, False]])
    return ProbeData((), walls, inside, torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]]), torch.zeros(2, 0))


def test_figures_count_positions_inside_the_maze_and_tell_seen_from_unseen() -> None:
    answers = torch.tensor([[True, True, True], [True, False, True]]), torch.zeros(2, 1, 2)
    seen = np.array([[True, False, False], [True, False, True]])
    figures = probe_figures(answers, truth(), seen, np.array([[True], [False]]))
    assert (figures["walls"]["all"]["value"], figures["walls"]["all"]["count"]) == (0.6, 5)
    assert (figures["walls"]["seen"]["value"], figures["walls"]["seen"]["count"]) == (1.0, 2)
    assert figures["walls"]["unseen"]["value"] == pytest.approx(1 / 3, abs=1e-4)
    assert [figures["objects"][part]["value"] for part in ("all", "seen", "unseen")] == [2.5, 5.0, 0.0]


def test_the_constant_is_the_commonest_wall_inside_the_maze_and_the_mean_object() -> None:
    walls, objects = constant(truth(), 4)
    assert walls.tolist() == [[True, False, True]] * 4
    assert objects[3].tolist() == [[1.5, 2.0]]


def test_a_model_that_hides_noise_is_asked_and_its_path_stands_beside_it(store: Path, tmp_path: Path) -> None:
    model = tiny_model(pose=PLANAR_POSE, hide_noise=True)
    checkpoint = save_tiny_checkpoint(tmp_path / "model.safetensors", model)
    main(arguments(store, checkpoint, tmp_path / "asked.json"))
    record = json.loads((tmp_path / "asked.json").read_text())
    assert record["readout"] == "asked" and "in reverse" in record["definitions"]["readout"]
    assert list(record["columns"]) == ["state", "cleared_state", "last_frame", "path", "constant"]
    assert record["columns"]["state"]["objects"]["all"]["count"] == 3 * 4
    main(arguments(store, checkpoint, tmp_path / "states.json", "--readout", "states"))
    states = json.loads((tmp_path / "states.json").read_text())
    assert list(states["columns"]) == ["state", "cleared_state", "last_frame", "constant"]
    assert states["columns"]["constant"] == record["columns"]["constant"]


def test_a_model_that_sees_noise_is_not_asked(store: Path, tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model.safetensors", tiny_model(pose=PLANAR_POSE))
    with pytest.raises(SystemExit, match="take --readout states"):
        main(arguments(store, checkpoint, tmp_path / "x.json", "--readout", "asked"))


def test_a_model_that_keeps_a_map_is_read_by_its_map(store: Path, tmp_path: Path) -> None:
    model = tiny_model(pose=PLANAR_POSE, hide_noise=True, map=SMALL_MAP)
    checkpoint = save_tiny_checkpoint(tmp_path / "model.safetensors", model)
    main(arguments(store, checkpoint, tmp_path / "map.json"))
    record = json.loads((tmp_path / "map.json").read_text())
    assert record["readout"] == "map" and "written into its map" in record["definitions"]["readout"]
    assert list(record["columns"]) == ["state", "cleared_state", "last_frame", "weights", "constant"]
    assert set(record["columns"]) < set(record["definitions"])
    assert record["columns"]["state"]["objects"]["all"]["count"] == 3 * 4
    main(arguments(store, checkpoint, tmp_path / "asked.json", "--readout", "asked", "--training.max-epochs", "1"))
    asked = json.loads((tmp_path / "asked.json").read_text())
    assert asked["readout"] == "asked"
    assert asked["columns"]["constant"] == record["columns"]["constant"]


def test_a_model_without_a_map_is_not_read_by_one(store: Path, tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model.safetensors", tiny_model(pose=PLANAR_POSE))
    with pytest.raises(SystemExit, match="keeps no map"):
        main(arguments(store, checkpoint, tmp_path / "x.json", "--readout", "map"))
