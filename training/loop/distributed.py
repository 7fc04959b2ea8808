"""Data-parallel processes as torchrun starts them; with a single process every function is a cheap identity.

Gradients are averaged in one all-reduce after the backward pass instead of by DistributedDataParallel: its graph
splitting does not support FlexAttention in compiled layers, and at this model size there is nothing to overlap.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from wm_gym.checkpoint import resolve_device


@dataclass(frozen=True)
class Processes:
    """The place of this process among those of the run."""

    rank: int
    num_processes: int
    device: torch.device
    cpu_group: dist.ProcessGroup | None  # for small host-side messages; None with a single process

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def largest(self, values: list[float]) -> list[float]:
        """The element-wise maximum over all processes, on the host and without waiting for the device."""
        if self.cpu_group is None:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.cpu_group)
        return tensor.tolist()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes of a tensor on the device."""
        if self.num_processes > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over all processes of a tensor on the device."""
        return self.sum(tensor) / self.num_processes

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The CPU tensors of all processes, which have the same shape, in the order of ranks."""
        if self.cpu_group is None:
            return [tensor]
        gathered = [torch.empty_like(tensor) for _ in range(self.num_processes)]
        dist.all_gather(gathered, tensor, group=self.cpu_group)
        return gathered

    def agree(self, values: list[int]) -> list[int]:
        """The list of rank 0, in all processes."""
        if self.cpu_group is None:
            return values
        objects = [values]
        dist.broadcast_object_list(objects, src=0, group=self.cpu_group)
        return objects[0]

    def barrier(self) -> None:
        """Waits until all processes are here."""
        if self.cpu_group is not None:
            dist.barrier(group=self.cpu_group)

    def broadcast_parameters(self, parameters: Iterable[Tensor]) -> None:
        """Overwrites the parameters of all processes with those of rank 0."""
        if self.num_processes > 1:
            for parameter in parameters:
                dist.broadcast(parameter.detach(), src=0)

    @torch.no_grad()
    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replaces the gradients by their mean over all processes. Missing ones count as 0."""
        if self.num_processes == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.num_processes
        means = flat.split([gradient.numel() for gradient in gradients])
        for parameter, gradient, mean in zip(parameters, gradients, means, strict=True):
            parameter.grad = mean.view(gradient.shape)


@contextmanager
def start_processes(device: str) -> Iterator[Processes]:
    """Joins the processes of torchrun, if it started this one; leaves them at the end, unless an error was raised.

    Args:
        device: "auto" (a GPU if there is one), or a name such as "cpu" or "cuda".

    Raises:
        ValueError: if the device is not there.
    """
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    torch_device = resolve_device(device)
    if torch_device.type == "cuda" and torch_device.index is None:
        torch_device = resolve_device(f"cuda:{local_rank}")
    if torch_device.type == "cuda":
        torch.cuda.set_device(torch_device)
    if num_processes == 1:
        yield Processes(0, 1, torch_device, None)
        return
    dist.init_process_group("nccl" if torch_device.type == "cuda" else "gloo")
    cpu_group = dist.new_group(backend="gloo")
    assert isinstance(cpu_group, dist.ProcessGroup)  # an integer only for processes outside the group
    yield Processes(dist.get_rank(), num_processes, torch_device, cpu_group)
    # After an error the others may be waiting in a collective that this process will never join, and leaving in order
    # would wait for them; then the process just ends, and torchrun ends the others.
    dist.destroy_process_group()
