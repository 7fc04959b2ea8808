"""Training runs on the toy environment: they learn, go on exactly, and stop with one clear sentence."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.tiny import PLANAR_POSE, SMALL_MAP, save_tiny_checkpoint, tiny_model
from tests.toy_store import make_toy_store
from training.data.dataset import EpisodeDataset
from training.loop import step as trainer
from training.loop.run_state import checkpoints, load_data_seeds
from training.recipes import Recipe, Stage, memory_maze_9x9, tiny
from training.train import main, parse_arguments, train
from wm_gym.checkpoint import load_checkpoint, save_checkpoint
from wm_gym.codec import frames_to_model
from wm_gym.nn.flat_config import FLAT_NAMES
from wm_gym.world_model import WorldModel

TINY = ("--recipe", "tiny", "--device", "cpu", "--recipe.max-minutes", "0")
SIZES = {
    "model.width": 32,
    "model.scan.head-dim": 16,
    "model.scan.state-dim": 8,
    "stages.0.length": 6,
    "stages.1.length": 10,
}
FAST = [*TINY, "--recipe.steps", "20", "--recipe.log-steps", "5"]
FAST += [text for name, size in SIZES.items() for text in (f"--recipe.{name}", str(size))]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "store"
    make_toy_store(path, range(12))
    return path


def run(store: Path, out: Path, *options: str) -> Path:
    """Trains; returns the latest checkpoint."""
    train(parse_arguments([*FAST, "--data", str(store), "--out", str(out), *options]))
    return checkpoints(out / "checkpoints")[-1]


def assert_equal_files(first: Path, second: Path) -> None:
    left, right = safetensors.torch.load_file(first), safetensors.torch.load_file(second)
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different


def scalars(out: Path, name: str) -> list[float]:
    events = EventAccumulator(str(out / "logs"))
    events.Reload()
    return [event.value for event in events.Scalars(name)]


@pytest.mark.slow
def test_tiny_recipe_learns_more_than_the_mean_frame(store: Path, tmp_path: Path) -> None:
    options = ("--recipe.steps", "350", "--recipe.log-steps", "25", "--recipe.stages.1.length", "12")
    options += ("--recipe.max-minutes", "0")  # the schedule follows the steps, however fast the machine is
    train(parse_arguments([*TINY, "--data", str(store), "--out", str(tmp_path), *options]))
    frames = frames_to_model(EpisodeDataset(store).frames)
    mean_frame_mse = (frames - frames.mean(0)).square().mean().item()
    mse = scalars(tmp_path, "mse")
    assert mse[-1] < 0.7 * mean_frame_mse, (mse, mean_frame_mse)


def test_a_stopped_run_goes_on_bit_for_bit(store: Path, tmp_path: Path) -> None:
    whole = run(store, tmp_path / "whole")
    stopped = run(store, tmp_path / "parts", "--stop-after-steps", "7")
    assert stopped.name == "step_000000007.safetensors"
    again = run(store, tmp_path / "parts")
    assert again.name == whole.name == "step_000000020.safetensors"
    assert_equal_files(whole, again)
    for name in ("mse", "learning_rate"):
        steps = scalars(tmp_path / "whole", name)
        assert len(steps) == 4
    assert_equal_files(tmp_path / "whole" / "model.safetensors", tmp_path / "parts" / "model.safetensors")


def test_a_killed_run_goes_on_from_its_last_checkpoint_bit_for_bit(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(store, tmp_path / "whole", "--recipe.checkpoint-steps", "10")
    calls = 0
    original = trainer.world_model_loss

    def dies_at_step_14(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 14:
            raise RuntimeError("killed")
        return original(*arguments, **keywords)

    monkeypatch.setattr(trainer, "world_model_loss", dies_at_step_14)
    with pytest.raises(RuntimeError, match="killed"):
        run(store, tmp_path / "killed", "--recipe.checkpoint-steps", "10")
    monkeypatch.undo()
    assert [path.name for path in checkpoints(tmp_path / "killed" / "checkpoints")] == ["step_000000010.safetensors"]
    assert_equal_files(whole, run(store, tmp_path / "killed", "--recipe.checkpoint-steps", "10"))


@pytest.mark.parametrize("more", [(), ("--recipe.loss.own-generations", "2", "--recipe.optimizer", "muon")])
def test_self_context_runs_go_on_bit_for_bit_too(store: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    option = ("--recipe.stages.0.self-context", "0.5", *more)
    whole = run(store, tmp_path / "whole", *option)
    run(store, tmp_path / "parts", *option, "--stop-after-steps", "5")
    assert_equal_files(whole, run(store, tmp_path / "parts", *option))


def test_sigterm_saves_a_checkpoint_and_ends_well(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = trainer.world_model_loss
    calls = 0

    def terminates_at_step_3(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **keywords)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(trainer, "world_model_loss", terminates_at_step_3)
    assert run(store, tmp_path).name == "step_000000003.safetensors"
    assert "Stopped at step 3" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == before


def test_nan_stops_with_the_step_and_the_last_good_checkpoint(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trainer.world_model_loss
    calls = 0

    def nan_from_step_13(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        loss, metrics = original(*arguments, **keywords)
        return (loss * float("nan") if calls >= 13 else loss), metrics

    monkeypatch.setattr(trainer, "world_model_loss", nan_from_step_13)
    with pytest.raises(SystemExit) as stop:
        main([*FAST, "--data", str(store), "--out", str(tmp_path), "--recipe.checkpoint-steps", "6"])
    last_good = tmp_path / "checkpoints" / "step_000000012.safetensors"
    assert f"not finite at step 13; the last good checkpoint is {last_good}" in str(stop.value.code)
    assert "\n" not in str(stop.value.code)
    tensors = safetensors.torch.load_file(last_good)
    assert all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point())
    assert all(t.isfinite().all() for t in load_checkpoint(tmp_path / "model.safetensors").tensors.values())


@pytest.mark.parametrize(
    ("free", "told"), [(20, " Other processes hold 70 of its 140 GiB."), (90, "")], ids=["shared", "alone"]
)
def test_too_little_memory_says_which_setting_to_lower_and_what_others_hold(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, told: str
) -> None:
    def out_of_memory(*arguments: Any, **keywords: Any) -> Any:
        # Only now, so that the training before it takes this machine for what it is.
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free * 2**30, 140 * 2**30))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 50 * 2**30)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(trainer, "world_model_loss", out_of_memory)
    with pytest.raises(MemoryError) as error:
        run(store, tmp_path)
    told = "lower --recipe.stages.0.batch-size (now 8) or .length (6)." + told
    assert str(error.value) == f"The GPU has not enough memory at step 0; {told}"


def test_only_the_latest_checkpoints_are_kept(store: Path, tmp_path: Path) -> None:
    run(store, tmp_path, "--recipe.checkpoint-steps", "4", "--recipe.num-checkpoints", "3")
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step_{step:09d}.safetensors" for step in (12, 16, 20)]


def test_other_settings_cannot_go_on_with_a_run(store: Path, tmp_path: Path) -> None:
    run(store, tmp_path, "--stop-after-steps", "1")
    with pytest.raises(ValueError, match=r"recipe\.learning_rate was 0\.002 and is 0\.1") as error:
        run(store, tmp_path, "--recipe.learning-rate", "0.1")
    assert "log_steps" not in str(error.value)
    run(store, tmp_path, "--recipe.log-steps", "3", "--stop-after-steps", "1")  # decides nothing about the weights


def test_a_run_whose_settings_were_written_flat_goes_on(store: Path, tmp_path: Path) -> None:
    path = run(store, tmp_path, "--stop-after-steps", "1")
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["training"])
    nested = header["settings"]["recipe"]["model"]
    flat = {key: value for key, value in nested.items() if not isinstance(value, dict)}
    for earlier, now in FLAT_NAMES.items():
        part, _, name = now.partition(".")
        flat[earlier] = nested[part][name]
    flat |= {"pose_kind": "vector", "odometry": False, "bearings": False}
    header["settings"]["recipe"]["model"] = flat
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"training": json.dumps(header)})
    assert run(store, tmp_path, "--stop-after-steps", "1").name == "step_000000002.safetensors"


def test_flags_before_the_models_parts_were_nested_still_work_with_a_warning() -> None:
    paths = ["--data", "store", "--out", "run"]
    earlier = ["--recipe.model.map_size=8", "--recipe.model.no-ray-lines", "--recipe.model.num-scan-groups", "2"]
    now = ["--recipe.model.map.size=8", "--recipe.model.pose.no-ray-lines", "--recipe.model.scan.num-groups", "2"]
    options = ["--recipe", "memory_maze_9x9_map", *paths]
    with pytest.warns(DeprecationWarning, match=r"--recipe.model.scan.num-groups"):
        before = parse_arguments([*options, *earlier])
    assert before.recipe == parse_arguments([*options, *now]).recipe
    assert isinstance(before.recipe, Recipe)
    assert before.recipe.model.map.size == 8 and not before.recipe.model.pose.ray_lines


def test_a_run_goes_on_with_the_episodes_that_it_had_although_the_store_has_grown(tmp_path: Path) -> None:
    make_toy_store(tmp_path / "store", [0, 1, 3])
    whole = run(tmp_path / "store", tmp_path / "whole")
    run(tmp_path / "store", tmp_path / "parts", "--stop-after-steps", "7")
    make_toy_store(tmp_path / "store", [2, 4])
    later = run(tmp_path / "store", tmp_path / "parts", "--recipe.refresh-minutes", "1000")
    assert_equal_files(whole, later)
    metadata = load_checkpoint(tmp_path / "parts" / "model.safetensors").metadata
    assert metadata["training_seeds"] == [[0, 1], [3, 3]]


def test_episodes_that_are_gone_when_a_run_goes_on_are_named(tmp_path: Path) -> None:
    make_toy_store(tmp_path / "store", range(3))
    run(tmp_path / "store", tmp_path / "run", "--stop-after-steps", "1")
    shutil.rmtree(tmp_path / "store" / "train" / "episode_0000000001")
    with pytest.raises(ValueError, match="no episode of seed 1"):
        run(tmp_path / "store", tmp_path / "run")


@pytest.mark.parametrize("options", [("cpu", "1"), ("stream", "1"), ("stream", "5"), ("auto", "3")])
def test_results_depend_neither_on_where_frames_are_nor_on_the_number_of_threads(
    store: Path, tmp_path: Path, options: tuple[str, str]
) -> None:
    expected = run(store, tmp_path / "expected", "--stop-after-steps", "12")
    where, threads = options
    path = run(store, tmp_path / "run", "--data-device", where, "--data-threads", threads, "--stop-after-steps", "12")
    assert_equal_files(expected, path)


def test_a_growing_store_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_toy_store(tmp_path / "store", range(2))
    original = trainer.world_model_loss

    def records_meanwhile(*arguments: Any, **keywords: Any) -> Any:
        make_toy_store(tmp_path / "store", range(2, 3))
        return original(*arguments, **keywords)

    monkeypatch.setattr(trainer, "world_model_loss", records_meanwhile)
    path = run(tmp_path / "store", tmp_path / "run", "--recipe.refresh-minutes", "1e-9", "--stop-after-steps", "3")
    assert load_data_seeds(path) == [0, 1, 2]
    metadata = load_checkpoint(tmp_path / "run" / "model.safetensors").metadata
    assert metadata["training_seeds"] == [[0, 2]]


def test_a_truncated_checkpoint_is_a_clear_error(store: Path, tmp_path: Path) -> None:
    path = run(store, tmp_path, "--stop-after-steps", "1")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged or truncated"):
        run(store, tmp_path)


def test_a_missing_store_is_one_sentence_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*FAST, "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run")])
    assert "nowhere" in str(stop.value.code)
    assert "\n" not in str(stop.value.code)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe.loss.mirror-probability", "0.5"], "each of the model's 3 actions is in the mirror"),
        (["--recipe.stages.1.length", "42"], "41 frames"),
        (
            ["--recipe.model.pose.size", "3", "--recipe.model.pose.kind", "vector"],
            "pose.size is 3, but poses in the data have 4 numbers",
        ),
        (["--recipe.model.reward-values", "0.0", "5.0"], "rewards 1"),
        (["--init", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--data-device", "cuda"], "--data-device cuda needs the model on the GPU too"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused_at_once(
    store: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*FAST, "--data", str(store), "--out", str(tmp_path / "run"), *options])
    assert message in str(stop.value.code)
    assert not (tmp_path / "run").exists()


def test_mirrored_sequences_change_what_is_learned_from_the_same_data(store: Path, tmp_path: Path) -> None:
    mirrored = ["--recipe.loss.mirror-probability", "0.5", "--recipe.loss.mirrored-actions", "0", "2", "1"]
    paths = [run(store, tmp_path / name, *more) for name, more in (("plain", ()), ("seen", mirrored))]
    plain, seen = (safetensors.torch.load_file(path) for path in paths)
    assert any(not torch.equal(plain[name], seen[name]) for name in plain)


def test_the_exported_model_loads_and_tells_where_it_comes_from(store: Path, tmp_path: Path) -> None:
    path = run(store, tmp_path, "--recipe.model.pose.size", "4", "--recipe.model.pose.kind", "vector")
    exported = tmp_path / "model.safetensors"
    model = WorldModel.from_checkpoint(str(exported))
    assert model.config.pose.size == 4
    averages = safetensors.torch.load_file(path)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, averages[f"ema.{name}"])
    checkpoint = load_checkpoint(exported)
    assert checkpoint.metadata["frames_seen"] == 10 * 8 * 6 + 10 * 4 * 10
    assert checkpoint.metadata["training_seeds"] == [[0, 11]]
    assert checkpoint.metadata["env_id"] == "tests.toy_env:tests/ToyMaze-v0"
    assert str(tmp_path) not in json.dumps(checkpoint.metadata)


def test_a_run_can_start_from_exported_weights_of_the_same_model(store: Path, tmp_path: Path) -> None:
    run(store, tmp_path / "first")
    exported = tmp_path / "first" / "model.safetensors"
    options = ("--init", str(exported), "--stop-after-steps", "1", "--recipe.learning-rate", "0.0")
    path = run(store, tmp_path / "second", *options)
    expected, tensors = load_checkpoint(exported).tensors, safetensors.torch.load_file(path)
    assert all(torch.equal(expected[name], tensors[f"model.{name}"]) for name in expected)
    continued = load_checkpoint(tmp_path / "second" / "model.safetensors").metadata
    first = load_checkpoint(exported)
    assert continued["continues"]["frames_seen"] == first.metadata["frames_seen"]
    other = save_tiny_checkpoint(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"another model \(.*window=3"):
        run(store, tmp_path / "third", "--init", str(other))


def test_a_run_may_take_in_its_own_frames_more_rarely_than_the_one_that_it_starts_from(tmp_path: Path) -> None:
    first = tiny_model(hide_noise=True)
    model = tiny_model(seed=1, hide_noise=True, feedback_interval=3)
    trainer.load_initial_weights(model, str(save_tiny_checkpoint(tmp_path / "first.safetensors", first)))
    assert model.config.feedback_interval == 3
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), model.parameters(), strict=True))


def test_a_run_may_learn_lines_of_sight_that_its_first_model_did_not_know(tmp_path: Path) -> None:
    first = tiny_model(pose=PLANAR_POSE)
    model = tiny_model(seed=1, pose=dataclasses.replace(PLANAR_POSE, ray_lines=True))
    trainer.load_initial_weights(model, str(save_tiny_checkpoint(tmp_path / "first.safetensors", first)))
    frames, levels, poses = torch.randn(1, 2, 3, 16, 16), torch.ones(1, 2), torch.randn(1, 2, 4)
    inputs = frames, levels, torch.zeros(1, 1, dtype=torch.int64), poses
    with torch.no_grad():
        assert torch.equal(model(*inputs).frame, first(*inputs).frame)
    assert dict(model.named_parameters())[trainer.LINE_WEIGHT].requires_grad


def test_a_run_may_be_given_a_map_that_its_first_model_did_not_have(tmp_path: Path) -> None:
    first = tiny_model(pose=PLANAR_POSE)
    config = dataclasses.replace(first.config, map=SMALL_MAP)
    model = WorldModel(config)
    trainer.load_initial_weights(model, str(save_tiny_checkpoint(tmp_path / "first.safetensors", first)))
    frames, levels, poses = torch.randn(1, 3, 3, 16, 16), torch.tensor([[0.0, 0.0, 1.0]]), torch.randn(1, 3, 4)
    inputs = frames, levels, torch.zeros(1, 2, dtype=torch.int64), poses
    with torch.no_grad():
        torch.testing.assert_close(model(*inputs).frame, first(*inputs).frame)
    model(*inputs).frame[:, -1].square().sum().backward()
    assert model.backbone.map_memory is not None
    learned = model.backbone.map_memory.out.weight.grad  # by which it begins to be read
    assert learned is not None and learned.abs().sum() > 0


def test_mazes_of_the_first_run_still_count_as_trained_on_after_the_second(store: Path, tmp_path: Path) -> None:
    run(store, tmp_path / "first")
    first = load_checkpoint(tmp_path / "first" / "model.safetensors")
    elsewhere = tmp_path / "elsewhere.safetensors"
    save_checkpoint(
        elsewhere,
        config=first.config,
        tensors=first.tensors,
        observation_space=first.observation_space,
        action_space=first.action_space,
        metadata=first.metadata | {"training_seeds": [[50, 52]]},
    )
    run(store, tmp_path / "second", "--init", str(elsewhere), "--stop-after-steps", "1")
    seeds = load_checkpoint(tmp_path / "second" / "model.safetensors").metadata["training_seeds"]
    assert seeds == [[0, 11], [50, 52]]


def test_two_processes_share_one_run(store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "training.train", *FAST, "--data", str(store), "--out", str(tmp_path), "--recipe.steps", "12"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert process.returncode == 0, process.stderr
    path = checkpoints(tmp_path / "checkpoints")[-1]
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["training"])
        streams = [file.get_tensor(f"random.noise.{rank}") for rank in range(2)]
    assert header["step"] == 12
    assert header["frames_seen"] == 2 * (6 * 8 * 6 + 6 * 4 * 10)
    assert not torch.equal(streams[0], streams[1])


def test_progress_is_by_steps_or_by_clock_whichever_is_ahead() -> None:
    stages = (Stage(10, 1, 0.25), Stage(20, 1, 0.75))
    recipe = Recipe(stages=stages, steps=100, max_minutes=10.0, learning_rate=1.0, warmup_steps=1)
    assert recipe.progress(50, 1.0) == 0.5
    assert recipe.progress(50, 8.0) == 0.8
    assert recipe.progress(50, 12.0) == 1.0
    assert recipe.stage_at(0.2) == stages[0]
    assert recipe.stage_at(0.25) == recipe.stage_at(1.0) == stages[1]


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_learning_rate_warms_up_and_decays_to_0(decay: Any) -> None:
    recipe = Recipe(stages=(Stage(10, 1, 1.0),), steps=100, learning_rate=1.0, warmup_steps=10, decay=decay)
    rates = [recipe.learning_rate_at(step, step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1, abs=0.001)
    assert rates.index(max(rates)) in (9, *range(10, 51))
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[100] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("recipe", [memory_maze_9x9(), tiny()])
def test_recipes_survive_a_round_trip_through_the_command_line(recipe: Recipe) -> None:
    name = "tiny" if recipe == tiny() else "memory_maze_9x9"
    arguments = parse_arguments(["--recipe", name, "--data", "store", "--out", "run"])
    assert arguments.recipe == recipe
    assert arguments.recipe_name == name


@pytest.mark.parametrize("fractions", [(0.5, 0.4), (1.0, 0.5)])
def test_stages_have_to_cover_the_whole_run(fractions: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        Recipe(stages=tuple(Stage(10, 1, fraction) for fraction in fractions), steps=10)
