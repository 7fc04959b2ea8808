"""Planning in a world model: sequences of actions are dreamed in a batch, and the first action of the best is taken.

A planner is a policy (obs, info) -> action for real environments: it reads the real frames into a memory of its own and
plans anew at every step. `agents.planners.shooting:cem` and `agents.planners.shooting:random_shooting` name two of
them, with the packaged
model, wherever a policy is asked for; for other settings write a line like theirs in a module of yours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from agents.planners.critic import PpoCritic
from agents.planners.model_access import Forks, RealMemory, load_model_for
from wm_gym.world_model import ModelState, WorldModel

# (frames uint8 [N, H, W, C], what remembers them) -> value of being there, [N].
Critic = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class PlannerConfig:
    """How a plan is sought.

    Attributes:
        method: "random" (shooting: the best of uniformly drawn sequences) or "cem" (the cross-entropy method,
            Rubinstein 1999: sequences are drawn around the best ones of the iteration before).
        horizon: actions in a sequence.
        hold: steps for which each is held; more of them look further ahead and try less.
        candidates: sequences in a batch, each with a copy of the memory.
        iterations: batches for each step, at most.
        elite_fraction: part of the candidates that cem goes on from.
        smoothing: share of its earlier distribution that cem keeps.
        discount: per step.
        seconds_per_step: no further iteration is begun if it would end later; the first always runs. None: no limit.
        num_denoising_steps: network passes per dreamed frame.
    """

    method: Literal["random", "cem"] = "cem"
    horizon: int = 12
    hold: int = 2
    candidates: int = 64
    iterations: int = 3
    elite_fraction: float = 0.125
    smoothing: float = 0.2
    discount: float = 0.97
    seconds_per_step: float | None = None
    num_denoising_steps: int = 1

    def __post_init__(self) -> None:
        if self.method not in ("random", "cem"):
            raise ValueError(f"method is 'random' or 'cem', got {self.method!r}.")
        for name in ("horizon", "hold", "candidates", "iterations", "num_denoising_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("elite_fraction", "smoothing", "discount"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}.")


class Planner:
    """A policy that dreams what its actions would lead to.

    Args:
        model: the world model.
        action_space: Discrete, or a bounded Box of one axis.
        config: how it plans.
        critic: value of the last dreamed frame; None: what comes after the horizon counts nothing.
        seed: decides candidates and dreams; with `seconds_per_step` the clock has a say, too.
        dreams: of `make_dreams`, which planners of one thread may share; None: makes them.

    Raises ValueError for an action space that it cannot draw from, or a model of other actions.
    """

    def __init__(
        self,
        model: WorldModel,
        action_space: gym.Space[Any],
        config: PlannerConfig | None = None,
        critic: Critic | None = None,
        seed: int = 0,
        dreams: Forks | None = None,
    ) -> None:
        self._model, self._critic = model, critic
        self._config = PlannerConfig() if config is None else config
        self._dreams = dreams or make_dreams(model, self._config)
        self._generator = torch.Generator(model.device).manual_seed(seed % 2**63)
        self._sequences = _make_sequences(model, action_space, self._config, self._generator)
        self._memory = RealMemory(model)
        self._action: Tensor | None = None

    def reset(self, info: dict[str, Any]) -> None:
        """Forgets the episode before."""
        self._action = None
        self._memory.forget()
        self._sequences.forget()

    @torch.no_grad()
    def __call__(self, obs: Any, info: dict[str, Any]) -> Any:
        """The action at a frame uint8 [H, W, C], which follows the action that was returned last."""
        began = time.monotonic()
        state = self._memory.read(obs, self._action)
        for iteration in range(self._config.iterations):
            started = time.monotonic()
            plans = self._sequences.draw()
            self._sequences.learn(plans, self.returns(state, plans))
            now, limit = time.monotonic(), self._config.seconds_per_step
            if limit is not None and iteration + 1 < self._config.iterations and now - began + (now - started) > limit:
                break
        self._action, action = self._sequences.choose()
        return action

    @torch.no_grad()
    def returns(self, state: ModelState, plans: Tensor) -> Tensor:
        """Discounted return that is expected of each plan, [candidates], from the memory of a single dream.

        Rewards are the means of what the head says, which tells a small hope from none. An end that is likely makes
        what comes after it count less.

        Args:
            state: memory of one row.
            plans: actions [candidates, horizon] or [candidates, horizon, A] in the model's terms.
        """
        config, device = self._config, self._model.device
        keys = torch.randint(-(2**63), 2**63 - 1, (len(plans),), generator=self._generator, device=device)
        self._dreams.start(state, keys)
        total, weight = torch.zeros(len(plans), device=device), torch.ones(len(plans), device=device)
        frames: Tensor | None = None
        for t in range(config.horizon * config.hold):
            output = self._dreams.step(plans[:, t // config.hold])
            total += weight * (output.reward_logits.float().softmax(-1) @ self._model.reward_values)
            weight = weight * config.discount * (1 - output.termination)
            frames = output.frame
        if self._critic is not None and frames is not None:
            total += weight * self._critic(frames, self._dreams.memory).to(total)
        return total


class _Discrete:
    """Sequences of numbered actions; cem keeps a probability of each action at each place."""

    def __init__(self, num_actions: int, start: int, config: PlannerConfig, generator: torch.Generator) -> None:
        self._num_actions, self._start, self._config, self._generator = num_actions, start, config, generator
        self.forget()

    def forget(self) -> None:
        device = self._generator.device
        self._probabilities = torch.full(
            (self._config.horizon, self._num_actions), 1 / self._num_actions, device=device
        )
        self._best, self._best_return = torch.zeros(0), float("-inf")

    def draw(self) -> Tensor:
        """[N, horizon]"""
        drawn = torch.multinomial(self._probabilities, self._config.candidates, True, generator=self._generator)
        return drawn.T

    def learn(self, plans: Tensor, returns: Tensor) -> None:
        elite = _elite(plans, returns, self._config)
        if (best := float(returns.max())) > self._best_return:
            self._best, self._best_return = elite[0], best
        if self._config.method == "cem":
            seen = torch.nn.functional.one_hot(elite, self._num_actions).float().mean(0)
            kept = self._config.smoothing
            self._probabilities = kept * self._probabilities + (1 - kept) * seen

    def choose(self) -> tuple[Tensor, int]:
        """The action to take, for the model [1] and for the environment; then time moves on by one step."""
        chosen = self._probabilities[0].argmax() if self._config.method == "cem" else self._best[0]
        self._best_return = float("-inf")
        if self._config.method == "cem" and self._config.hold == 1:
            # What was planned for later is a good start for the next plan, half of it: the rest may be new.
            uniform = torch.full_like(self._probabilities, 1 / self._num_actions)
            shifted = torch.cat([self._probabilities[1:], uniform[:1]])
            self._probabilities = 0.5 * shifted + 0.5 * uniform
        else:
            self._probabilities = torch.full_like(self._probabilities, 1 / self._num_actions)
        return chosen[None], int(chosen) + self._start


class _Continuous:
    """Sequences of vectors; cem keeps mean and deviation of each component at each place."""

    def __init__(self, space: gym.spaces.Box, config: PlannerConfig, generator: torch.Generator) -> None:
        self._space, self._config, self._generator = space, config, generator
        self._low, self._high = (torch.from_numpy(bound).to(generator.device) for bound in (space.low, space.high))
        self.forget()

    def forget(self) -> None:
        shape = self._config.horizon, len(self._low)
        self._mean = ((self._low + self._high) / 2).expand(shape)
        self._deviation = ((self._high - self._low) / 2).expand(shape)
        self._best, self._best_return = torch.zeros(0), float("-inf")
        self._first = True

    def draw(self) -> Tensor:
        """[N, horizon, A]; the first iteration draws uniformly."""
        shape, device = (self._config.candidates, *self._mean.shape), self._generator.device
        if self._first or self._config.method == "random":
            share = torch.rand(shape, generator=self._generator, device=device)
            return self._low + share * (self._high - self._low)
        noise = torch.randn(shape, generator=self._generator, device=device)
        return torch.clamp(self._mean + self._deviation * noise, self._low, self._high)

    def learn(self, plans: Tensor, returns: Tensor) -> None:
        elite = _elite(plans, returns, self._config)
        if (best := float(returns.max())) > self._best_return:
            self._best, self._best_return = elite[0], best
        kept = self._config.smoothing
        self._mean = kept * self._mean + (1 - kept) * elite.mean(0)
        self._deviation = kept * self._deviation + (1 - kept) * elite.std(0, correction=0)
        self._first = False

    def choose(self) -> tuple[Tensor, np.ndarray]:
        """The action to take, for the model [1, A] and for the environment; then planning begins anew."""
        chosen = self._mean[0] if self._config.method == "cem" else self._best[0]
        self.forget()
        return chosen[None], chosen.cpu().numpy().astype(self._space.dtype)


def _elite(plans: Tensor, returns: Tensor, config: PlannerConfig) -> Tensor:
    """The best plans, the very best first."""
    count = max(1, round(config.elite_fraction * len(plans)))
    return plans[returns.topk(count).indices]


def _make_sequences(
    model: WorldModel, space: gym.Space[Any], config: PlannerConfig, generator: torch.Generator
) -> _Discrete | _Continuous:
    kind, size = model.config.action_kind, model.config.action_size
    if isinstance(space, gym.spaces.Discrete):
        if (kind, size) != ("discrete", int(space.n)):
            raise ValueError(f"The model takes {size} {kind} actions, the environment {space}.")
        return _Discrete(int(space.n), int(space.start), config, generator)
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and space.is_bounded():
        if (kind, size) != ("continuous", space.shape[0]):
            raise ValueError(f"The model takes {size} {kind} actions, the environment {space}.")
        return _Continuous(space, config, generator)
    raise ValueError(f"A planner draws actions from Discrete or a bounded Box of one axis, got {space}.")


def make_dreams(model: WorldModel, config: PlannerConfig) -> Forks:
    """What the candidates of a planner are dreamed in."""
    return Forks(model, config.candidates, config.num_denoising_steps)


def make_planner(
    checkpoint: str = "memory-maze", critic: str | None = None, device: str = "auto", **settings: Any
) -> Callable[[gym.Env[Any, Any], int], Planner]:
    """A function (env, seed) -> planner, as PACKAGE.MODULE:FUNCTION expects one.

    Args:
        checkpoint: of the world model.
        critic: a model file that `agents.ppo` made in the dream of the same checkpoint; it values the last frame.
        device: where the model runs; "auto" takes the GPU if there is one.
        settings: fields of `PlannerConfig`.

    Raises ValueError for settings out of range; calling the function raises what loading the files raises.
    """
    config = PlannerConfig(**settings)
    made: list[tuple[Forks, Critic | None]] = []

    def make(env: gym.Env[Any, Any], seed: int) -> Planner:
        model = load_model_for(env, checkpoint, device)
        if not made:
            value = None if critic is None else PpoCritic(critic, model, env)
            made.append((make_dreams(model, config), value))
        dreams, value = made[0]
        return Planner(model, env.action_space, config, value, seed, dreams)

    return make


cem = make_planner()
random_shooting = make_planner(method="random")
