import gymnasium as gym
import numpy as np
import pytest
import torch

from wm_gym.envs.dream.actions import DeviceActionCheck, check_actions

CPU = torch.device("cpu")
SHIFTED = gym.spaces.Discrete(3, start=5)
BOX = gym.spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 2.0], np.float32))


@pytest.mark.parametrize(
    ("space", "actions"),
    [
        (gym.spaces.Discrete(3), torch.tensor([0, 2, 1])),
        (gym.spaces.Discrete(3), torch.tensor([0, 2, 1], dtype=torch.uint8)),
        (SHIFTED, torch.tensor([5, 7, 6])),
        (BOX, torch.tensor([[-1.0, 2.0], [0.5, 0.0], [1.0, 1.0]])),
        (BOX, torch.tensor([[1, 2], [0, 0], [-1, 1]])),
    ],
)
def test_on_a_device_valid_actions_are_what_they_are_on_the_host(space, actions):
    taken, outside = DeviceActionCheck(3, space, CPU)(actions)
    expected = check_actions(actions, 3, space)
    assert taken.dtype == expected.dtype
    assert torch.equal(taken, expected)
    assert not outside


@pytest.mark.parametrize(
    ("space", "actions", "nearest"),
    [
        (gym.spaces.Discrete(3), torch.tensor([0, 3, 1]), [0, 2, 1]),
        (gym.spaces.Discrete(3), torch.tensor([-4, 0, 1]), [0, 0, 1]),
        (SHIFTED, torch.tensor([4, 5, 9]), [0, 0, 2]),
        (BOX, torch.tensor([[-2.0, 0.0], [0.0, 2.1]]), [[-1.0, 0.0], [0.0, 2.0]]),
        (BOX, torch.tensor([[torch.nan, 0.0], [0.0, torch.inf]]), [[-1.0, 0.0], [0.0, 2.0]]),
    ],
)
def test_on_a_device_an_action_outside_the_space_is_told_and_replaced(space, actions, nearest):
    taken, outside = DeviceActionCheck(len(actions), space, CPU)(actions)
    assert outside
    assert taken.tolist() == nearest
    with pytest.raises(ValueError, match=f"{len(actions)} action"):
        check_actions(actions, len(actions), space)


@pytest.mark.parametrize(
    ("space", "actions"),
    [
        (gym.spaces.Discrete(3), torch.zeros(2, dtype=torch.int64)),
        (gym.spaces.Discrete(3), torch.zeros(3)),
        (gym.spaces.Discrete(3), torch.zeros(3, dtype=torch.bool)),
        (BOX, torch.zeros(3)),
        (BOX, torch.zeros(3, 2, dtype=torch.complex64)),
    ],
)
def test_on_a_device_a_shape_or_dtype_that_does_not_fit_is_a_value_error_at_once(space, actions):
    with pytest.raises(ValueError, match=r"Expected 3 action\(s\) from"):
        DeviceActionCheck(3, space, CPU)(actions)
