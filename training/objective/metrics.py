"""Metrics of training: pairs of a numerator and a denominator, which stay on the device."""

from __future__ import annotations

import torch
from torch import Tensor

Metrics = dict[str, Tensor]
"""Name -> [numerator, denominator]: sums over steps and processes, divided only when logged, weigh frames equally."""


def single(value: Tensor) -> Tensor:
    """One number ``[]`` as a metric."""
    return torch.stack([value.detach(), torch.ones_like(value)])


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of `values` where `mask`, a bool tensor of the same shape, is true, as a metric."""
    return torch.stack([(values * mask).sum(), mask.sum()])
