"""`wm_gym.compare` end to end, with a toy environment as reality and tiny random models as dreams."""

from __future__ import annotations

import dataclasses
import json
import re
import sys

import gymnasium as gym
import numpy as np
import pytest

import tests.toy_env
from tests.tiny import save_tiny_checkpoint, save_tiny_clips, set_termination_bias, tiny_model
from wm_gym import CompareConfig, compare
from wm_gym.cli import main
from wm_gym.comparison.record import RecordFolder

for package in ("pandas", "matplotlib", "torchmetrics", "imageio_ffmpeg"):
    pytest.importorskip(package)

TOY = "tests.toy_env:" + tests.toy_env.ENV_ID


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"))


@pytest.fixture
def config(tmp_path, checkpoint):
    """A dream against the toy environment; no film, which takes most of the time."""
    return CompareConfig(
        env_kwargs=json.dumps({"checkpoint": checkpoint}),
        real=TOY,
        policy="random",
        context=5,
        steps=6,
        seeds="3-5",
        out=tmp_path / "out",
        device="cpu",
        films=0,
    )


def records(config, seeds=(3, 4, 5)):
    settings = json.loads((config.out / "episodes" / "settings.json").read_text())
    folder = RecordFolder(config.out, settings)
    return [folder.read(seed) for seed in seeds]


def assert_same_dream(one, other):
    """Another size of batch may round differently, and a dream takes that on; other noise differs by 50 and more."""
    assert np.abs(one.frames.astype(int) - other.frames).mean() < 0.5


def test_the_command_writes_a_report_that_needs_no_network(config, capsys):
    arguments = ["compare", "--env-kwargs", config.env_kwargs, "--real", TOY, "--policy", "random", "--context", "5"]
    arguments += ["--steps", "6", "--seeds", "3-4", "--out", str(config.out), "--device", "cpu", "--films", "2"]
    assert main(arguments) == 0
    names = {path.name for path in config.out.iterdir()}
    expected = {"report.html", "compare.mp4", "compare.png", "compare.json", "compare.csv", "strips", "episodes"}
    assert names == expected
    page = (config.out / "report.html").read_text()
    sources = re.findall(r"""(?:src|href|poster)=['"]([^'"]{0,12})""", page)
    assert len(sources) >= 4
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "@import" not in page and "<script" not in page
    for url in re.findall(r"url\(([^)]{0,6})", page):
        assert url.startswith("#")
    assert "Dream beside reality" in page
    output = capsys.readouterr().out
    assert "psnr_copy_last" in output and "report.html" in output
    assert not list(config.out.rglob("*.tmp*"))


def test_both_sides_take_the_same_actions_from_the_same_context(config):
    compare(config)
    for record in records(config):
        real = gym.make(TOY)
        frame, _ = real.reset(seed=record.seed)
        frames, rewards = [frame], []
        for action in record.actions:
            frame, reward, *_ = real.step(action)
            frames.append(frame)
            rewards.append(reward)
        np.testing.assert_array_equal(record.reference_frames, frames)
        np.testing.assert_array_equal(record.reference_rewards, rewards[4:])
        dream = gym.make("LSSVWM-MemoryMaze-v0", **json.loads(config.env_kwargs))
        dream.reset(seed=record.seed, options={"context": (record.reference_frames[:5], record.actions[:4])})
        steps = [dream.step(action) for action in record.actions[4:]]
        np.testing.assert_array_equal(record.frames, [step[0] for step in steps])
        np.testing.assert_array_equal(record.rewards, [step[1] for step in steps])


def test_the_size_of_a_batch_changes_nothing(config, tmp_path):
    compare(config)
    batched = dataclasses.replace(config, out=tmp_path / "batched", batch=2)
    compare(batched)
    for one, other in zip(records(config), records(batched), strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.reference_frames, other.reference_frames)
        assert_same_dream(one, other)


def test_the_table_holds_each_step_of_each_seed_and_the_json_all_figures(config):
    pandas = pytest.importorskip("pandas")
    comparison = compare(config)
    table = pandas.read_csv(config.out / "compare.csv")
    assert list(table.seed.unique()) == [3, 4, 5]
    assert len(table) == len(comparison.steps) == 18
    record = json.loads((config.out / "compare.json").read_text())
    assert record["summary"] == comparison.summary
    assert record["summary"]["psnr"] == pytest.approx(table.groupby("seed").psnr.mean().mean(), abs=1e-3)
    means = table.groupby("step").psnr.mean()
    np.testing.assert_allclose(record["by_step"]["psnr"]["mean"], means, atol=1e-3)
    assert [row["return_reference"] for row in record["by_episode"]] == list(
        table.groupby("seed").reward_reference.sum()
    )
    assert record["command"].startswith("wm-gym compare ") and "/" not in record["env_kwargs"]["checkpoint"]


