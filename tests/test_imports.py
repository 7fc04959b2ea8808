"""Imports run downward only. Every import counts: at the top of a module, inside a function, under `TYPE_CHECKING`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("wm_gym", "training", "agents")

# Lowest first. A module may import from its own layer and from those below it.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "wm_gym.array_typing",
        "wm_gym.cluster",
        "wm_gym.files",
        "wm_gym.machine",
        "wm_gym.poses",
        "wm_gym.provenance",
        "wm_gym.spaces",
    ),
    ("wm_gym.ops",),
    ("wm_gym.nn", "wm_gym.flow", "wm_gym.codec", "wm_gym.checkpoint"),
    ("wm_gym.world_model",),
    ("wm_gym.step_memory", "wm_gym.step_network", "wm_gym.step_graph"),
    (
        "wm_gym.contexts",
        "wm_gym.memory_feature",
        "wm_gym.wrappers",
        "wm_gym.envs",
        "wm_gym.policies",
        "wm_gym.policy_loading",
        "wm_gym.backtrack",
        "wm_gym.film",
    ),
    ("wm_gym.comparison",),
    ("wm_gym.demo", "wm_gym.play", "wm_gym.cli"),
    ("training", "agents"),
)
# Parts that must not know each other, whatever their layers.
FORBIDDEN: tuple[tuple[str, str], ...] = (
    ("training", "agents"),
    ("agents", "training"),
    ("training", "wm_gym.envs"),
    ("agents", "wm_gym.envs"),
)


def is_within(module: str, part: str) -> bool:
    """Whether `module` is the module or package `part`, or inside it."""
    return module == part or module.startswith(part + ".")


def layer_of(module: str) -> int | None:
    """Index of the layer of a module, None for the facade `wm_gym` itself and for modules that no layer names."""
    return next((i for i, parts in enumerate(LAYERS) if any(is_within(module, part) for part in parts)), None)


def module_name(path: Path) -> str:
    """Dotted name of a source file below the repository's root."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, Path]:
    """Every module of the three packages, by dotted name."""
    return {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def imported_modules(tree: ast.AST, module: str, is_package: bool, known: set[str]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each import, with `from package import module` resolved to the module where it is one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parents = module.split(".") if is_package else module.split(".")[:-1]
                base = parents[: len(parents) - node.level + 1]
                source = ".".join([*base, source] if source else base)
            for alias in node.names:
                full = f"{source}.{alias.name}"
                yield node.lineno, full if full in known else source


def violations(module: str, code: str, is_package: bool, known: set[str]) -> list[str]:
    """One sentence for each import of `code` that goes upward or reaches a part that it must not know."""
    found = []
    own_layer = layer_of(module)
    for line, target in imported_modules(ast.parse(code), module, is_package, known):
        if not any(is_within(target, package) for package in PACKAGES):
            continue
        target_layer = layer_of(target)
        if any(is_within(module, part) and is_within(target, other) for part, other in FORBIDDEN):
            found.append(f"{module}:{line} imports {target}: these parts do not know each other.")
        elif own_layer is not None and target_layer is not None and target_layer > own_layer:
            found.append(f"{module}:{line} imports {target}: imports run downward only.")
        elif target == "wm_gym" and own_layer is not None and is_within(module, "wm_gym"):
            found.append(f"{module}:{line} imports the facade wm_gym: name the module that defines what it needs.")
    return found


def test_every_module_belongs_to_a_layer() -> None:
    unplaced = [module for module in sources() if module != "wm_gym" and layer_of(module) is None]
    assert not unplaced, f"Give these modules a place in LAYERS: {unplaced}"


def test_imports_run_downward_only() -> None:
    modules = sources()
    assert "wm_gym.world_model" in modules, "The sources were not found."
    found = [
        sentence
        for module, path in modules.items()
        for sentence in violations(module, path.read_text(), path.name == "__init__.py", set(modules))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("wm_gym.ops.ssd", "from wm_gym.nn import state"),
        ("wm_gym.ops.ssd", "def f():\n    import wm_gym.world_model"),
        ("wm_gym.nn.state", "from ..world_model import WorldModel"),
        ("wm_gym.nn.state", "from wm_gym import world_model"),
        ("wm_gym.nn.state", "import wm_gym"),
        ("wm_gym.envs.world_model", "import training.collect"),
        ("training.train", "from wm_gym.envs.world_model import WorldModelEnv"),
        ("training.train", "import agents.ppo"),
        ("agents.ppo", "from training import losses"),
    ],
)
def test_a_forbidden_import_is_found(module: str, code: str) -> None:
    known = {"wm_gym.world_model", "wm_gym.nn.state", "training.losses"}
    assert len(violations(module, code, is_package=False, known=known)) == 1


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("wm_gym.nn.state", "import torch\nfrom wm_gym.ops import ssd\nfrom wm_gym.nn import layers"),
        ("wm_gym.cli", "from wm_gym.envs.world_model import WorldModelEnv"),
        ("training.train", "import wm_gym\nfrom wm_gym.world_model import WorldModel\nfrom training import losses"),
        ("agents.ppo", "import wm_gym"),
    ],
)
def test_a_downward_import_is_allowed(module: str, code: str) -> None:
    assert violations(module, code, is_package=False, known=set()) == []
