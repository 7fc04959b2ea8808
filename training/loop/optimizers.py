"""Muon for the matrices of the layers, AdamW for all else, as one optimizer.

Muon (https://kellerjordan.github.io/posts/muon) moves each matrix by its orthogonalised momentum; the step has the size
of AdamW's (arXiv 2502.16982), so that both share a learning rate. PyTorch's own takes one matrix after the other; here
those of one shape are a batch, for a small network has many and its step is bound by launches.
"""

# pyright: reportPrivateImportUsage=false
# (The functions for lists of tensors have no public name, but all of PyTorch's optimizers use them.)

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration, from the first source above
_ITERATIONS = 5
_UPDATE_RMS = 0.2  # of an entry, which is about AdamW's


class MuonAdamW(torch.optim.Optimizer):
    """Two optimizers behind one list of groups; the first group is Muon's.

    Args:
        matrices: parameters of two axes that multiply activations.
        adamw_groups: the others, as `torch.optim.AdamW` takes them.
        lr, betas, weight_decay: of both; Muon takes `momentum` in place of betas.
        fused: of AdamW.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        adamw_groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        momentum: float = 0.95,
        fused: bool = False,
    ) -> None:
        self._adamw = torch.optim.AdamW(adamw_groups, lr=lr, betas=betas, fused=fused)
        muon = {"params": list(matrices), "lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        if wrong := [tuple(matrix.shape) for matrix in muon["params"] if matrix.ndim != 2]:
            raise ValueError(f"Muon moves matrices; got a parameter of shape {wrong[0]}.")
        super().__init__([muon, *self._adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """AdamW works on our groups and on our state."""
        self._adamw.param_groups, self._adamw.state = self.param_groups[1:], self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave; see `torch.optim.Optimizer`."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of both. A closure is not supported."""
        if closure is not None:
            raise ValueError("MuonAdamW takes no closure; compute the gradients before the step.")
        self._adamw.step()
        group = self.param_groups[0]
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(parameter.shape, []).append(parameter)
        for parameters in by_shape.values():
            self._move(parameters, group)

    def _move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Matrices of one shape."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"]))  # Nesterov's
        update = orthogonalised(ahead).to(ahead.dtype)
        size = _UPDATE_RMS * max(parameters[0].shape) ** 0.5
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(update.unbind()), alpha=-group["lr"] * size)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices ``[n, r, c]`` with their singular values brought near 1 (0.7 to 1.2), in bfloat16."""
    a, b, c = _COEFFICIENTS
    x = matrices.to(torch.bfloat16)
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / x.float().norm(dim=(1, 2), keepdim=True).clamp(min=1e-7).to(x.dtype)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
