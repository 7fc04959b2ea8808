import numpy as np
import pytest

from agents.planners.tree import Leaves, Tree, search

UNIFORM = np.full(3, 1 / 3)


class Steps:
    """A world that is given by a function of the actions since the root: (reward, weight, value)."""

    def __init__(self, outcome, prior=UNIFORM):
        self.outcome, self.prior = outcome, prior
        self.paths: dict[int, tuple[int, ...]] = {0: ()}
        self.batches = []

    def expand(self, parents, actions, nodes):
        self.batches.append(list(zip(parents, actions, strict=True)))
        for parent, action, node in zip(parents, actions, nodes, strict=True):
            assert node not in self.paths
            self.paths[node] = (*self.paths[parent], action)
        found = np.array([self.outcome(self.paths[node]) for node in nodes], np.float64)
        return Leaves(found[:, 0], found[:, 1], found[:, 2], np.tile(self.prior, (len(nodes), 1)))


def code(*wanted):
    """A reward of 1 for the whole code of actions."""
    return lambda path: (float(path == wanted), 0.9, 0.0)


@pytest.mark.parametrize("leaves", [1, 8])
def test_the_search_finds_a_code_and_prefers_its_first_action(leaves):
    for wanted in ((2, 0, 1), (0, 0, 2), (1, 2, 2)):
        tree = search(Steps(code(*wanted)), UNIFORM, 400, leaves, 1.25)
        assert tree.best_action() == wanted[0]
        assert tree.visits.sum() == 400
        assert tree.visits[wanted[0]] > 0.5 * 400


def test_a_nearer_reward_is_preferred_and_an_end_takes_what_comes_after_it():
    def late_or_early(path):
        return float(path in ((0, 0, 0), (1,))), 0.5, 0.0

    def behind_an_end(path):
        return float(path == (2, 2)), 0.0 if path == (2,) else 1.0, 0.3 if path == (0,) else 0.0

    assert search(Steps(late_or_early), UNIFORM, 200, 4, 1.25).best_action() == 1
    tree = search(Steps(behind_an_end), UNIFORM, 100, 4, 1.25)
    assert tree.returns[2] == 0 and tree.best_action() == 0


def test_returns_are_means_of_rewards_and_weighted_values():
    tree = Tree(UNIFORM, 4, 1.25)
    simulator = Steps(lambda path: (1.0 + path[-1], 0.5, 10.0))
    assert tree.grow(simulator, 3) == 3
    np.testing.assert_allclose(tree.returns, [6.0, 7.0, 8.0])
    np.testing.assert_array_equal(tree.visits, [1, 1, 1])


def test_a_batch_never_tries_an_edge_twice_and_spreads():
    simulator = Steps(code(0, 1))
    search(simulator, UNIFORM, 100, 8, 1.25)
    edges = [edge for batch in simulator.batches for edge in batch]
    assert len(edges) == len(set(edges)) == 100
    assert np.mean([len(batch) for batch in simulator.batches]) > 4


def test_the_prior_decides_where_nothing_is_known():
    prior = np.array([0.1, 0.8, 0.1])
    simulator = Steps(lambda path: (0.0, 1.0, 0.0), prior)
    tree = search(simulator, prior, 50, 1, 1.25)
    assert simulator.batches[0] == [(0, 1)] and tree.visits.argmax() == 1
    assert (tree.visits > 0).all(), "Nothing is ruled out."


def test_the_search_stops_when_it_is_told_to():
    done = []
    tree = search(Steps(code(0)), UNIFORM, 100, 2, 1.25, lambda count: done.append(count) or count < 6)
    assert done[-1] == tree.visits.sum() == 6
