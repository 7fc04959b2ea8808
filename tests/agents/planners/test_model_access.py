import numpy as np
import torch

from agents.planners.model_access import Forks, RealMemory
from tests.rounding import assert_same_dream
from tests.tiny import tiny_model
from wm_gym.engine.graph import StepGraph


def test_forks_are_futures_of_one_moment_that_do_not_know_each_other():
    model = tiny_model()
    state = RealMemory(model).read(np.full((16, 16, 3), 90, np.uint8), None)
    forks, alone = Forks(model, 3), StepGraph(model, 1)
    keys = torch.tensor([5, 6, 5])
    for _ in range(2):  # The second time they begin anew.
        forks.start(state, keys)
        alone.load(state)
        alone.set_noise(keys[1:2])
        for actions in ([0, 1, 0], [2, 0, 2]):
            frames = forks.step(torch.tensor(actions)).frame.clone()
            expected = alone.step(torch.tensor(actions[1:2])).frame
            assert_same_dream(frames[1], expected[0])
            assert torch.equal(frames[0], frames[2]) and not torch.equal(frames[0], frames[1])


def test_a_new_episode_is_read_into_an_empty_memory():
    model = tiny_model()
    frames = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), np.uint8)
    memory = RealMemory(model)
    first = memory.read(frames[0], None)
    later = memory.read(frames[1], torch.tensor([2]))
    assert int(later.num_frames[0]) == 2
    memory.forget()
    again = memory.read(frames[0], torch.tensor([2]))
    for one, other in zip(first.layers, again.layers, strict=True):
        torch.testing.assert_close(one.ssm_state, other.ssm_state)
