"""What two processes agree on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.paths import ROOT
from training.loop.distributed import Processes, start_processes

# Rank r has gradients r + 1 and, on rank 0 only, none for the second parameter.
SCRIPT = """
import json, sys, torch
from training.loop.distributed import start_processes
with start_processes("cpu") as processes:
    rank = processes.rank
    first, second = torch.zeros(2, 3, requires_grad=True), torch.zeros(4, requires_grad=True)
    first.grad = torch.full((2, 3), rank + 1.0)
    second.grad = None if rank == 0 else torch.full((4,), 4.0)
    processes.average_gradients([first, second])
    weights = [torch.full((2,), float(rank + 7))]
    processes.broadcast_parameters(weights)
    result = {
        "gradients": [first.grad.tolist(), second.grad.tolist()],
        "largest": processes.largest([float(rank), -float(rank)]),
        "sum": processes.sum(torch.tensor([rank + 1.0])).tolist(),
        "gather": [tensor.tolist() for tensor in processes.gather(torch.tensor([rank]))],
        "broadcast": weights[0].tolist(),
    }
    with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
        json.dump(result, file)
"""


def test_processes_average_gradients_and_agree_on_everything_else(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    root = str(ROOT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    process = subprocess.run(
        [*command, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    expected = {
        "gradients": [[[1.5] * 3] * 2, [2.0] * 4],
        "largest": [1.0, 0.0],
        "sum": [3.0],
        "gather": [[0], [1]],
        "broadcast": [7.0, 7.0],
    }
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected


def test_a_single_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with start_processes("cpu") as processes:
        assert processes == Processes(0, 1, torch.device("cpu"), None)
        assert processes.largest([2.0]) == [2.0]
        assert processes.gather(torch.ones(1)) == [torch.ones(1)]


def test_a_device_that_is_not_there_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="cuda:99"), start_processes("cuda:99"):
        pass


# The loss of the rows of one batch, all of them in one process or one half of them in each of two.
LOSS_SCRIPT = """
import sys, torch
from tests.tiny import tiny_model
from training.objective import diffusion_forcing as losses
from training.data.dataset import Batch
from training.loop.distributed import start_processes
from training.objective.diffusion_forcing import ClassWeights, LossConfig

drawn = torch.Generator().manual_seed(0)
levels = torch.rand(4, 6, generator=drawn).mul(1.3).clamp(max=1.0)
levels[0, :5] = 0.0  # the halves differ in the number of frames that have a loss
noise = torch.randn(4, 6, 3, 16, 16, generator=drawn)
batch = {
    "frames": torch.randint(256, (4, 6, 16, 16, 3), generator=drawn).byte(),
    "actions": torch.randint(3, (4, 5), generator=drawn),
    "rewards": (torch.rand(4, 5, generator=drawn) < 0.3).float(),
    "terminations": torch.rand(4, 5, generator=drawn) < 0.2,
    "pose": torch.zeros(4, 6, 0),
}
weights = ClassWeights(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 5.0]), torch.tensor(3.0))
with start_processes("cpu") as processes:
    size = 4 // processes.num_processes
    mine = slice(processes.rank * size, (processes.rank + 1) * size)
    losses.sample_noise_levels = lambda *_: levels[mine]
    losses._noisy = lambda frames, level, _: losses.add_noise(frames, noise[mine], level)
    model = tiny_model()
    rows = Batch(**{name: value[mine] for name, value in batch.items()})
    loss, _ = losses.world_model_loss(
        model, rows, LossConfig(), torch.Generator(), weights, mean_over_processes=processes.mean
    )
    loss.backward()
    parameters = list(model.parameters())
    processes.average_gradients(parameters)
    if processes.is_main:
        torch.save([p.grad if p.grad is None else p.grad.clone() for p in parameters], sys.argv[1])
"""


def test_two_processes_have_the_gradient_of_one_with_the_same_global_batch(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(LOSS_SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    found = []
    for name, options in (("one", []), ("two", launch)):
        command = [sys.executable, *options, str(script), str(tmp_path / name)]
        process = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
        assert process.returncode == 0, process.stderr
        found.append([g for g in torch.load(tmp_path / name, weights_only=True) if g is not None])
    one, two = (torch.cat([gradient.flatten() for gradient in gradients]) for gradients in found)
    assert (one - two).norm() < 1e-5 * one.norm()
