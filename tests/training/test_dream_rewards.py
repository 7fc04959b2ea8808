import numpy as np
import pytest
import torch

from tests.tiny import save_tiny_checkpoint, tiny_model
from tests.toy_store import make_toy_store
from training.dream_rewards import DreamRewardsConfig, draw_moments, dream, recall_by_distance, run, threshold_figures
from training.store.episode_store import open_store
from wm_gym.ops.step import frame_noise


def config_for(tmp_path, **changes):
    store = make_toy_store(tmp_path / "store", range(12))
    checkpoint = save_tiny_checkpoint(tmp_path / "tiny.safetensors")
    values = {"split": "train", "episodes": 5, "context": 6, "before_rewards": (2, 9), "batch": 3, "device": "cpu"}
    return DreamRewardsConfig(str(checkpoint), store.path, tmp_path / "out.json", **{**values, **changes})


def test_a_threshold_is_judged_by_the_first_reward_that_it_lets_a_dream_give():
    likely = np.zeros((4, 10), np.float32)
    likely[0, 4] = 0.55  # step 5, where the record has it
    likely[1, [0, 4]] = 0.15, 0.55  # and something much earlier that only low thresholds take for one
    likely[2, 9] = 0.95  # much later than the record: missed
    figures = {one["threshold"]: one for one in threshold_figures(likely, np.full(4, 5), 1)}
    assert [figures[0.5][key] for key in ("hits", "false", "missed")] == [2, 0, 2]
    assert [figures[0.1][key] for key in ("hits", "false", "missed")] == [1, 1, 2]
    assert [figures[0.7][key] for key in ("hits", "false", "missed")] == [0, 0, 4]
    assert figures[0.1]["precision"] == 0.5 and figures[0.7]["precision"] is None and figures[0.5]["recall"] == 0.5
    assert figures[0.1]["f_half"] == pytest.approx(1.25 * 0.5 * 0.25 / (0.25 * 0.5 + 0.25))


def test_recall_is_told_by_how_far_ahead_a_reward_lies():
    likely = np.zeros((4, 30), np.float32)
    steps = np.array([5, 4, 12, 25])
    likely[0, 5], likely[1, 9], likely[2, 11] = 0.6, 0.6, 0.6  # one step late, six steps late, in time, never
    assert recall_by_distance(likely, steps, 1, 0.5) == [
        {"steps": "1-5", "rewards": 2, "recall": 0.5},
        {"steps": "11-15", "rewards": 1, "recall": 1.0},
        {"steps": "21-25", "rewards": 1, "recall": 0.0},
    ]
    assert [one["recall"] for one in recall_by_distance(likely, steps, 1, 0.7)] == [0, 0, 0]


def test_dreams_follow_the_recorded_actions_step_by_step(tmp_path):
    config = config_for(tmp_path)
    moments = draw_moments(open_store(config.data), config)
    assert moments.frames.shape[:2] == (5, 6) and moments.actions.shape == (5, 5 + 9 + 3)
    assert ((moments.steps >= 2) & (moments.steps <= 9)).all()
    model = tiny_model()
    likely = dream(model, moments, 3, 0)
    row = 4  # of a batch that is not full
    state = model.prefill(
        model.initial_state(1), torch.from_numpy(moments.frames[[row]]), torch.from_numpy(moments.actions[[row], :5])
    )
    for t in range(likely.shape[1]):
        noise = frame_noise(torch.tensor([row]), torch.tensor([t]), (3, 16, 16))
        prediction, state = model.step(state, torch.from_numpy(moments.actions[[row], 5 + t]), noise)
        expected = prediction.reward_logits.float().softmax(-1)[0, model.reward_values != 0].sum()
        assert likely[row, t] == pytest.approx(float(expected.detach()), abs=1e-4)


def test_the_file_names_the_best_threshold(tmp_path):
    config = config_for(tmp_path)
    report = run(config, [])
    best = max(report["by_threshold"], key=lambda one: one["f_half"])
    assert report["best_threshold"] == (best["threshold"] if best["hits"] else None) and config.out.is_file()
    assert all(one["hits"] + one["false"] + one["missed"] == 5 for one in report["by_threshold"])


def test_too_few_moments_are_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="ask for fewer"):
        run(config_for(tmp_path, episodes=100_000), [])
