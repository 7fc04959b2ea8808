import math

import numpy as np
import pytest

from tests.training.recording.test_policies import NINE, ToyMaze
from wm_gym.policies.backtrack import Backtracker


def walk(seed, outward_steps, num_steps):
    """Positions [num_steps + 1, 2] in the drawn maze."""
    env, policy = ToyMaze(NINE), Backtracker(seed, outward_steps)
    obs, info = env.reset()
    policy.reset(info)
    positions = [info["pose"][:2]]
    for _ in range(num_steps):
        obs, *_, info = env.step(policy(obs, info))
        positions.append(info["pose"][:2])
    return np.array(positions)


@pytest.mark.parametrize("seed", range(5))
def test_it_goes_back_on_its_own_track_to_where_it_began(seed):
    positions = walk(seed, 60, 240)
    out, back = positions[:61], positions[61:]
    deviations = [min(math.dist(position, point) for point in out) for position in back]
    assert max(deviations) < 0.35
    assert min(math.dist(position, out[0]) for position in back) < 0.35
    length = np.linalg.norm(np.diff(out, axis=0), axis=1).sum()
    assert length > 5, "The way out is no walk."


@pytest.mark.parametrize("seed", range(3))
def test_having_come_back_it_goes_out_again(seed):
    positions = walk(seed, 40, 400)
    turn = positions[40]
    home = next(t for t in range(41, 400) if math.dist(positions[t], positions[0]) < 0.35)
    assert min(math.dist(position, turn) for position in positions[home:]) < 0.35


def test_the_way_out_is_the_navigators():
    a, b = walk(3, 50, 50), walk(3, 80, 80)
    np.testing.assert_array_equal(a, b[:51])


def test_a_way_out_of_no_step_is_an_error():
    with pytest.raises(ValueError, match="at least one step, got 0"):
        Backtracker(0, 0)
