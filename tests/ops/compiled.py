"""Compile what a call would launch for a GPU that is not there, and read what the kernels take."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

H200 = GPUTarget("cuda", 90, 32)
_OPTIONS = ("num_warps", "num_stages", "maxnreg")
_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int64: "i64"}


@dataclass(frozen=True)
class Launch:
    """One launch that was asked for: the kernel, its grid and its arguments by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return self.kernel.fn.__name__


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: per thread registers and bytes of stack, per program shared bytes; and its code."""

    registers: int
    stack: int
    shared: int
    ttir: str
    ptx: str


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Within the context nothing is launched, and the list collects what would have been."""
    launches: list[Launch] = []

    def record(kernel: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> None:
        launches.append(Launch(kernel, grid, {**dict(zip(kernel.arg_names, args, strict=False)), **kwargs}))

    with mock.patch.object(JITFunction, "run", record):
        yield launches


def launches_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Launch]:
    """What calling the function would launch."""
    with recorded_launches() as launches:
        function(*args, **kwargs)
    return launches


def compile_launch(launch: Launch, target: GPUTarget = H200) -> Resources:
    """Compile as the launcher would: sizes as constants, pointers and multiples of 16 declared so."""
    options = {k: v for k, v in launch.arguments.items() if k in _OPTIONS}
    constants, signature, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + _TYPES[value.dtype]
            attributes[index,] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0:
                attributes[index,] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=target, options=options)
    usage = _resource_usage(compiled.asm["cubin"])
    registers, stack = re.search(r"REG:(\d+)", usage), re.search(r"STACK:(\d+)", usage)
    assert registers is not None and stack is not None, usage
    return Resources(
        int(registers[1]), int(stack[1]), compiled.metadata.shared, compiled.asm["ttir"], compiled.asm["ptx"]
    )


def _resource_usage(cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
