"""Muon moves matrices by orthogonal steps, AdamW the rest, and both go on from a saved state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from training.loop.optimizers import MuonAdamW, orthogonalised


def _layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 12), nn.Tanh(), nn.Linear(12, 24))


def _optimizer(model: nn.Module, lr: float = 3e-3) -> MuonAdamW:
    parameters = list(model.parameters())
    rest = [{"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}]
    return MuonAdamW([p for p in parameters if p.ndim == 2], rest, lr, (0.9, 0.99), 0.01)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> Tensor:
    x = torch.randn(32, 12, generator=torch.Generator().manual_seed(seed))
    loss = (model(x) - torch.cat([x.sin(), x.cos()], -1)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


@pytest.mark.parametrize("shape", [(3, 8, 20), (3, 20, 8), (1, 16, 16)])
def test_singular_values_are_brought_near_1(shape: tuple[int, int, int]) -> None:
    matrices = (
        torch.randn(shape, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-3, 1.0, 50.0])[: shape[0], None, None]
    )
    before = torch.linalg.svdvals(matrices)
    values = torch.linalg.svdvals(orthogonalised(matrices).float())
    assert (before[:, 0] / before[:, -1]).min() > 2
    assert values.min() > 0.4
    assert values.max() < 1.4


def test_a_zero_gradient_moves_nothing_but_by_decay() -> None:
    assert not orthogonalised(torch.zeros(2, 4, 6)).any()


def test_it_fits_a_function_better_than_it_began() -> None:
    model = _layers()
    optimizer = _optimizer(model, lr=1e-2)
    losses = [_step(model, optimizer, seed) for seed in range(300)]
    assert torch.stack(losses[-20:]).mean() < 0.25 * torch.stack(losses[:5]).mean()


def test_matrices_of_one_shape_do_not_influence_each_other() -> None:
    one, both = _layers(), _layers()
    optimizer_one, optimizer_both = _optimizer(one), _optimizer(both)
    for optimizer, model in ((optimizer_one, one), (optimizer_both, both)):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        if model is one:
            list(model.parameters())[4].grad = None  # of the shape of the first layer's weight
        optimizer.step()
    # Batched products may round differently.
    torch.testing.assert_close(one[0].weight, both[0].weight, atol=1e-4, rtol=1e-2)


def test_a_run_goes_on_from_a_saved_state_as_if_it_had_not_stopped() -> None:
    model = _layers()
    optimizer = _optimizer(model)
    for seed in range(5):
        _step(model, optimizer, seed)
    resumed = copy.deepcopy(model)
    other = _optimizer(resumed)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(5, 10):
        assert torch.equal(_step(model, optimizer, seed), _step(resumed, other, seed))


def test_it_moves_matrices_only() -> None:
    with pytest.raises(ValueError, match="matrices"):
        MuonAdamW([nn.Parameter(torch.zeros(3))], [{"params": [nn.Parameter(torch.zeros(2))]}], 1e-3, (0.9, 0.99), 0.0)
