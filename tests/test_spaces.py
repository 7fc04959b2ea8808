import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from wm_gym.spaces import space_from_json, space_to_json


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(0, 255, (64, 64, 3), np.uint8),
        gym.spaces.Box(-1.0, 1.0, (3,), np.float32),
        gym.spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 2.0]), dtype=np.float32),
        gym.spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
        gym.spaces.Box(-3, 3, (), np.float32),
        gym.spaces.Discrete(6),
        gym.spaces.Discrete(4, start=-1),
    ],
    ids=str,
)
def test_a_space_survives_strict_json(space):
    text = json.dumps(space_to_json(space), allow_nan=False)
    assert space_from_json(json.loads(text)) == space


def test_a_space_of_another_kind_is_a_value_error():
    with pytest.raises(ValueError, match="Only Box and Discrete"):
        space_to_json(gym.spaces.MultiBinary(3))


@pytest.mark.parametrize(
    "description",
    [
        {},
        [1],
        {"type": "MultiBinary"},
        {"type": "Discrete"},
        {"type": "Discrete", "n": -1, "start": 0},
        {"type": "Box", "low": 0, "high": 1, "shape": [2], "dtype": "strange"},
        {"type": "Box", "low": [0, 0, 0], "high": 1, "shape": [2], "dtype": "float32"},
    ],
)
def test_a_description_of_no_space_is_a_value_error(description: Any):
    with pytest.raises(ValueError, match=r"[Dd]escription of a"):
        space_from_json(description)
