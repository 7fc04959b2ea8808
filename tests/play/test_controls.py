import gymnasium as gym
import numpy as np
import pytest

from wm_gym.play.controls import MEMORY_MAZE, controls_for


def test_memory_maze_is_steered_by_arrows_and_time_passes_without_a_key():
    controls = controls_for(gym.spaces.Discrete(6), "wm_gym/MemoryMaze-9x9-v0", has_policy=False)
    assert controls is MEMORY_MAZE
    assert controls.idle_action == 0
    assert sorted(controls.actions.values()) == [1, 2, 3, 4, 5]


def test_other_discrete_actions_are_chosen_by_number_and_the_world_waits_for_them():
    controls = controls_for(gym.spaces.Discrete(12, start=5), "Other-v0", has_policy=False)
    assert list(controls.actions.values()) == list(range(5, 17))
    assert controls.buttons[0].keys == ("Digit0", "Numpad0")
    assert controls.buttons[11].keys == ()
    assert controls.idle_action is None


def test_six_actions_of_another_environment_are_not_taken_for_memory_mazes():
    assert controls_for(gym.spaces.Discrete(6), "Other-v0", has_policy=False) is not MEMORY_MAZE


def test_continuous_actions_can_only_be_watched():
    space = gym.spaces.Box(-1, 1, (2,), np.float32)
    assert controls_for(space, "Other-v0", has_policy=True).buttons == ()
    with pytest.raises(ValueError, match="give --policy to watch"):
        controls_for(space, "Other-v0", has_policy=False)
