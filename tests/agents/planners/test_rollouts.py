from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from agents.planners.model_access import RealMemory
from agents.planners.rollouts import RolloutConfig, RolloutPlanner, make_rollouts
from agents.scoring.episodes import play
from tests.agents.planners.test_shooting import Combination, FakeDreams
from tests.agents.toy_agents import TOY_ID, check_memory_is_of_real_frames, trained_agent
from tests.tiny import save_tiny_checkpoint, tiny_model
from wm_gym.codec import model_to_frames

CODE = [2, 0, 1, 1]
FRAME = np.full((8, 8, 3), 7, np.uint8)
LARGE_FRAME = np.full((16, 16, 3), 90, np.uint8)


class KeptDreams(FakeDreams):
    """Such dreams that keep what was asked of them: a list of actions for every start."""

    def __init__(self, model):
        super().__init__(model)
        self.kept = []

    def start(self, state, keys):
        super().start(state, keys)
        self.kept.append([])

    def step(self, actions):
        self.kept[-1].append(actions.clone())
        return super().step(actions)


class Uniform:
    """A policy without preferences, for which every place is worth as much."""

    def with_policy(self, frames, memory) -> Any:
        return torch.zeros(len(frames)), torch.full((len(frames), 3), 1 / 3)


class Knowing(Uniform):
    """A policy that does the code's actions until it forgets it, and then action 2."""

    forgot = False

    def with_policy(self, frames, memory):
        values, _ = super().with_policy(frames, memory)
        known = torch.tensor(CODE)[memory.progress.clamp(0)]
        actions = torch.full_like(known, 2) if self.forgot else known
        return values, torch.nn.functional.one_hot(actions, 3).float()


def plan(model: Any, critic: Any = None, space=None, seed=0, **settings) -> Any:
    dreams: Any = KeptDreams(model) if isinstance(model, Combination) else None
    config, critic = RolloutConfig(**{"candidates": 400, "horizon": 4, **settings}), critic or Uniform()
    world: Any = model
    planner = RolloutPlanner(world, space or gym.spaces.Discrete(3), critic, config, seed, dreams)
    planner.reset({})
    return planner


@pytest.mark.parametrize(("replan_every", "num_plans"), [(1, 8), (2, 4), (4, 2)])
def test_it_acts_out_the_code_that_is_rewarded_and_plans_anew_as_often_as_asked(replan_every, num_plans):
    planner = plan(Combination(CODE), space=gym.spaces.Discrete(3, start=5), replan_every=replan_every)
    actions = []
    for t in range(8):
        actions.append(planner(FRAME, {}) - 5)
        assert int(planner._memory.state.progress) == t % 4, "The memory is of all real frames and actions."
    assert actions == CODE * 2
    assert len(planner._dreams.kept) == num_plans
    assert all(len(steps) == 4 for steps in planner._dreams.kept)


@pytest.mark.parametrize("replan_every", [1, 2, 3])
def test_what_is_left_of_a_plan_is_the_first_candidate_of_the_next(replan_every):
    critic = Knowing()
    planner = plan(Combination(CODE), critic, candidates=3, replan_every=replan_every)
    actions = [planner(FRAME, {})]
    critic.forgot = True
    actions += [planner(FRAME, {}) for _ in range(3)]
    assert actions == CODE
    second = torch.stack(planner._dreams.kept[1])
    assert second[:, 0].tolist() == CODE[replan_every:] + [2] * replan_every, "After it the policy goes on."
    assert (second[:, 1:] == 2).all()
    planner.reset({})
    planner(FRAME, {})
    assert (torch.stack(planner._dreams.kept[-1]) == 2).all(), "A new episode knows nothing of earlier plans."


def test_every_future_is_worth_its_discounted_rewards_and_the_value_of_its_last_frame():
    class Hopeful(Uniform):
        def with_policy(self, frames, memory):
            return 10.0 * (memory.progress >= 0), super().with_policy(frames, memory)[1]

    for ends in (False, True):
        model = Combination([1, 1], ends)
        planner = plan(model, Hopeful(), horizon=4, candidates=300, discount=0.5)
        state, frame = model.initial_state(1), torch.from_numpy(FRAME)[None]
        plans, values = planner.futures(state, frame, torch.tensor([1, 1, 1, 1]))
        assert plans.shape == (4, 300)
        found = {tuple(actions): value for actions, value in zip(plans.T.tolist(), values.tolist(), strict=True)}
        after = 0.0 if ends else 1.0
        assert found[1, 1, 1, 1] == pytest.approx(0.5 + after * (0.125 + 10 / 16))
        assert found[1, 1, 1, 0] == pytest.approx(0.5)
        assert found[1, 0, 1, 1] == pytest.approx(0)


def test_the_value_of_the_last_frame_decides_where_nothing_is_rewarded():
    class Progress(Uniform):
        def with_policy(self, frames, memory):
            return memory.progress.float(), super().with_policy(frames, memory)[1]

    code = [2, 0, 1, 1, 2, 2, 0, 1, 2, 0]
    planner = plan(Combination(code), Progress(), horizon=3)
    assert [planner(FRAME, {}) for _ in range(6)] == code[:6]


