from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from agents.planners.mcts import DreamTree, MctsConfig, TreeSearch, make_search
from agents.planners.model_access import RealMemory
from agents.scoring.episodes import play
from tests.agents.toy_agents import TOY_ID, check_memory_is_of_real_frames
from tests.tiny import LEARNED_ODOMETRY, PLANAR_POSE, save_tiny_checkpoint, tiny_model
from wm_gym.engine.graph import StepGraph

LINE_ID = "examples.agent_in_a_dream:Line-v0"
FRAME = np.full((16, 16, 3), 90, np.uint8)


def config(**changes) -> MctsConfig:
    return MctsConfig(**{"simulations": 6, "leaves": 2, "hold": 1, "rollout": 1, **changes})


def planted(model, settings, seed=0) -> Any:
    tree = DreamTree(model, settings)
    state = RealMemory(model).read(FRAME, None)
    return tree, state, tree.plant(state, torch.from_numpy(FRAME)[None], seed)


class FixedCritic:
    """Values the mean brightness of a frame, and would always do action 1."""

    def with_policy(self, frames, memory):
        return frames.float().mean((1, 2, 3)), torch.tensor([[0.1, 0.8, 0.1]]).expand(len(frames), 3)


ODOMETRY = {"pose": PLANAR_POSE, "odometry": LEARNED_ODOMETRY}


@pytest.mark.parametrize(("hold", "overrides"), [(1, {}), (3, {}), (2, ODOMETRY)])
def test_nodes_are_the_memories_that_their_actions_lead_to(hold, overrides):
    model = tiny_model(**overrides)
    settings = config(leaves=1, hold=hold, discount=0.9)
    tree, state, prior = planted(model, settings)
    tree._critic = FixedCritic()
    np.testing.assert_allclose(prior, 1 / 3)
    alone = StepGraph(model, 1)
    alone.load(state)
    alone.set_noise(tree._graph.noise_keys.clone())
    for parent, (node, action) in enumerate([(1, 2), (2, 0)]):
        leaves = tree.expand([parent], [action], [node])
        rewards, weights, output = [], [1.0], None
        for _ in range(hold):
            output = alone.step(torch.tensor([action]))
            rewards.append(float(output.reward_logits.softmax(-1)[0] @ model.reward_values) * weights[-1])
            weights.append(weights[-1] * 0.9 * float(1 - output.termination[0]))
        assert output is not None
        np.testing.assert_allclose(leaves.rewards, sum(rewards), rtol=1e-5)
        np.testing.assert_allclose(leaves.weights, weights[-1], rtol=1e-5)
        np.testing.assert_allclose(leaves.values, output.frame.float().mean().item(), rtol=1e-5)
        np.testing.assert_allclose(leaves.priors, [[0.1, 0.8, 0.1]], rtol=1e-6)
        ours, theirs = tree._nodes.state(torch.tensor([node])), alone.state()
        for one, other in zip(ours.layers, theirs.layers, strict=True):
            torch.testing.assert_close(one.ssm_state, other.ssm_state)
        if overrides:
            assert ours.pending is not None and theirs.pending is not None
            torch.testing.assert_close(ours.pending.pose, theirs.pending.pose)
            torch.testing.assert_close(ours.pending.odometry, theirs.pending.odometry)
    root = tree._nodes.state(torch.tensor([0]))
    torch.testing.assert_close(root.layers[0].ssm_state, state.layers[0].ssm_state)


def test_rows_of_a_batch_are_dreams_of_their_own():
    model = tiny_model()
    tree, _, _ = planted(model, config(leaves=4))
    tree.expand([0, 0, 0], [0, 1, 2], [1, 2, 3])
    frames = tree._nodes.frame[1:4]
    assert (frames[0] - frames[1]).abs().max() > 0.05 < (frames[1] - frames[2]).abs().max()
    tree._critic = FixedCritic()
    values = tree.expand([1, 3], [0, 1], [4, 5]).values
    expected = ((tree._nodes.frame[4:6] + 1) * 127.5).mean((1, 2, 3))
    np.testing.assert_allclose(values, expected.numpy(), rtol=1e-3)


