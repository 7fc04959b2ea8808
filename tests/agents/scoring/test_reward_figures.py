import numpy as np
import pytest

from agents.scoring.reward_figures import episode_result, ranges, reward_figures
from wm_gym.comparison.record import Record
from wm_gym.statistics import proportion95


def result(dreamed, real, steps=120, seed=0):
    return {
        "seed": seed,
        "steps": steps,
        "dream_end": "",
        "real_end": "",
        "dreamed": [[step, 1.0] for step in dreamed],
        "real": [[step, 1.0] for step in real],
        "psnr": [20.0] * len(ranges(steps)),
    }


def test_rewards_are_matched_within_the_tolerance_and_each_once():
    # 10 and 12 back each other; 14 finds none left; 60 is too far from 50; 100 was not dreamed.
    results = [result([10, 14, 60], [12, 50, 100])]
    figures = reward_figures(results, tolerance=3)
    assert (figures["dreamed_rewards"], figures["real_rewards"], figures["hits"]) == (3, 3, 1)
    assert figures["precision"] == figures["recall"] == pytest.approx(1 / 3)
    assert figures["unbacked_share"] == pytest.approx(2 / 3)
    assert reward_figures(results, tolerance=1)["hits"] == 0
    assert reward_figures(results, tolerance=10)["hits"] == 2


def test_signs_of_exploitation_are_counted():
    # False rewards at 10, 20, 30 with none real between, a real one at 40, and a false one again.
    figures = reward_figures([result([10, 20, 30, 40, 90, 91, 92, 93], [40, 93])], tolerance=0)
    assert figures["most_unbacked_in_a_row"] == 3
    assert figures["longest_dreamed_run"] == 4 and figures["longest_real_run"] == 1
    assert (figures["dreamed_return"], figures["real_return"]) == (8, 2)
    assert figures["gap"] == pytest.approx(0.75) and figures["return_ratio"] == 4


def test_what_an_episode_dreams_first_is_told_apart_from_what_follows():
    # After the first reward chance has put the next target elsewhere: one is dreamed at 50, the real one comes at 90.
    parted = result([10, 50], [11, 90])
    false_first = result([5, 20], [20])
    figures = reward_figures([parted, parted, parted, false_first, result([], [7])], tolerance=3)
    assert figures["precision"] == 0.5 and figures["first_precision"] == 0.75
    assert figures["episodes_with_dreamed_rewards"] == 4
    low, high = figures["first_precision_interval95"]
    assert low < 0.4 and high > 0.9


def test_ranges_of_steps_are_told_apart():
    rows = {row["steps"]: row for row in reward_figures([result([5, 110], [5, 60])], tolerance=3)["by_range"]}
    assert rows["1-10"]["precision"] == rows["1-10"]["recall"] == 1
    assert rows["51-100"]["precision"] is None and rows["51-100"]["recall"] == 0
    assert rows["101-120"]["precision"] == 0 and rows["101-120"]["recall"] is None


def test_no_rewards_at_all_define_no_precision():
    figures = reward_figures([result([], []), result([], [])], tolerance=3)
    for name in (
        "precision",
        "first_precision",
        "first_precision_interval95",
        "precision_interval95",
        "recall",
        "recall_interval95",
        "gap",
        "return_ratio",
    ):
        assert figures[name] is None
    assert figures["most_unbacked_in_a_row"] == figures["longest_dreamed_run"] == 0


def test_the_interval_is_never_certain_and_knows_that_errors_come_together():
    assert proportion95([0, 0], [0, 0]) is None
    low, high = proportion95([1, 1, 1], [1, 1, 1]) or (0, 0)
    assert low < 0.5 and high == 1, "Three of three may well be chance."
    alone = proportion95([0, 1] * 200, [1] * 400) or (0, 0)
    together = proportion95([100, 0, 100, 0], [100] * 4) or (0, 0)
    assert alone[0] < 0.5 < alone[1] and alone[1] - alone[0] < 0.12
    assert together[1] - together[0] > 0.5


