import numpy as np
import pytest
import torch

from tests.tiny import DISCRETE, LEARNED_ODOMETRY, PLANAR_POSE, make_tiny_clips, tiny_model
from wm_gym.engine.memory import StepMemory
from wm_gym.envs.dream.context_pool import ContextPool, read_contexts


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def memory(model):
    return StepMemory(model.config, 4, model.device)


def make_pool(model, memory, starts_per_clip=4, context_frames=6):
    return ContextPool(model, make_tiny_clips(), [context_frames], starts_per_clip, DISCRETE, memory)


def test_contexts_are_evenly_spaced_parts_of_each_clip(model, memory):
    pool, clips = make_pool(model, memory), make_tiny_clips()
    assert len(pool) == 12
    for number in range(12):
        clip, start = number // 4, 2 * (number % 4)
        np.testing.assert_array_equal(pool.context(number).frames, clips.frames[clip, start : start + 6])
        np.testing.assert_array_equal(pool.context(number).actions, clips.actions[clip, start : start + 5])


def test_a_clip_gives_no_more_contexts_than_it_has(model, memory):
    assert len(make_pool(model, memory, starts_per_clip=100)) == 3 * 7
    assert len(make_pool(model, memory, context_frames=12)) == 3


def test_what_is_copied_is_the_memory_after_reading_the_context_alone(model, memory):
    pool = make_pool(model, memory)
    memory.load(read_contexts(model, [pool.context(0)] * 4, DISCRETE)[0])
    untouched = memory.state().index(3).to_tensors()
    # The second call needs more room, and some that are there already.
    for numbers, rows in (([7], [1]), ([2, 7, 11], [0, 1, 2])):
        pool.copy(np.array(numbers), memory, torch.tensor(rows))
        for number, row in zip(numbers, rows, strict=True):
            expected = read_contexts(model, [pool.context(number)], DISCRETE)[0].to_tensors()
            for name, tensor in memory.state().index(row).to_tensors().items():
                torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(t, untouched[name]) for name, t in memory.state().index(3).to_tensors().items())


def test_no_context_is_read_twice_and_many_are_read_together(model, memory, monkeypatch):
    sizes = []
    prefill = model.prefill_and_locate

    def counted(state, frames, actions):
        sizes.append(len(frames))
        return prefill(state, frames, actions)

    monkeypatch.setattr(model, "prefill_and_locate", counted)
    pool = make_pool(model, memory)
    pool.read([3, 3, 5])
    pool.copy(np.array([5, 3]), memory, torch.tensor([0, 1]))
    assert sizes == [2]
    pool.read(range(12))
    pool.copy(np.arange(4), memory, torch.arange(4))
    assert sizes == [2, 8, 2]


def test_positions_are_kept_with_the_number_of_their_context():
    model = tiny_model(pose=PLANAR_POSE, odometry=LEARNED_ODOMETRY)
    memory = StepMemory(model.config, 4, model.device)
    pool = ContextPool(model, make_tiny_clips(), [6], 4, DISCRETE, memory, keep_positions=True)
    pool.read([9])
    for numbers in ([7, 9], [2, 7, 11]):
        for number, positions in zip(numbers, pool.positions(np.array(numbers)), strict=True):
            expected = read_contexts(model, [pool.context(number)], DISCRETE)[1]
            assert expected is not None
            torch.testing.assert_close(positions, expected[0], rtol=1e-4, atol=1e-5)
            assert positions.shape == (6, 2) and positions[1:].abs().min() > 0


def test_clips_take_turns_at_several_lengths_up_to_their_ends():
    model = tiny_model(pose=PLANAR_POSE, odometry=LEARNED_ODOMETRY)
    memory, clips = StepMemory(model.config, 4, model.device), make_tiny_clips()
    pool = ContextPool(model, clips, [8, 3], 4, DISCRETE, memory, keep_positions=True)
    assert len(pool) == len(clips) == 3 and [pool.num_frames(number) for number in range(3)] == [8, 3, 8]
    numbers = np.array([1, 2, 0])
    pool.copy(numbers, memory, torch.tensor([0, 1, 3]))
    for number, row, positions in zip(numbers.tolist(), (0, 1, 3), pool.positions(numbers), strict=True):
        length = pool.num_frames(number)
        np.testing.assert_array_equal(pool.context(number).frames, clips.frames[number, 12 - length :])
        state, expected = read_contexts(model, [pool.context(number)], DISCRETE)
        for name, tensor in memory.state().index(row).to_tensors().items():
            torch.testing.assert_close(tensor, state.to_tensors()[name], rtol=1e-4, atol=1e-5)
        assert expected is not None and positions.shape == (8, 2)
        torch.testing.assert_close(positions[:length], expected[0], rtol=1e-4, atol=1e-5)
        assert positions[length:].isinf().all(), "What a shorter context did not see is near to nothing."
    with pytest.raises(ValueError, match="clips have 1 to 12"):
        ContextPool(model, clips, [3, 13], 4, DISCRETE, memory)


def test_models_without_odometry_tell_no_positions(model, memory):
    assert read_contexts(model, [make_pool(model, memory).context(0)], DISCRETE)[1] is None


def test_clips_shorter_than_a_context_are_a_value_error(model, memory):
    with pytest.raises(ValueError, match="clips have 1 to 12"):
        make_pool(model, memory, context_frames=13)
