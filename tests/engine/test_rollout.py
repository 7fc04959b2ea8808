"""The loop "load a context, dream on" steps alike in both of its kinds, row by row and piece by piece."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.rounding import assert_same_dream
from tests.tiny import tiny_model
from wm_gym.engine.rollout import Dreams, load_contexts, make_graph, rollout
from wm_gym.nn.state import ModelState
from wm_gym.world_model import WorldModel

BATCH, CONTEXT, STEPS = 3, 5, 6
KEYS = torch.tensor([11, 12, 13])


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return tiny_model()


@pytest.fixture(scope="module")
def actions() -> Tensor:
    return torch.randint(3, (BATCH, CONTEXT - 1 + STEPS), generator=torch.Generator().manual_seed(0))


def reader(model: WorldModel, actions: Tensor, rows: list[int]) -> Callable[[Tensor], ModelState]:
    frames = torch.randint(256, (BATCH, CONTEXT, 16, 16, 3), generator=torch.Generator().manual_seed(1)).byte()[rows]

    def read(dreams: Tensor) -> ModelState:
        before = actions[rows][dreams, : CONTEXT - 1]
        return model.prefill(model.initial_state(len(dreams)), frames[dreams], before)

    return read


def dreams(model: WorldModel, actions: Tensor, rows: list[int], graph_rows: int = 0) -> Dreams:
    graph = make_graph(model, graph_rows) if graph_rows else None
    return load_contexts(model, reader(model, actions, rows), KEYS[rows], graph)


def frames_of(dreams: Dreams, actions: Tensor) -> Tensor:
    return torch.stack([one.frame.clone() for one in rollout(dreams, actions)], 1)


@pytest.mark.parametrize("graph_rows", [0, 3, 5])
@torch.no_grad()
def test_a_dream_depends_neither_on_its_batch_nor_on_what_steps_it(
    model: WorldModel, actions: Tensor, graph_rows: int
) -> None:
    following = actions[:, CONTEXT - 1 :]
    whole = frames_of(dreams(model, actions, [0, 1, 2], graph_rows), following)
    for row in range(BATCH):
        assert_same_dream(whole[row : row + 1], frames_of(dreams(model, actions, [row]), following[row : row + 1]))
    assert not torch.equal(whole[0], whole[1])


@torch.no_grad()
def test_pieces_of_a_rollout_go_on_exactly(model: WorldModel, actions: Tensor) -> None:
    following = actions[:, CONTEXT - 1 :]
    whole = frames_of(dreams(model, actions, [0, 1, 2]), following)
    same = dreams(model, actions, [0, 1, 2])
    parts = [frames_of(same, part) for part in (following[:, :2], following[:, 2:])]
    assert torch.equal(whole, torch.cat(parts, 1))


@torch.no_grad()
def test_a_corrected_frame_enters_memory_in_place_of_the_imagined_one(model: WorldModel, actions: Tensor) -> None:
    real = torch.zeros(BATCH, 16, 16, 3, dtype=torch.uint8)
    corrected, left = (dreams(model, actions, [0, 1, 2]) for _ in range(2))
    for one in (corrected, left):
        one.step(actions[:, CONTEXT - 1])
    corrected.correct(real)
    following = actions[:, CONTEXT:]
    assert not torch.equal(frames_of(corrected, following), frames_of(left, following))


def test_a_baseline_has_no_graph(model: WorldModel) -> None:
    class Other(WorldModel):
        pass

    assert make_graph(Other(model.config), 1) is None