def test_a_record_is_kept_as_its_rewards_and_its_quality_by_range():
    frames = np.full((12, 8, 8, 3), 100, np.uint8)
    real = np.concatenate([frames[:2], frames])
    real[-1] = 0
    rewards = np.zeros(12)
    rewards[3] = 1
    record = Record(7, real, frames, np.zeros(13, np.int64), rewards, np.zeros(12), "truncated", "", 0.0, 0.0)
    likely = np.stack([np.ones(12), np.linspace(0, 0.033, 12)], -1)
    kept = episode_result(record, np.array([0.0, 2.0]), likely)
    assert [step for step, *_ in kept["likely"]] == [8, 9, 10, 11, 12] and kept["likely"][-1] == [12, 1.0, 0.033]
    assert "likely" not in episode_result(record, np.zeros(2), None)
    assert kept["acted"] == [[2, 2.0]]
    assert kept["real"] == [[4, 1.0]] and kept["dreamed"] == [] and kept["steps"] == 12
    assert len(kept["psnr"]) == 2 and kept["psnr"][0] > 50 > kept["psnr"][1]


def test_the_gap_of_an_agent_is_between_what_it_gets_in_dreams_and_what_it_gets_where_it_acts_in_reality():
    earlier = result([1, 2, 3, 4, 5, 6], [])  # kept before agents acted in reality
    acted = [
        {**result([10, 50], [11]), "acted": [[30, 1.0], [40, 1.0], [60, 1.0]]},
        {**result([9, 20], []), "acted": []},
    ]
    figures = reward_figures([earlier, *acted], tolerance=3)
    assert figures["acted_return"] == 1.5 and figures["acted_gap"] == pytest.approx((2 - 1.5) / 2)
    assert figures["acted_return_interval95"][0] < 1.5 < figures["acted_return_interval95"][1]
    none = reward_figures([earlier], tolerance=3)
    assert none["acted_return"] is none["acted_return_interval95"] is none["acted_gap"] is None


def test_other_thresholds_are_told_from_the_same_dreams():
    one = {
        **result([10, 30], [11], steps=60),
        "acted": [[12, 1.0], [50, 1.0]],
        "likely": [[10, 1.0, 0.97], [20, 1.0, 0.3], [30, 1.0, 0.65]],
    }
    two = {**result([40], [], steps=60), "acted": [], "likely": [[40, 1.0, 0.85]]}
    rows = {row["threshold"]: row for row in reward_figures([one, two], tolerance=3)["by_threshold"]}
    assert [rows[at]["dreamed_rewards"] for at in (0.25, 0.35, 0.6, 0.7, 0.9)] == [4, 3, 3, 2, 1]
    assert rows[0.25]["precision"] == 0.25 and rows[0.9]["precision"] == 1
    assert rows[0.25]["dreamed_return"] == 2 and rows[0.25]["acted_gap"] == pytest.approx(0.5)
    # Two dreams have a first reward, one real episode; from .9 on only that one.
    assert rows[0.7]["acted_first_gap"] == pytest.approx(0.5) and rows[0.9]["acted_first_gap"] == 0
    assert reward_figures([one, result([], [])], tolerance=3)["by_threshold"] == []


def test_the_first_rewards_of_dreams_are_held_against_the_first_real_ones():
    one = {**result([10, 20, 30], []), "acted": [[70, 1.0]]}
    two = {**result([15], []), "acted": []}
    figures = reward_figures([one, two], tolerance=3)
    assert figures["acted_gap"] == pytest.approx(0.75) and figures["acted_first_gap"] == pytest.approx(0.5)


def test_rewards_where_dream_and_reality_stand_together_are_told_apart():
    # Step 10 is backed and step 20 is not, both while the poses agree; 40, which agrees no more, is not counted.
    where = {"drift": [], "walls": None, "agreed": [[0, 21]], "parted": 21}
    known = result([10, 20, 40], [11, 40]) | {"where": where}
    together = reward_figures([known, result([30], [])], tolerance=3)["rewards_together"]
    assert (together["dreamed_rewards"], together["precision"]) == (2, 0.5)
    assert reward_figures([known | {"where": where | {"agreed": []}}], tolerance=3)["rewards_together"] == {
        "dreamed_rewards": 0,
        "precision": None,
        "precision_interval95": None,
    }
    assert "rewards_together" not in reward_figures([result([30], [])], tolerance=3)
