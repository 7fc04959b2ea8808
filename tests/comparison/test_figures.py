import numpy as np
import pytest

from wm_gym.comparison.figures import Criteria, curves, episode_figures, horizon_table, ranked, summary
from wm_gym.comparison.record import Record

pytest.importorskip("torchmetrics")
CRITERIA = Criteria(tolerance=1, part_psnr=22.0, part_steps=2)


def episode(seed, errors, reference_rewards=None, rewards=None):
    """An episode whose dream is `errors` grey levels off at each step."""
    num_steps = len(errors)
    frames = np.full((1 + num_steps, 16, 16, 3), 100, np.uint8)
    zeros = np.zeros(num_steps)
    record = Record(
        seed=seed,
        reference_frames=frames,
        frames=frames[1:] + np.array(errors, np.uint8)[:, None, None, None],
        actions=np.zeros(num_steps, np.int64),
        reference_rewards=zeros if reference_rewards is None else np.array(reference_rewards, float),
        rewards=zeros if rewards is None else np.array(rewards, float),
        reference_end="",
        end="",
        seconds=2.0,
        reference_seconds=1.0,
    )
    return episode_figures(record, CRITERIA)


@pytest.mark.parametrize(
    ("num_episodes", "count", "expected"),
    [
        (1, 3, ["1 of 1"]),
        (4, 1, ["median"]),
        (4, 3, ["best", "median", "worst"]),
        (8, 3, ["best", "median", "worst"]),
        (5, 9, ["best", "2 of 5", "median", "4 of 5", "worst"]),
    ],
)
def test_films_are_of_episodes_from_the_best_to_the_worst(num_episodes, count, expected):
    episodes = [episode(seed, [10 + (7 * seed) % 11] * 3) for seed in range(num_episodes)]
    chosen = ranked(episodes, count)
    assert [name for name, _ in chosen] == expected
    quality = [float(item.psnr.mean()) for _, item in chosen]
    assert quality == sorted(quality, reverse=True)


def test_the_summary_counts_rewards_over_all_episodes_and_takes_the_median_parting():
    episodes = [
        episode(0, [1, 1, 60, 60], reference_rewards=[1, 0, 0, 1], rewards=[0, 1, 0, 0]),
        episode(1, [60, 60, 1, 1], rewards=[0, 0, 0, 1]),
        episode(2, [1, 1, 1, 1]),
    ]
    figures = summary(episodes)
    assert (figures["reward_hits"], figures["reward_misses"], figures["reward_false_alarms"]) == (1, 1, 1)
    assert (figures["num_parted"], figures["median_parting_step"]) == (2, 3)
    assert (figures["return"], figures["return_reference"]) == (
        pytest.approx(2 / 3, abs=1e-4),
        pytest.approx(2 / 3, abs=1e-4),
    )
    assert figures["steps_per_second"] == 2


def test_most_episodes_that_never_part_have_no_median():
    assert summary([episode(0, [60, 60]), episode(1, [1, 1]), episode(2, [1, 1])])["median_parting_step"] is None


def test_the_curves_average_over_the_episodes_that_got_so_far():
    data = curves([episode(0, [10, 10]), episode(1, [20, 20, 20])])
    assert data["num_seeds"] == [2, 2, 1]
    single = episode(1, [20]).psnr[0]
    np.testing.assert_allclose(data["psnr"]["mean"][2], single, atol=1e-3)
    np.testing.assert_allclose(data["psnr"]["mean"][0], (single + episode(0, [10]).psnr[0]) / 2, atol=1e-3)
    assert data["psnr"]["min"][0] < data["psnr"]["mean"][0] < data["psnr"]["max"][0]


def test_the_horizons_cover_every_step_once():
    pytest.importorskip("pandas")
    table = horizon_table([episode(0, [10] * 30), episode(1, [10] * 7)])
    assert list(table.steps) == ["1", "2-5", "6-10", "11-20", "21-30"]
    assert list(table.seeds) == [2, 2, 2, 1, 1]
