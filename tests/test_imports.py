"""Imports run downward only. Every import counts: at the top of a module, inside a function, under `TYPE_CHECKING`."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGES = ("wm_gym", "training", "agents")

# Lowest first, package by package. A module may import from its own layer and from those below it; one line of a tuple
# is one layer, and the parts of a layer may not know each other if they are in APART.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "wm_gym.array_typing",
        "wm_gym.cluster",
        "wm_gym.files",
        "wm_gym.machine",
        "wm_gym.moved",
        "wm_gym.poses",
        "wm_gym.provenance",
        "wm_gym.seeds",
        "wm_gym.statistics",
        "wm_gym.spaces",
        "wm_gym.flow",
        "wm_gym.codec",
        "wm_gym.checkpoint",
        "wm_gym.contexts",
        "wm_gym.film",
    ),
    ("wm_gym.ops",),
    ("wm_gym.nn",),
    ("wm_gym.odometry",),
    ("wm_gym.world_model",),
    ("wm_gym.engine",),
    ("wm_gym.envs",),
    ("wm_gym.wrappers", "wm_gym.policies"),
    ("wm_gym.comparison",),
    ("wm_gym.demo", "wm_gym.play"),
    ("wm_gym.cli",),
    ("training.store",),
    ("training.recording", "training.data"),
    ("training.objective",),
    ("training.recipes",),
    ("training.baselines",),
    ("training.loop",),
    ("training.evaluation",),
    ("training.probes",),
    ("training.odometry",),
    ("training.staged",),
    (
        "training.collect",
        "training.compare",
        "training.dream_rewards",
        "training.evaluate",
        "training.make_clips",
        "training.probe",
        "training.record",
        "training.table",
        "training.train",
    ),
    ("training.benchmarks",),
    ("agents.environments",),
    ("agents.policies",),
    ("agents.scoring",),
    ("agents.planners",),
    ("agents.learning",),
    ("agents.dyna", "agents.evaluate", "agents.ppo", "agents.reward_check", "agents.summary"),
)
# What a user starts; nothing imports one.
COMMANDS: tuple[str, ...] = (
    *(
        f"training.{name}"
        for name in [
            "collect",
            "compare",
            "dream_rewards",
            "evaluate",
            "make_clips",
            "probe",
            "table",
            "train",
        ]
    ),
    *(f"agents.{name}" for name in ["dyna", "evaluate", "ppo", "reward_check", "summary"]),
    "wm_gym.cli",
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
        elif target in COMMANDS and target != module:
            found.append(f"{module}:{line} imports {target}: nothing imports a command.")
        elif target == "wm_gym" and own_layer is not None and is_within(module, "wm_gym"):
            found.append(f"{module}:{line} imports the facade wm_gym: name the module that defines what it needs.")
    return found


def test_every_module_belongs_to_a_layer() -> None:
    unplaced = [module for module in sources() if module not in PACKAGES and layer_of(module) is None]
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


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = sources()
    below = {
        module: {
            target
            for _, target in imported_modules(
                ast.parse(path.read_text()), module, path.name == "__init__.py", set(modules)
            )
            if target in modules and target != module
        }
        for module, path in modules.items()
    }
    with pytest.raises(graphlib.CycleError):  # the sorter does find circles
        tuple(graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())
    try:
        tuple(graphlib.TopologicalSorter(below).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"Modules import each other in a circle: {' → '.join(error.args[1])}")


def test_the_network_names_no_world() -> None:
    """What holds in one world only is in its folder, in `wm_gym.odometry` as a prior, or in a configuration."""
    named = [
        f"{module}:{number}: {line.strip()}"
        for module, path in sources().items()
        if is_within(module, "wm_gym.nn")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"maze|\bwalls?\b|mujoco|minecraft", line, re.IGNORECASE)
    ]
    assert not named, "\n".join(named)


def test_odometry_is_known_by_its_protocol_alone() -> None:
    modules = sources()
    known = {"wm_gym.odometry", "wm_gym.odometry.protocol", "wm_gym.odometry.tracker"}
    for module, path in modules.items():
        if module == "wm_gym.world_model" or is_within(module, "wm_gym.engine"):
            imported = imported_modules(ast.parse(path.read_text()), module, path.name == "__init__.py", set(modules))
            assert {name for _, name in imported if is_within(name, "wm_gym.odometry")} <= known, module


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("wm_gym.ops.scan.chunked", "from wm_gym.nn import state"),
        ("wm_gym.ops.scan.chunked", "def f():\n    import wm_gym.world_model"),
        ("wm_gym.nn.state", "from ..world_model import WorldModel"),
        ("wm_gym.nn.state", "from wm_gym import world_model"),
        ("wm_gym.nn.state", "import wm_gym"),
        ("wm_gym.envs.world_model", "import training.collect"),
        ("training.train", "from wm_gym.envs.world_model import WorldModelEnv"),
        ("training.train", "import agents.ppo"),
        ("agents.ppo", "from training.objective import diffusion_forcing"),
    ],
)
def test_a_forbidden_import_is_found(module: str, code: str) -> None:
    known = {"wm_gym.world_model", "wm_gym.nn.state", "training.objective.diffusion_forcing"}
    assert len(violations(module, code, is_package=False, known=known)) == 1


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("wm_gym.nn.state", "import torch\nfrom wm_gym.ops.scan import chunked\nfrom wm_gym.nn import layers"),
        ("wm_gym.cli", "from wm_gym.envs.world_model import WorldModelEnv"),
        (
            "training.train",
            "import wm_gym\nfrom training.objective import diffusion_forcing",
        ),
        ("agents.ppo", "import wm_gym"),
    ],
)
def test_a_downward_import_is_allowed(module: str, code: str) -> None:
    assert violations(module, code, is_package=False, known=set()) == []