def test_random_play_values_a_leaf_by_the_rewards_that_follow():
    model = tiny_model(seed=1)
    model.backbone.event_head.out.weight.data.zero_()
    model.backbone.event_head.out.bias.data[:] = torch.tensor([0.0, 50.0, -50.0])  # always a reward, never an end
    tree, _, _ = planted(model, config(hold=2, rollout=3, discount=0.5))
    leaves = tree.expand([0], [1], [1])
    np.testing.assert_allclose(leaves.rewards, 1 + 0.5, rtol=1e-5)
    np.testing.assert_allclose(leaves.weights, 0.25, rtol=1e-5)
    np.testing.assert_allclose(leaves.values, sum(0.5**k for k in range(6)), rtol=1e-5)


def test_its_memory_is_that_of_the_real_frames_and_actions(tmp_path):
    path = str(save_tiny_checkpoint(tmp_path / "tiny.safetensors"))
    env = gym.make(TOY_ID)
    planner = make_search(path, simulations=4, leaves=2, rollout=1)(env, 0)
    check_memory_is_of_real_frames(planner, path, env)


def test_the_same_seed_searches_the_same_though_policies_share_their_tree(tmp_path):
    tree, chosen = DreamTree(tiny_model(), config()), []
    for seed in (0, 0, 1):
        policy = TreeSearch(tree, gym.spaces.Discrete(3), seed)
        policy.reset({})
        chosen.append([policy(FRAME, {}) for _ in range(10)])
    assert chosen[0] == chosen[1] != chosen[2]


def test_no_batch_begins_that_would_end_after_the_time(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("agents.planners.mcts.time.monotonic", lambda: float(next(clock)))
    for limit, expected in ((None, 3), (3.5, 2), (0.0, 1)):
        tree: Any = DreamTree(tiny_model(), config(seconds_per_step=limit))
        batches = []
        expand = tree.expand
        tree.expand = lambda *given, kept=batches, f=expand: kept.append(1) or f(*given)
        policy = TreeSearch(tree, gym.spaces.Discrete(3))
        policy.reset({})
        policy(FRAME, {})
        assert len(batches) == expected


@pytest.mark.slow
def test_searching_a_learned_dream_is_far_above_random_in_reality(line_dream):
    env = gym.make(LINE_ID)
    make = make_search(line_dream["checkpoint"], hold=1, simulations=32, leaves=8, rollout=3)
    returns = [play(env, make, seed)["return"] for seed in range(7_000_100, 7_000_105)]
    assert np.mean(returns) > 17, "Random play gets 5.5 on the average; 21 to 24 is the most."


def test_what_does_not_fit_is_a_clear_error(tmp_path):
    path = str(save_tiny_checkpoint(tmp_path / "tiny.safetensors"))
    with pytest.raises(ValueError, match="leaves must be"):
        make_search(path, leaves=0)
    with pytest.raises(ValueError, match="exploration above 0"):
        make_search(path, exploration=0.0)
    with pytest.raises(ValueError, match="this environment has"):
        make_search(path)(gym.make(TOY_ID, size=32), 0)
    blind = save_tiny_checkpoint(tmp_path / "blind.safetensors", tiny_model(pose=PLANAR_POSE))
    with pytest.raises(ValueError, match="needs poses"):
        make_search(str(blind))(gym.make(TOY_ID), 0)
    with pytest.raises(ValueError, match="takes 3 discrete actions"):
        TreeSearch(DreamTree(tiny_model(), config()), gym.spaces.Discrete(4))
    with pytest.raises(ValueError, match="takes continuous"):
        DreamTree(tiny_model(action_kind="continuous", action_size=2), config())
    with pytest.raises(FileNotFoundError, match="A critic is a model file"):
        make_search(path, critic="nothing.zip")(gym.make(TOY_ID), 0)