def test_a_second_run_plays_only_what_is_missing(config, monkeypatch):
    compare(dataclasses.replace(config, seeds="3-4"))
    first = (config.out / "episodes" / "0000000003.npz").stat()
    plays = []
    monkeypatch.setattr(
        "wm_gym.comparison.run.run_batch",
        lambda *args, original=sys.modules["wm_gym.comparison.run"].run_batch: (plays.append(args[3]), original(*args))[
            1
        ],
    )
    comparison = compare(config)
    assert plays == [[5]]
    assert (config.out / "episodes" / "0000000003.npz").stat().st_mtime_ns == first.st_mtime_ns
    assert list(comparison.episodes.seed) == [3, 4, 5]


def test_an_interrupted_run_keeps_the_seeds_that_it_finished(config):
    def make(env, seed):
        made.append(seed)
        return lambda obs, info: 0 if len(made) < 3 else 7

    made = []
    with pytest.raises(ValueError, match=r"gave the action 7 at frame 0 of the episode of seed 5, .*Discrete\(3\)"):
        compare(config, policy=make)
    assert sorted(path.name for path in config.out.rglob("*")) == [
        "0000000003.npz",
        "0000000004.npz",
        "episodes",
        "settings.json",
    ]


def test_a_folder_with_other_settings_is_refused(config):
    compare(config)
    with pytest.raises(ValueError, match=r"another steps: 6, now 7"):
        compare(dataclasses.replace(config, steps=7))


def test_a_checkpoint_that_changed_is_noticed(config, tmp_path):
    path = tmp_path / "model.safetensors"
    config = dataclasses.replace(config, env_kwargs=json.dumps({"checkpoint": str(path)}), seeds="3")
    save_tiny_checkpoint(path)
    compare(config)
    save_tiny_checkpoint(path, tiny_model(seed=1))
    with pytest.raises(ValueError, match="another env_checkpoint"):
        compare(config)


def test_an_environment_against_itself_agrees_in_everything(config):
    config = dataclasses.replace(config, env=TOY, env_kwargs="{}", against=TOY, steps=30, seeds="0-7", batch=4)
    comparison = compare(config)
    assert comparison.summary["psnr"] == pytest.approx(58.9, abs=0.1)
    assert comparison.summary["ssim"] == 1
    assert comparison.summary["reward_hits"] == comparison.steps.reward.sum() > 0
    assert comparison.summary["reward_misses"] == comparison.summary["reward_false_alarms"] == 0
    assert comparison.summary["median_parting_step"] is None
    np.testing.assert_array_equal(comparison.steps.reward, comparison.steps.reward_reference)


@pytest.mark.parametrize("batch", [1, 2])
def test_two_checkpoints_start_from_the_same_clip(config, tmp_path, batch):
    other = save_tiny_checkpoint(tmp_path / "other.safetensors", tiny_model(seed=1))
    clips = save_tiny_clips(tmp_path / "clips.npz")
    config = dataclasses.replace(
        config,
        against="LSSVWM-MemoryMaze-v0",
        against_kwargs=json.dumps({"checkpoint": str(other)}),
        clips=str(clips),
        seeds="0-1,7100000",
        batch=batch,
    )
    comparison = compare(config)
    loaded = np.load(clips)["frames"]
    first, second, recorded = records(config, (0, 1, 7_100_000))
    for record, clip in ((first, 0), (second, 1), (recorded, 0)):
        np.testing.assert_array_equal(record.reference_frames[:5], loaded[clip, :5])
    assert comparison.summary["psnr"] < 58
    page = (config.out / "report.html").read_text()
    assert "Tiny beside other" in page


def test_an_episode_that_ends_stops_the_comparison_of_its_seed(config, tmp_path):
    model = tiny_model()
    set_termination_bias(model, 20.0)
    checkpoint = str(save_tiny_checkpoint(tmp_path / "short.safetensors", model))
    for batch in (1, 2):
        out = tmp_path / f"batch{batch}"
        short = dataclasses.replace(config, env_kwargs=json.dumps({"checkpoint": checkpoint}), batch=batch, out=out)
        comparison = compare(short)
        assert list(comparison.episodes.steps) == [1, 1, 1]
        assert set(comparison.episodes.end) == {"terminated"}
        assert "3 of 3 episodes ended before step 6" in (out / "report.html").read_text()


def test_rows_that_end_do_not_disturb_the_others(config, tmp_path):
    """One toy episode terminates at its first reward; the other rows of its batch go on in the dream's batch."""
    config = dataclasses.replace(config, real_kwargs='{"terminate_after_rewards": 1}', steps=25, seeds="0-3")
    one = compare(config)
    assert len(set(one.episodes.steps)) > 1, "Some episodes end early, others do not."
    batched = dataclasses.replace(config, out=tmp_path / "batched", batch=4)
    other = compare(batched)
    assert list(one.episodes.steps) == list(other.episodes.steps)
    for mine, theirs in zip(records(config, range(4)), records(batched, range(4)), strict=True):
        assert_same_dream(mine, theirs)


