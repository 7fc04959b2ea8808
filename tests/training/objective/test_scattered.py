"""A scattered sequence shows the same frames at the same poses, some pieces first and the others after them."""

import torch

from training.data.dataset import Batch
from training.objective.revisits import no_turns
from training.objective.scattered import scatter

B, T = 16, 60


def batch() -> Batch:
    time = torch.arange(T, dtype=torch.float32)
    frames = time.view(1, T, 1, 1, 1).expand(B, T, 2, 2, 3).to(torch.uint8)
    still = torch.zeros(B, T - 1)
    return Batch(frames, still.long(), still, still.bool(), time.view(1, T, 1).expand(B, T, 4).clone())


def test_pieces_are_shown_in_their_order_and_the_others_follow_in_theirs() -> None:
    given = batch()
    scattered, turns = scatter(given, no_turns(B, T, torch.device("cpu")), 0.7, torch.Generator().manual_seed(0))
    assert turns.is_revisit.all(1).any() and not turns.is_revisit.all()
    for row in range(B):
        order, first = scattered.pose[row, :, 0].long(), int(turns.first_revisit[row])
        assert torch.equal(scattered.frames[row, :, 0, 0, 0].long(), order)
        assert order.sort().values.tolist() == list(range(T))
        if first == T:
            assert torch.equal(order, torch.arange(T)) and not turns.is_revisit[row].any()
            continue
        assert 0 < first < T and order[0] == 0 and order[-1] == T - 1
        assert (order[:first].diff() > 0).all() and (order[first:].diff() > 0).all()


def test_sequences_that_turn_round_stay() -> None:
    turns = no_turns(B, T, torch.device("cpu"))
    turns.first_revisit[:] = 30
    scattered, after = scatter(batch(), turns, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(scattered.pose, batch().pose) and torch.equal(after.first_revisit, turns.first_revisit)
