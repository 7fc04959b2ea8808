"""Which dreamed frames enter memory, and that real ones always do."""

import dataclasses

import pytest
import torch

from tests.engine.test_graph import assert_same_state, loaded, read, some_actions
from tests.tiny import tiny_model
from wm_gym.nn.state import ModelState
from wm_gym.world_model import WorldModel, feedback_level

CONTEXT = 6


def dreamed(model: WorldModel, state: ModelState, num_steps: int) -> list[ModelState]:
    """States after each of some steps."""
    states = []
    for t in range(num_steps):
        action = some_actions(model, state.batch_size, t)
        with torch.no_grad():
            state = model.step(state, action, torch.Generator().manual_seed(t))[1]
        states.append(state)
    return states


@pytest.mark.parametrize(("interval", "kept"), [(0, []), (1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6])])
def test_every_interval_th_frame_of_a_dream_enters(interval: int, kept: list[int]) -> None:
    levels = feedback_level(torch.arange(7), interval, torch.device("cpu"))
    assert (levels == 0).nonzero().flatten().tolist() == kept
    assert set(levels.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("interval", [0, 1])
def test_where_all_frames_are_treated_alike_no_count_is_copied_to_the_device(interval: int) -> None:
    # Counts of the baselines lie on the CPU, and what reads them there cannot be captured in a CUDA graph: those of
    # the meta device have no values that could be read.
    counts = torch.zeros(3, dtype=torch.int64, device="meta")
    assert feedback_level(counts, interval, torch.device("cpu")).tolist() == [float(interval == 0)] * 3


@pytest.mark.parametrize(("interval", "enters"), [(0, False), (1, True)])
def test_memory_depends_on_what_a_dreamed_frame_shows_only_if_it_enters(interval: int, enters: bool) -> None:
    model = tiny_model(hide_noise=True, feedback_interval=interval)
    state = dreamed(model, read(model), 2)[-1]
    assert state.pending is not None
    other = dataclasses.replace(state.pending, frame=torch.rand_like(state.pending.frame))
    one, two = (dreamed(model, dataclasses.replace(state, pending=p), 1)[0] for p in (state.pending, other))
    if enters:
        assert not torch.equal(one.layers[0].ssm_state, two.layers[0].ssm_state)
    else:
        assert_same_state(one, two)


def test_real_frames_always_enter() -> None:
    """The newest real frame before a dream, and one that corrects a dreamed frame."""
    models = [tiny_model(hide_noise=True, feedback_interval=interval) for interval in (1, 0)]
    every, none = ([read(model), *dreamed(model, read(model), 1)] for model in models)
    assert_same_state(every[0], none[0])
    for a, b in zip(every[1].layers, none[1].layers, strict=True):
        assert torch.equal(a.ssm_state, b.ssm_state)
    corrected = []
    for model, state in zip(models, (every[1], none[1]), strict=True):
        assert state.pending is not None
        pending = state.pending.corrected(torch.zeros_like(state.pending.frame))
        corrected.append(dreamed(model, dataclasses.replace(state, pending=pending), 1)[0])
    for a, b in zip(corrected[0].layers, corrected[1].layers, strict=True):
        assert torch.equal(a.ssm_state, b.ssm_state)


def test_a_step_graph_that_is_corrected_goes_on_from_real_frames() -> None:
    model = tiny_model(hide_noise=True, feedback_interval=0)
    state, frame = read(model), -torch.ones(3, 3, 16, 16)
    graph = loaded(model, state)
    graph.step(some_actions(model, 3, 0))
    assert graph.memory.dreamed.all()
    graph.memory.correct(frame)
    graph.step(some_actions(model, 3, 1))
    expected = model.advance(state, frame, some_actions(model, 3, 0))
    expected = model.advance(expected, frame, some_actions(model, 3, 1))  # what is pending does not matter
    for a, b in zip(graph.state().layers, expected.layers, strict=True):
        torch.testing.assert_close(a.ssm_state, b.ssm_state)


def test_a_state_of_an_earlier_version_is_read_as_real_frames() -> None:
    model = tiny_model()
    tensors = read(model).to_tensors()
    del tensors["pending.dreamed"]
    assert_same_state(ModelState.from_tensors(tensors), read(model))


@pytest.mark.parametrize("changes", [{"feedback_interval": 2}, {"feedback_interval": -1, "hide_noise": True}])
def test_an_interval_that_cannot_be_meant_is_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match="feedback_interval"):
        tiny_model(**changes)
