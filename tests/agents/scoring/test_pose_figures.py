"""Where dreams take themselves to be, beside where the same actions led, and what walls do to both."""

from __future__ import annotations

import json
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from agents.environments.settings import EnvSpec
from agents.policies.loading import policy_maker
from agents.reward_check import RewardCheckConfig, check_rewards, describe
from agents.scoring.dreamed_episodes import Dreamed, DreamRows, Episode
from agents.scoring.pose_figures import COUNTS, agreed_after, forward_actions, pose_figures, pose_lines, pose_result
from agents.scoring.real_episodes import Replayed, real_episodes
from tests.tiny import save_tiny_checkpoint, save_tiny_clips, tiny_model_with_odometry
from wm_gym.comparison.record import Record

DREAM_ID = "LSSVWM-MemoryMaze-v0"
TOY_ID = "tests.toy_env:tests/ToyMaze-v0"
WALK, TURN = 0, 1
CONTEXT = 5


def poses_of(steps: list[float], angle: float = 0.0, at: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Straight on from `at`, so many cells at each step: float32 [steps + 1, 4]."""
    way = np.concatenate([[0.0], np.cumsum(steps)])
    x, y = (start + way * part for start, part in zip(at, (math.cos(angle), math.sin(angle)), strict=True))
    heading = np.broadcast_to([math.cos(angle), math.sin(angle)], (len(way), 2))
    return np.concatenate([np.stack([x, y], -1), heading], -1).astype(np.float32)


def episode(real: list[float], dreamed: list[float], actions: list[int] | None = None) -> tuple[Replayed, Dreamed]:
    """Four free steps of context, then steps that lead so far in reality and in the dream. Reality may end before."""
    actions = [WALK] * len(dreamed) if actions is None else actions
    frames = np.zeros((len(dreamed), 8, 8, 3), np.uint8)
    rewards = np.zeros(len(dreamed))
    context = [0.25] * (CONTEXT - 1)
    record = Record(
        seed=0,
        reference_frames=np.zeros((CONTEXT + len(dreamed), 8, 8, 3), np.uint8),
        frames=frames,
        actions=np.array([WALK] * (CONTEXT - 1) + actions),
        reference_rewards=rewards,
        rewards=rewards,
        reference_end="",
        end="",
        seconds=0.0,
        reference_seconds=0.0,
    )
    told = poses_of(context + dreamed)[CONTEXT - 1 :]
    ours = Dreamed(np.array(actions), Episode(frames, rewards, ""), np.zeros((len(dreamed), 2)), told)
    return Replayed(record, poses_of(context + real, angle=2.0, at=(3.0, -1.0))), ours


def result_of(*arguments: Any, forward: tuple[int, ...] = (WALK,)) -> dict[str, Any]:
    result = pose_result(*episode(*arguments), forward)
    assert result is not None
    return json.loads(json.dumps(result, allow_nan=False))


def test_a_dream_that_walks_on_through_a_wall_is_off_by_its_way_from_there() -> None:
    result = result_of([0.25] * 4 + [0.001] * 6, [0.25] * 10)
    assert [step for step, *_ in result["drift"]] == [0, 1, 10]
    assert [cells for _, cells, _ in result["drift"]] == pytest.approx([0, 0, 6 * 0.249], abs=1e-3)
    assert [degrees for *_, degrees in result["drift"]] == pytest.approx([0, 0, 0], abs=1e-3)
    walls = result["walls"]
    assert (walls["free_speed"], walls["forward_steps"], walls["blocked"], walls["moved_on"]) == (0.25, 10, 6, 6)


def test_only_steps_from_where_both_stand_say_what_walls_do() -> None:
    result = result_of([0.25] * 4 + [0.001] * 6, [0.25] * 10)
    walls = result["walls"]
    # The dream is 0.249 cells ahead after its first step through the wall, and twice that after the next.
    assert (walls["blocked_together"], walls["moved_on_together"]) == (2, 2)
    assert (walls["presses"], walls["opened"]) == (1, 1)
    assert result["agreed"] == [[0, 6]] and result["parted"] == 6
    assert agreed_after(result, 5) and not agreed_after(result, 6)
    # It is stopped where the way is free: five free steps, of which one is taken from where reality is then.
    stopped = result_of([0.2] * 6, [0.2, 0.0, 0.0, 0.0, 0.0, 0.0])["walls"]
    assert (stopped["free_together"], stopped["stopped_together"], stopped["presses"]) == (3, 2, 0)


def test_a_dream_a_step_short_of_a_wall_is_not_said_to_open_it() -> None:
    walls = result_of([0.25] * 4 + [0.001] * 6, [0.25] * 3 + [0.05] + [0.2] + [0.0] * 5)["walls"]
    assert (walls["blocked_together"], walls["moved_on_together"]) == (6, 1)
    assert (walls["presses"], walls["opened"]) == (1, 0)
    short = result_of([0.25] * 4 + [0.001] * 3 + [0.25], [0.25] * 8)["walls"]
    assert short["presses"] == 0, "three blocked steps do not tell a wall from a lag"


def test_a_dream_that_faces_another_way_does_not_agree() -> None:
    replayed, dreamed = episode([0.001] * 5, [0.0] * 5)
    assert dreamed.poses is not None
    turned = dreamed.poses.copy()
    angle = math.radians(20)
    turned[3:, 2:] = math.cos(angle), math.sin(angle)
    result = pose_result(replayed, Dreamed(dreamed.actions, dreamed.episode, dreamed.likely, turned), (WALK,))
    assert result is not None and result["agreed"] == [[0, 3]]
    assert result["walls"]["blocked"] == 5 and result["walls"]["blocked_together"] == 3


def test_the_step_of_parting_is_a_median_over_all_dreams_and_unknown_of_older_results() -> None:
    through = result_of([0.25] * 4 + [0.001] * 6, [0.25] * 10)
    stays = result_of([0.25] * 4 + [0.001] * 6, [0.25] * 4 + [0.0] * 6)
    assert stays["parted"] is None and stays["agreed"] == [[0, 11]]
    parted = pose_figures([through, through, stays])["parted"]
    assert (parted["episodes"], parted["median"], parted["never"], parted["never_share"]) == (3, 6, 1, 1 / 3)
    assert pose_figures([through, stays, stays])["parted"]["median"] is None
    assert "never" in pose_lines(pose_figures([through, stays, stays]))[1]
    older = {"drift": through["drift"], "walls": {name: through["walls"][name] for name in ("free_speed", *COUNTS)}}
    assert pose_figures([older])["parted"] is None
    both = pose_figures([older, through])["walls"]
    assert both["moved_on"] == 12 and both["moved_on_together"] == 2 and both["moved_on_together_share"] == 1


def test_a_dream_that_stops_at_the_wall_moves_on_in_none_of_the_blocked_steps() -> None:
    walls = result_of([0.25] * 4 + [0.001] * 6, [0.24] * 4 + [0.1, 0.0, 0.0, 0.0, 0.0, 0.0])["walls"]
    assert (walls["blocked"], walls["moved_on"]) == (6, 0)


def test_first_steps_from_rest_and_steps_that_ask_for_no_motion_are_not_blocked() -> None:
    actions = [TURN, TURN, WALK, WALK, TURN]
    walls = result_of([0.0, 0.0, 0.1, 0.2, 0.0], [0.2, 0.2, 0.2, 0.2, 0.2], actions)["walls"]
    assert (walls["free_speed"], walls["forward_steps"], walls["blocked"], walls["moved_on"]) == (0.25, 2, 0, 0)
    none = result_of([0.0] * 3, [0.2] * 3, [TURN] * 3)["walls"]
    assert (none["forward_steps"], none["blocked"]) == (0, 0)
    assert result_of([0.1], [0.1], forward=())["walls"] is None


def test_nothing_counts_after_the_real_end() -> None:
    result = result_of([0.25] * 4, [0.25] * 4 + [9.0] * 16)
    assert [step for step, *_ in result["drift"]] == [0, 1]
    assert result["walls"]["forward_steps"] == 4


def test_without_poses_on_both_sides_there_is_no_result() -> None:
    replayed, dreamed = episode([0.1], [0.1])
    silent = Dreamed(dreamed.actions, dreamed.episode, dreamed.likely)
    assert pose_result(replayed, silent, (WALK,)) is None
    assert pose_result(Replayed(replayed.record, None), dreamed, (WALK,)) is None
    assert pose_figures([]) == {} and pose_lines({}) == []


def test_figures_are_medians_over_the_episodes_that_got_so_far_and_shares_of_all_steps() -> None:
    through = result_of([0.25] * 4 + [0.001] * 6, [0.25] * 10)
    stops = result_of([0.25] * 2 + [0.001] * 4, [0.25] * 2 + [0.0] * 4)
    figures = pose_figures([through, stops, stops])
    assert [figures["pose_drift"][step]["episodes"] for step in ("0", "1", "10")] == [3, 3, 1]
    assert figures["pose_drift"]["10"]["cells"]["median"] == pytest.approx(1.494, abs=1e-3)
    walls = figures["walls"]
    assert (walls["forward_steps"], walls["blocked"], walls["moved_on"]) == (22, 14, 6)
    assert walls["blocked_share"] == 14 / 22 and walls["moved_on_share"] == 6 / 14
    low, high = walls["moved_on_share_interval95"]
    assert low < 6 / 14 < high
    # Of the press that goes through, two steps; of each of the two that stop, all four.
    assert (walls["blocked_together"], walls["moved_on_together"]) == (10, 2)
    assert (walls["presses"], walls["opened"], walls["opened_share"]) == (3, 1, 1 / 3)
    drift, parting, of_walls, together = pose_lines(figures)
    assert "10: 1.49 cells 0.0" in drift and "64% of the forward steps" in of_walls and "43%" in of_walls
    assert "67% never" in parting and "of 10 blocked steps" in together and "moves on in 20%" in together
    assert "of 3 presses against a wall it goes through in 33%" in together
    free = pose_figures([result_of([0.25], [0.25])])["walls"]
    assert free["blocked_share"] == 0 and free["moved_on_share"] is None


def test_forward_actions_are_those_of_memory_maze_unless_told() -> None:
    assert forward_actions(None, gym.spaces.Discrete(6)) == (1, 4, 5)
    assert forward_actions(None, gym.spaces.Discrete(3)) == ()
    assert forward_actions((0,), gym.spaces.Discrete(3)) == (0,)
    for space in (gym.spaces.Discrete(3), gym.spaces.Box(-1, 1, (2,))):
        with pytest.raises(ValueError, match="forward_actions are discrete actions"):
            forward_actions((3,), space)


@pytest.fixture
def dream_kwargs(tmp_path):
    """A dream that tells its poses."""
    return {
        "checkpoint": str(save_tiny_checkpoint(tmp_path / "odometry.safetensors", tiny_model_with_odometry())),
        "contexts": str(save_tiny_clips(tmp_path / "clips.npz")),
        "context_frames": 6,
    }


def test_poses_are_told_from_the_end_of_the_context_to_the_end_of_dream_and_replay(dream_kwargs) -> None:
    seeds = [7_000_001, 7_000_002]
    with real_episodes(EnvSpec(TOY_ID)) as episodes:
        contexts = episodes.lead("random", seeds, CONTEXT)
        rows = DreamRows(EnvSpec(DREAM_ID, dream_kwargs), 3, 6, "cpu")
        dreamed = rows.play(policy_maker("random"), seeds, contexts)
        replayed = episodes.replay(seeds, contexts, dreamed)
        rows.close()
        refreshed = DreamRows(EnvSpec(DREAM_ID, {**dream_kwargs, "refresh_steps": 4}), 3, 6, "cpu")
        assert all(one.poses is None for one in refreshed.play(policy_maker("random"), seeds, contexts))
        refreshed.close()
    for seed, context, one, there in zip(seeds, contexts, dreamed, replayed, strict=True):
        dream = gym.make(DREAM_ID, **dream_kwargs, horizon=6)
        _, info = dream.reset(seed=seed, options={"context": (context.frames, context.actions)})
        told = [info["estimated_pose"], *(dream.step(action)[4]["estimated_pose"] for action in one.actions)]
        assert one.poses is not None and there.poses is not None
        np.testing.assert_allclose(one.poses, told, atol=1e-4)
        env = gym.make(TOY_ID)
        _, info = env.reset(seed=seed)
        true = [info["pose"], *(env.step(action)[4]["pose"] for action in there.record.actions)]
        np.testing.assert_array_equal(there.poses, true)
        assert len(one.poses) == 7 and len(there.poses) == CONTEXT + 6


def test_the_report_tells_of_poses_and_walls_and_goes_on_only_with_the_same_forward_actions(
    tmp_path, dream_kwargs
) -> None:
    def config(**changes: Any) -> RewardCheckConfig:
        return RewardCheckConfig(
            **{
                "policy": "tests.agents.scoring.test_pose_figures:walker",
                "out": tmp_path / "check.json",
                "env_kwargs": json.dumps(dream_kwargs),
                "real": TOY_ID,
                "seeds": "7000000-7000002",
                "context": CONTEXT,
                "context_policy": "random",
                "horizon": 10,
                "workers": 1,
                "device": "cpu",
                "forward_actions": (WALK,),
                **changes,
            }
        )

    figures = check_rewards(config())["all"]
    assert list(figures["pose_drift"]) == ["0", "1", "10"]
    assert figures["pose_drift"]["10"]["episodes"] == 3 and figures["pose_drift"]["10"]["cells"]["median"] > 0
    # On a board of four cells ten steps straight on end at the edge; its steps are one cell.
    assert figures["walls"]["forward_steps"] == 30 and figures["walls"]["blocked"] >= 21
    assert figures["walls"]["free_speed"] == 1
    assert figures["parted"]["episodes"] == 3 and figures["rewards_together"]["dreamed_rewards"] >= 0
    assert "walls stop" in describe(check_rewards(config()))
    with pytest.raises(ValueError, match=r"other settings \(forward_actions=\[0\]\)"):
        check_rewards(config(forward_actions=None))


def test_results_of_versions_that_knew_no_forward_actions_are_gone_on_with(tmp_path, dream_kwargs) -> None:
    config = RewardCheckConfig(
        "random",
        tmp_path / "check.json",
        env_kwargs=json.dumps(dream_kwargs),
        real=TOY_ID,
        seeds="7000000-7000001",
        context=CONTEXT,
        context_policy="random",
        horizon=3,
        workers=1,
        device="cpu",
    )
    report = check_rewards(config)
    assert report["all"]["walls"] is None, "three actions are not those of Memory Maze"
    del report["forward_actions"], report["results"]["policy"][0]["where"]
    config.out.write_text(json.dumps(report))
    assert check_rewards(config)["all"]["pose_drift"]["1"]["episodes"] == 1


def walker(env, seed):
    """Walks straight on."""
    return Walker()


class Walker:
    def reset(self, info) -> None:
        pass

    def __call__(self, obs, info) -> int:
        return WALK
