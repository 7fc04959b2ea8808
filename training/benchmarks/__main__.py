"""Measures speed, exactness and options of training: ``python -m training.benchmarks NAME [OPTION ...]``."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

NAMES = (
    "collect",
    "exactness",
    "loader",
    "play",
    "render",
    "state_dtype",
    "step",
    "step_ops",
    "store",
    "train",
    "trials",
)


def summaries() -> str:
    """One line for each benchmark: its name and the first line of its module's docstring."""
    lines = []
    for name in NAMES:
        folder = Path(__file__).parent
        source = folder / f"{name}.py" if (folder / f"{name}.py").exists() else folder / name / "__main__.py"
        first = (ast.get_docstring(ast.parse(source.read_text())) or "").split("\n")[0]
        lines.append(f"  {name:<12} {first.partition(': ``')[0].rstrip(':')}")
    return "\n".join(lines)


def main() -> None:
    """Runs the benchmark that the first argument names, with the other arguments."""
    name, usage = [*sys.argv, ""][1], "usage: python -m training.benchmarks NAME [OPTION ...]\n\n"
    if name in ("-h", "--help"):
        print(f"{usage}{summaries()}\n\nThe options of one: python -m training.benchmarks NAME --help")
        return
    if name not in NAMES:
        sys.exit(f"{usage}There is no benchmark {name!r}; choose one of\n{summaries()}")
    sys.argv = [f"python -m training.benchmarks {name}", *sys.argv[2:]]
    runpy.run_module(f"training.benchmarks.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
