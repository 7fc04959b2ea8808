"""Monte-Carlo tree search over numbered actions, whatever the simulator: PUCT, with leaves that are tried in batches.

A tree of one agent's futures (Rosin 2011; Silver et al. 2017; Schrittwieser et al. 2020): each round walks from the
root to an edge that was not tried yet, by

    Q(s, a) + exploration * P(s, a) * sqrt(N(s)) / (1 + N(s, a)),

tries it, and takes what was found back to the root. Several walks run before their edges are tried together; those
under way count in N but not in Q (Liu et al. 2020, "Watch the Unobserved"), so that they spread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Leaves:
    """What n tried edges led to.

    Attributes:
        rewards: float [n], on the way.
        weights: float [n], what a return at the leaf is worth at its parent: discount, and less if an end is likely.
        values: float [n], expected return from the leaf on.
        priors: float [n, A], probabilities of the actions at the leaf.
    """

    rewards: np.ndarray
    weights: np.ndarray
    values: np.ndarray
    priors: np.ndarray


class Simulator(Protocol):
    """Keeps a state for each node."""

    def expand(self, parents: Sequence[int], actions: Sequence[int], nodes: Sequence[int]) -> Leaves:
        """Acts in the states of `parents` and keeps the states that follow as those of `nodes`."""
        ...


class Tree:
    """The tree of one search. The root is node 0.

    Args:
        prior: float [A], at the root.
        max_nodes: the root and all leaves that will be added.
        exploration: weight of the prior against what was found; returns are scaled to [0, 1] by the range found.
    """

    def __init__(self, prior: np.ndarray, max_nodes: int, exploration: float) -> None:
        num_actions = len(prior)
        self.num_nodes, self._exploration = 1, exploration
        self._children = np.full((max_nodes, num_actions), -1, np.int64)
        self._priors = np.zeros((max_nodes, num_actions))
        self._priors[0] = prior
        self._visits = np.zeros((max_nodes, num_actions))
        self._under_way = np.zeros((max_nodes, num_actions))
        self._sums = np.zeros((max_nodes, num_actions))  # of returns that were found behind each edge
        self._values = np.zeros(max_nodes)  # of the simulator, at the node itself
        self._rewards, self._weights = np.zeros(max_nodes), np.ones(max_nodes)  # on the edge that leads to the node
        self._low, self._high = np.inf, -np.inf

    @property
    def visits(self) -> np.ndarray:
        """How often each action was tried at the root, [A]."""
        return self._visits[0].copy()

    @property
    def returns(self) -> np.ndarray:
        """Mean return behind each action at the root, [A]; NaN where none was tried."""
        with np.errstate(invalid="ignore"):
            return self._sums[0] / self._visits[0]

    def grow(self, simulator: Simulator, num_leaves: int) -> int:
        """One batch of up to `num_leaves` walks. Returns how many leaves were added, fewer if walks met."""
        paths: list[list[tuple[int, int]]] = []
        room = len(self._children) - self.num_nodes
        while len(paths) < min(num_leaves, room):
            path = self._walk()
            if path in paths:
                break
            for node, action in path:
                self._under_way[node, action] += 1
            paths.append(path)
        nodes = list(range(self.num_nodes, self.num_nodes + len(paths)))
        parents, actions = ([path[-1][part] for path in paths] for part in (0, 1))
        leaves = simulator.expand(parents, actions, nodes)
        self.num_nodes += len(paths)
        for index, (node, path) in enumerate(zip(nodes, paths, strict=True)):
            self._children[path[-1]] = node
            self._priors[node], self._values[node] = leaves.priors[index], leaves.values[index]
            self._rewards[node], self._weights[node] = leaves.rewards[index], leaves.weights[index]
            self._take_back(path, float(leaves.values[index]))
        self._under_way[:] = 0
        return len(paths)

    def best_action(self) -> int:
        """The action that was tried most often; of several, the one with the best return."""
        returns = np.nan_to_num(self.returns, nan=-np.inf)
        return int(np.lexsort((returns, self._visits[0]))[-1])

    def _walk(self) -> list[tuple[int, int]]:
        """Edges from the root to one that was not tried yet."""
        node, path = 0, []
        while node >= 0:
            action = int(self._scores(node).argmax())
            path.append((node, action))
            node = int(self._children[node, action])
        return path

    def _scores(self, node: int) -> np.ndarray:
        visits = self._visits[node]
        tried = visits > 0
        # An edge that was not tried is taken to be as good as the node: its value and what was found behind it.
        total = self._sums[node].sum() + self._values[node] * (node > 0)
        count = visits.sum() + (node > 0)
        expected = np.full(len(visits), total / count if count else 0.0)
        expected[tried] = self._sums[node, tried] / visits[tried]
        spread = self._high - self._low
        scaled = (expected - self._low) / spread if spread > 0 else np.zeros_like(expected)
        all_visits = visits + self._under_way[node]
        bonus = self._priors[node] * np.sqrt(max(1.0, all_visits.sum())) / (1 + all_visits)
        return scaled + self._exploration * bonus

    def _take_back(self, path: Sequence[tuple[int, int]], value: float) -> None:
        for node, action in reversed(path):
            child = self._children[node, action]
            value = float(self._rewards[child] + self._weights[child] * value)
            self._sums[node, action] += value
            self._visits[node, action] += 1
            mean = self._sums[node, action] / self._visits[node, action]
            self._low, self._high = min(self._low, mean), max(self._high, mean)


def search(
    simulator: Simulator,
    prior: np.ndarray,
    simulations: int,
    leaves: int,
    exploration: float,
    goes_on: Callable[[int], bool] = lambda done: True,
) -> Tree:
    """Grows a tree by `simulations` leaves, in batches of up to `leaves`, as long as `goes_on(leaves so far)`."""
    tree = Tree(prior, 1 + simulations, exploration)
    while tree.num_nodes <= simulations:
        tree.grow(simulator, leaves)
        if not goes_on(tree.num_nodes - 1):
            break
    return tree