def test_a_seed_that_was_trained_on_is_noted(config, tmp_path):
    from tests.tiny import DISCRETE, OBSERVATION_SPACE
    from wm_gym.checkpoint import save_checkpoint

    model = tiny_model()
    save_checkpoint(
        tmp_path / "trained.safetensors",
        config=model.config.to_dict(),
        tensors=model.state_dict(),
        observation_space=OBSERVATION_SPACE,
        action_space=DISCRETE,
        metadata={"training_seeds": [[0, 3], [5, 5]]},
    )
    config = dataclasses.replace(config, env_kwargs=json.dumps({"checkpoint": str(tmp_path / "trained.safetensors")}))
    compare(config)
    assert "was trained on 2 of these 3 seeds (3, 5)" in (config.out / "report.html").read_text()


def test_a_policy_may_be_given_as_a_function_or_a_model(config, tmp_path):
    compare(config, policy=lambda env, seed: lambda obs, info: 2)
    assert all((record.actions == 2).all() for record in records(config))

    class Model:
        def predict(self, obs, state=None, episode_start=None, deterministic=False):
            assert obs.shape == (16, 16, 3)
            return np.array(1), (state or 0) + 1

    config = dataclasses.replace(config, out=tmp_path / "model")
    compare(config, policy=Model())
    assert all((record.actions == 1).all() for record in records(config))


def only_left(env, seed):
    """A policy as a user writes it: tests.comparison.test_compare:only_left."""
    return lambda obs, info: tests.toy_env.TURN_LEFT


def test_a_users_function_and_an_sb3_model_can_be_named(config, tmp_path):
    compare(dataclasses.replace(config, policy="tests.comparison.test_compare:only_left"))
    assert all((record.actions == tests.toy_env.TURN_LEFT).all() for record in records(config))

    sb3 = pytest.importorskip("stable_baselines3")
    env = gym.make(TOY)
    model = sb3.PPO("MlpPolicy", env, n_steps=8, batch_size=8, seed=0, device="cpu")
    model.save(tmp_path / "model.zip")
    config = dataclasses.replace(config, policy=str(tmp_path / "model.zip"), out=tmp_path / "sb3", seeds="3")
    compare(config)
    [record] = records(config, [3])
    chosen = [model.predict(frame, deterministic=True)[0] for frame in record.reference_frames[:-1]]
    np.testing.assert_array_equal(record.actions, chosen)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "Unknown-v0"}, "Cannot make the environment 'Unknown-v0'"),
        ({"real": "no_such_module:Env-v0"}, "Cannot make the environment 'no_such_module:Env-v0'"),
        ({"real": "CartPole-v1"}, "uint8 images"),
        ({"real_kwargs": '{"size": 32}'}, "same spaces.*observation space"),
        ({"real_kwargs": '{"sise": 32}'}, "Cannot make the environment .*sise"),
        ({"real_kwargs": "size=32"}, "real_kwargs must be a JSON object"),
        ({"policy": "clever"}, "A policy is "),
        ({"policy": "navigator"}, "6 discrete actions"),
        ({"policy": "backtrack"}, "6 discrete actions"),
        ({"real": "/tmp"}, "python -m training.compare --data /tmp"),
        ({"context": 0}, "context must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"seeds": "5-3"}, "range of seeds"),
        ({"seeds": "few"}, "Seeds are numbers"),
        ({"context": 50}, "ended within the 50 frames of context"),
        ({"device": "cuda:99"}, "is not there"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(config, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        compare(dataclasses.replace(config, **changes))
    assert "\n" not in str(error.value)
    assert not config.out.exists()


def test_a_missing_policy_file_or_checkpoint_is_named(config):
    for changes in ({"policy": "gone.zip"}, {"env_kwargs": '{"checkpoint": "gone"}'}):
        with pytest.raises(FileNotFoundError, match="gone"):
            compare(dataclasses.replace(config, **changes))
    assert not config.out.exists()


@pytest.mark.parametrize("package", ["pandas", "matplotlib.figure", "torchmetrics", "PIL"])
def test_a_missing_package_is_named_before_anything_is_played(config, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match="pip install"):
        compare(config)
    assert not config.out.exists()


@pytest.mark.slow
@pytest.mark.real_env
def test_the_packaged_dream_beats_a_still_picture_where_it_has_just_been(tmp_path):
    config = CompareConfig(policy="backtrack", context=60, steps=20, seeds="7000000-7000001", out=tmp_path, films=1)
    comparison = compare(config)
    assert comparison.summary["psnr_first_step"] > 25
    first = comparison.steps[comparison.steps.step <= 5]
    assert first.psnr.mean() > first.psnr_copy_last.mean() + 3
    record = records(config, [7_000_000])[0]
    assert set(record.map) >= {"pose", "layout", "targets", "target_color"}
    assert (tmp_path / "compare.mp4").stat().st_size > 10_000