def test_actions_are_drawn_from_what_the_policy_would_do_in_each_dream():
    class Fickle(Uniform):
        """Any action at first, then 1 after 0, with which the code begins, and 2 after others."""

        def with_policy(self, frames, memory):
            chances = torch.tensor([[0.0, 0.0, 1.0], [0.6, 0.3, 0.1], [0.0, 1.0, 0.0]])
            return torch.zeros(len(frames)), chances[memory.progress.clamp(max=1) + 1]

    model = Combination([0, 1, 1])
    planner = plan(model, Fickle(), horizon=2, candidates=5000)
    plans, _ = planner.futures(model.initial_state(1), torch.from_numpy(FRAME)[None], torch.zeros(0).long())
    shares = plans[0].bincount(minlength=3) / 5000
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.3, 0.1]), atol=0.025, rtol=0)
    assert torch.equal(plans[1], torch.where(plans[0] == 0, 1, 2))


def test_the_policy_sees_the_real_frame_and_then_the_newest_of_each_dream():
    class Watching(Uniform):
        def __init__(self):
            self.seen = []

        def with_policy(self, frames, memory):
            assert frames.dtype == torch.uint8
            newest = model_to_frames(memory.frame) if self.seen else frames
            torch.testing.assert_close(frames, newest)
            self.seen.append((frames.clone(), memory.layers[0].ssm_state.clone()))
            return torch.zeros(len(frames)), torch.tensor([[0.0, 1.0, 0.0]]).expand(len(frames), 3)

    model, critic = tiny_model(), Watching()
    planner = plan(model, critic, candidates=3, horizon=2)
    planner(LARGE_FRAME, {})
    assert [len(frames) for frames, _ in critic.seen] == [1, 3, 3]
    frame, memory = critic.seen[0]
    torch.testing.assert_close(frame[0], torch.from_numpy(LARGE_FRAME))
    torch.testing.assert_close(memory, RealMemory(model).read(LARGE_FRAME, None).layers[0].ssm_state)
    assert not torch.equal(critic.seen[2][0][0], critic.seen[2][0][1]), "Dreams have noise of their own."


def test_the_same_seed_plans_the_same():
    model, plans = tiny_model(), []
    for seed in (0, 0, 1):
        planner = plan(model, seed=seed, horizon=2, candidates=3)
        plans.append([planner(LARGE_FRAME, {}) for _ in range(12)])
    assert plans[0] == plans[1] != plans[2]


@pytest.mark.parametrize("memory", [False, True])
def test_an_agent_is_rolled_out_in_whole_real_episodes(tmp_path, tiny_kwargs, memory):
    run = trained_agent(tmp_path, tiny_kwargs, memory)
    agent, path = str(run.out / "seed_0" / "best.zip"), tiny_kwargs["checkpoint"]
    make = make_rollouts(path, agent, "cpu", candidates=4, horizon=3, replan_every=2)
    env = gym.make(TOY_ID, max_episode_steps=7)
    results = [play(env, make, seed) for seed in (3, 3)]
    assert results[0] == results[1] and results[0]["length"] == 7
    first, policy = make(env, 0), make(env, 1)
    assert first._dreams is policy._dreams and first._critic is policy._critic
    check_memory_is_of_real_frames(policy, path, env)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"candidates": 0}, "candidates must be at least 1, got 0"),
        ({"horizon": 0}, "horizon must be"),
        ({"replan_every": 0}, "replan_every must be at least 1"),
        ({"num_denoising_steps": 0}, "num_denoising_steps must be"),
        ({"horizon": 3, "replan_every": 4}, "replan_every must be at most horizon, 3, got 4"),
        ({"discount": 1.5}, r"discount must be in \[0, 1\], got 1.5"),
    ],
)
def test_settings_out_of_range_are_a_clear_error(settings, message):
    with pytest.raises(ValueError, match=message):
        make_rollouts(agent="run/seed_0/best.zip", **settings)


def test_what_does_not_fit_is_a_clear_error(tmp_path):
    path = str(save_tiny_checkpoint(tmp_path / "tiny.safetensors"))
    with pytest.raises(ValueError, match=r"needs one, agent=RUN/seed_0/best\.zip"):
        make_rollouts(path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.zip"):
        make_rollouts(path, "nothing.zip")(gym.make(TOY_ID), 0)
    with pytest.raises(ValueError, match="this environment has"):
        make_rollouts(path, "nothing.zip")(gym.make(TOY_ID, size=32), 0)
    with pytest.raises(ValueError, match="takes 3 discrete actions"):
        plan(tiny_model(), space=gym.spaces.Discrete(4))
    with pytest.raises(ValueError, match="takes 3 discrete actions"):
        plan(tiny_model(), space=gym.spaces.MultiDiscrete([3, 3]))
    with pytest.raises(ValueError, match="the model takes continuous"):
        plan(tiny_model(action_kind="continuous", action_size=2), space=gym.spaces.Box(-1.0, 1.0, (2,), np.float32))
