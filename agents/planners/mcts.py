"""Monte-Carlo tree search in a world model, as a policy for real environments.

`agents.planners.mcts:search` names one with the packaged model wherever a policy is asked for; for other settings, or
with what
`agents.ppo` learned as value and prior, write a line like its own in a module of yours. No library that was found fits:
mctx needs JAX and those in Python try one leaf at a time, while a world model dreams many at the cost of one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from agents.planners.critic import PpoCritic
from agents.planners.model_access import RealMemory, load_model_for
from agents.planners.tree import Leaves
from agents.planners.tree import search as search_tree
from wm_gym.engine.graph import StepGraph, StepOutput
from wm_gym.engine.memory import StepMemory
from wm_gym.world_model import ModelState, WorldModel


@dataclass(frozen=True)
class MctsConfig:
    """How a tree is grown at every step.

    Attributes:
        simulations: leaves at most; the tree keeps a memory of the model for each.
        leaves: tried in a batch.
        hold: steps for which an action is held; more of them look further ahead.
        exploration: weight of prior against what was found.
        rollout: actions, each held as long, of random play that value a leaf where there is no critic.
        discount: per step.
        seconds_per_step: no further batch is begun if it would end later; the first always runs. None: no limit.
        num_denoising_steps: network passes per dreamed frame.
    """

    simulations: int = 64
    leaves: int = 8
    hold: int = 2
    exploration: float = 1.25
    rollout: int = 8
    discount: float = 0.97
    seconds_per_step: float | None = None
    num_denoising_steps: int = 1

    def __post_init__(self) -> None:
        for name in ("simulations", "leaves", "hold", "rollout", "num_denoising_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.discount <= 1 or self.exploration <= 0:
            raise ValueError(
                f"discount must be in [0, 1] and exploration above 0, got {self.discount} and {self.exploration}."
            )


class DreamTree:
    """The memories of a tree's nodes, and the batch of dreams that makes them; `agents.planners.tree.Simulator`.

    Rewards are the means of what the head says; an end that is likely makes what comes after it count less.

    Args:
        model: the world model, of discrete actions.
        config: of the search.
        critic: values leaves and gives priors; None: random play and equal priors.

    Raises ValueError for a model of other actions.
    """

    def __init__(self, model: WorldModel, config: MctsConfig, critic: PpoCritic | None = None) -> None:
        if model.config.action_kind != "discrete":
            raise ValueError(f"The tree is searched over discrete actions; the model takes {model.config.action_kind}.")
        self.model, self.config, self._critic = model, config, critic
        self.num_actions = model.config.action_size
        self._graph = StepGraph(model, config.leaves, config.num_denoising_steps)
        memory = self._graph.memory
        self._nodes = StepMemory(model.config, 1 + config.simulations, model.device, memory.dtype, memory.state_dtype)
        self._rows = torch.arange(config.leaves, device=model.device)
        self._random = np.random.default_rng(0)

    @torch.no_grad()
    def plant(self, state: ModelState, frame: Tensor, seed: int) -> np.ndarray:
        """Makes a memory of one row the root; returns its priors [A].

        Args:
            state: with `frame`, uint8 [1, H, W, C], as its newest.
            seed: decides noise and random play of this search.
        """
        self._nodes.load(state, torch.zeros(1, dtype=torch.int64))
        self._random = np.random.default_rng(seed)
        keys = self._random.integers(-(2**63), 2**63, self.config.leaves, dtype=np.int64)
        self._graph.set_noise(torch.from_numpy(keys))
        if self._critic is None:
            return np.full(self.num_actions, 1 / self.num_actions)
        return self._critic.with_policy(frame, state)[1][0].cpu().numpy().astype(np.float64)

    @torch.no_grad()
    def expand(self, parents: Sequence[int], actions: Sequence[int], nodes: Sequence[int]) -> Leaves:
        """See `agents.planners.tree.Simulator`. Rows of the batch that nobody asked for dream along."""
        spare = self.config.leaves - len(parents)
        device, count = self.model.device, len(parents)
        sources = torch.tensor([*parents, *[parents[-1]] * spare], device=device)
        self._graph.copy_rows(self._rows, self._nodes, sources)
        taken = torch.tensor([*actions, *[actions[-1]] * spare], device=device)
        rewards, weights, frames = self._act(taken)
        self._nodes.copy_rows(torch.tensor(nodes, device=device), self._graph.memory, self._rows[:count])
        if self._critic is None:
            values, priors = self._play_randomly(), torch.full((count, self.num_actions), 1 / self.num_actions)
        else:
            values, priors = self._critic.with_policy(frames, self._graph.memory)
        found = [part[:count].double().cpu().numpy() for part in (rewards, weights, values, priors)]
        return Leaves(*found)

    def _act(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Holds actions [N]: discounted rewards [N], weights [N] of what follows, newest frames."""
        total = torch.zeros(len(actions), device=self.model.device)
        weight = torch.ones_like(total)
        output: StepOutput | None = None
        for _ in range(self.config.hold):
            output = self._graph.step(actions)
            total += weight * (output.reward_logits.float().softmax(-1) @ self.model.reward_values)
            weight = weight * self.config.discount * (1 - output.termination)
        assert output is not None
        return total, weight, output.frame

    def _play_randomly(self) -> Tensor:
        """Returns [N] of one game each from where the batch is."""
        total = torch.zeros(self.config.leaves, device=self.model.device)
        weight = torch.ones_like(total)
        for _ in range(self.config.rollout):
            actions = torch.from_numpy(self._random.integers(self.num_actions, size=self.config.leaves))
            rewards, weights, _ = self._act(actions.to(self.model.device))
            total, weight = total + weight * rewards, weight * weights
        return total


