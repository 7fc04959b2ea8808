"""Planning by rollouts of a policy: what an agent of `agents.ppo` might do is dreamed many times, the best is done.

The rollout algorithm of Tesauro & Galperin 1996, "On-line Policy Improvement using Monte-Carlo Search", in a world
model. The agent is best one that learned in the dream of the same checkpoint. Write in a module of yours:

    plan = make_rollouts("memory-maze", "runs/agent/seed_0/best.zip")

and name it `--policy yours:plan` wherever a policy is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from agents.planners.critic import PpoCritic
from agents.planners.model_access import Forks, RealMemory, load_model_for
from wm_gym.world_model import ModelState, WorldModel


@dataclass(frozen=True)
class RolloutConfig:
    """How futures are tried.

    Attributes:
        candidates: futures in a batch, each with a copy of the memory.
        horizon: actions in each.
        replan_every: actions of a plan that are taken before the next is sought.
        discount: per step.
        num_denoising_steps: network passes per dreamed frame.
    """

    candidates: int = 64
    horizon: int = 40
    replan_every: int = 1
    discount: float = 0.98
    num_denoising_steps: int = 1

    def __post_init__(self) -> None:
        for name in ("candidates", "horizon", "replan_every", "num_denoising_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.replan_every > self.horizon:
            raise ValueError(f"replan_every must be at most horizon, {self.horizon}, got {self.replan_every}.")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount must be in [0, 1], got {self.discount}.")


class RolloutPlanner:
    """A policy (obs, info) -> action that dreams what another one might do, and does what went best.

    What is left of a plan is the first candidate of the next one, so that a good plan is not lost by chance.

    Args:
        model: the world model, of discrete actions.
        action_space: Discrete, of the model's actions.
        critic: the policy that acts in the dreams, and the value of their last frames.
        config: how it plans.
        seed: decides actions and dreams.
        dreams: of `config.candidates` rows, which planners of one thread may share; None: makes them.

    Raises ValueError for other actions.
    """

    def __init__(
        self,
        model: WorldModel,
        action_space: gym.Space[Any],
        critic: PpoCritic,
        config: RolloutConfig | None = None,
        seed: int = 0,
        dreams: Forks | None = None,
    ) -> None:
        kind, size = model.config.action_kind, model.config.action_size
        if kind != "discrete":
            raise ValueError(f"Rollouts are of discrete actions; the model takes {kind}.")
        if not isinstance(action_space, gym.spaces.Discrete) or action_space.n != size:
            raise ValueError(f"The model takes {size} discrete actions, the environment {action_space}.")
        self._model, self._critic, self._start = model, critic, int(action_space.start)
        self._config = RolloutConfig() if config is None else config
        self._dreams = dreams or _make_dreams(model, self._config)
        self._generator = torch.Generator(model.device).manual_seed(seed % 2**63)
        self._memory = RealMemory(model)
        self._forget()

    def _forget(self) -> None:
        self._action: Tensor | None = None
        self._plan = torch.zeros(0, dtype=torch.int64)  # what is left of it, on the host

    def reset(self, info: dict[str, Any]) -> None:
        """Forgets the episode before."""
        self._memory.forget()
        self._forget()

    @torch.no_grad()
    def __call__(self, obs: Any, info: dict[str, Any]) -> int:
        """The action at a frame uint8 [H, W, C], which follows the action that was returned last."""
        config, device = self._config, self._model.device
        state = self._memory.read(obs, self._action)
        if len(self._plan) <= config.horizon - config.replan_every:
            frame = torch.from_numpy(np.ascontiguousarray(obs))[None].to(device)
            plans, values = self.futures(state, frame, self._plan)
            self._plan = plans[:, values.argmax(0, keepdim=True)][:, 0].cpu()
        action, self._plan = int(self._plan[0]), self._plan[1:]
        self._action = torch.tensor([action], device=device)
        return action + self._start

    @torch.no_grad()
    def futures(self, state: ModelState, frame: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [horizon, candidates] of dreamed futures and their discounted values [candidates].

        Rewards are the means of what the head says. An end that is likely makes what comes after it count less.

        Args:
            state: memory of one row, with `frame` as its newest.
            frame: uint8 [1, H, W, C].
            rest: actions [n], n <= horizon, with which the first candidate begins.
        """
        config, device = self._config, self._model.device
        rest = rest.to(device)
        keys = torch.randint(-(2**63), 2**63 - 1, (config.candidates,), generator=self._generator, device=device)
        self._dreams.start(state, keys)
        plans = torch.empty(config.horizon, config.candidates, dtype=torch.int64, device=device)
        total, weight = torch.zeros(config.candidates, device=device), torch.ones(config.candidates, device=device)
        values, chances = self._critic.with_policy(frame, state)
        chances = chances.expand(config.candidates, -1)
        for t, actions in enumerate(plans):
            actions.copy_(self._sample(chances))
            if t < len(rest):
                actions[0] = rest[t]
            output = self._dreams.step(actions)
            total += weight * (output.reward_logits.float().softmax(-1) @ self._model.reward_values)
            weight = weight * config.discount * (1 - output.termination)
            values, chances = self._critic.with_policy(output.frame, self._dreams.memory)
        return plans, total + weight * values.to(total)

    def _sample(self, chances: Tensor) -> Tensor:
        """Actions [N] of probabilities [N, A]: as `torch.multinomial` draws, without its check that a GPU waits for."""
        waits = torch.empty_like(chances).exponential_(generator=self._generator)
        return (chances / waits).argmax(-1)


def _make_dreams(model: WorldModel, config: RolloutConfig) -> Forks:
    return Forks(model, config.candidates, config.num_denoising_steps)


def make_rollouts(
    checkpoint: str = "memory-maze", agent: str | None = None, device: str = "auto", **settings: Any
) -> Callable[[gym.Env[Any, Any], int], RolloutPlanner]:
    """A function (env, seed) -> policy, as PACKAGE.MODULE:FUNCTION expects one.

    Args:
        checkpoint: of the world model.
        agent: a model file that `agents.ppo` made in the dream of the same checkpoint, RUN/seed_0/best.zip.
        device: where the model runs; "auto" takes the GPU if there is one.
        settings: fields of `RolloutConfig`.

    Raises ValueError for settings out of range or no agent; calling the function raises what loading the files raises.
    """
    config = RolloutConfig(**settings)
    if agent is None:
        raise ValueError("It rolls out a policy that agents.ppo learned and needs one, agent=RUN/seed_0/best.zip.")
    made: list[tuple[Forks, PpoCritic]] = []

    def make(env: gym.Env[Any, Any], seed: int) -> RolloutPlanner:
        model = load_model_for(env, checkpoint, device)
        if not made:
            critic = PpoCritic(agent, model, env)
            made.append((_make_dreams(model, config), critic))
        dreams, critic = made[0]
        return RolloutPlanner(model, env.action_space, critic, config, seed, dreams)

    return make