class TreeSearch:
    """A policy (obs, info) -> action that grows a new tree at every real frame.

    Args:
        tree: of the model; policies of one thread may share it, for nothing is kept in it from one step to the next.
        action_space: Discrete, of the model's actions.
        seed: decides the dreams; with `seconds_per_step` the clock has a say, too.

    Raises ValueError for other actions.
    """

    def __init__(self, tree: DreamTree, action_space: gym.Space[Any], seed: int = 0) -> None:
        if not isinstance(action_space, gym.spaces.Discrete) or action_space.n != tree.num_actions:
            raise ValueError(f"The model takes {tree.num_actions} discrete actions, the environment {action_space}.")
        self._tree, self._start = tree, int(action_space.start)
        self._memory = RealMemory(tree.model)
        self._random = np.random.default_rng(seed)
        self._action: Tensor | None = None

    def reset(self, info: dict[str, Any]) -> None:
        """Forgets the episode before."""
        self._memory.forget()
        self._action = None

    def __call__(self, obs: Any, info: dict[str, Any]) -> int:
        """The action at a frame uint8 [H, W, C], which follows the action that was returned last."""
        began, tree, config = time.monotonic(), self._tree, self._tree.config
        frame = torch.from_numpy(np.ascontiguousarray(obs))[None].to(tree.model.device)
        state = self._memory.read(obs, self._action)
        prior = tree.plant(state, frame, int(self._random.integers(2**63)))
        batch_began = time.monotonic()

        def goes_on(done: int) -> bool:
            nonlocal batch_began
            now, last, limit = time.monotonic(), batch_began, config.seconds_per_step
            batch_began = now
            return limit is None or now - began + (now - last) <= limit

        grown = search_tree(tree, prior, config.simulations, config.leaves, config.exploration, goes_on)
        action = grown.best_action()
        self._action = torch.tensor([action], device=tree.model.device)
        return action + self._start


def make_search(
    checkpoint: str = "memory-maze", critic: str | None = None, device: str = "auto", **settings: Any
) -> Callable[[gym.Env[Any, Any], int], TreeSearch]:
    """A function (env, seed) -> policy, as PACKAGE.MODULE:FUNCTION expects one.

    Args:
        checkpoint: of the world model.
        critic: a model file that `agents.ppo` made in the dream of the same checkpoint: value of leaves, and prior.
        device: where the model runs; "auto" takes the GPU if there is one.
        settings: fields of `MctsConfig`.

    Raises ValueError for settings out of range; calling the function raises what loading the files raises.
    """
    config = MctsConfig(**settings)
    trees: list[DreamTree] = []

    def make(env: gym.Env[Any, Any], seed: int) -> TreeSearch:
        model = load_model_for(env, checkpoint, device)
        if not trees:
            trees.append(DreamTree(model, config, None if critic is None else PpoCritic(critic, model, env)))
        return TreeSearch(trees[0], env.action_space, seed)

    return make


search = make_search()
