"""What is public is documented and typed, and nothing is too long to be read at once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGES = ("wm_gym", "training", "agents", "examples")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 350, 60
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def sources() -> list[Path]:
    """All files of the packages."""
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def definitions(tree: ast.AST, prefix: str = "", public: bool = True) -> Iterator[tuple[str, bool, ast.stmt]]:
    """Name, whether it is public, and node of each class, function and method; not those inside functions."""
    for node in getattr(tree, "body", []):
        if isinstance(node, (*Function, ast.ClassDef)):
            is_public = public and not node.name.startswith("_")
            yield prefix + node.name, is_public, node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node, f"{prefix}{node.name}.", is_public)


def is_kernel(node: ast.stmt) -> bool:
    """Whether a function is written in Triton's language, which has no types and cannot be cut where Python can."""
    return any("triton.jit" in ast.unparse(decorator) for decorator in getattr(node, "decorator_list", []))


def lacks_types(node: ast.stmt, in_class: bool) -> bool:
    """Whether a function leaves an argument or its result without a type."""
    if not isinstance(node, Function) or is_kernel(node):
        return False
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    if in_class and arguments and arguments[0].arg in ("self", "cls"):
        arguments = arguments[1:]
    return node.returns is None or any(argument.annotation is None for argument in arguments)


def faults(code: str, module: str) -> list[str]:
    """One sentence for each public name without docstring or types, and for each long function."""
    found = []
    for name, public, node in definitions(ast.parse(code)):
        place = f"{module}:{node.lineno} {name}"
        assert isinstance(node, (*Function, ast.ClassDef))
        if public and ast.get_docstring(node) is None:
            found.append(f"{place} has no docstring.")
        if public and lacks_types(node, "." in name):
            found.append(f"{place} has an argument or a result without a type.")
        length = (node.end_lineno or 0) - node.lineno + 1
        if isinstance(node, Function) and not is_kernel(node) and length > MAX_FUNCTION_LINES:
            found.append(f"{place} has {length} lines, more than {MAX_FUNCTION_LINES}.")
    return found


def test_public_names_are_documented_and_typed_and_functions_are_short() -> None:
    found = [one for path in sources() for one in faults(path.read_text(), str(path.relative_to(ROOT)))]
    assert not found, "\n".join(found)


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources()}
    assert len(lengths) > 200
    assert not {name: length for name, length in lengths.items() if length > MAX_FILE_LINES}


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("def f() -> int:\n    return 1", "no docstring"),
        ("class A:\n    '''A.'''\n    def f(self) -> int:\n        return 1", "A.f has no docstring"),
        ("def f(x) -> int:\n    '''F.'''", "without a type"),
        ("def f(x: int):\n    '''F.'''", "without a type"),
        ("def _f() -> None:\n" + "    pass\n" * 60, "61 lines"),
    ],
)
def test_each_fault_is_found(code: str, fault: str) -> None:
    assert len(found := faults(code, "m.py")) == 1
    assert fault in found[0]


@pytest.mark.parametrize(
    "code", ["def _f(x):\n    pass", "class _A:\n    def f(self):\n        pass", "def f() -> int:\n    '''F.'''"]
)
def test_what_is_private_or_complete_is_no_fault(code: str) -> None:
    assert not faults(code, "m.py")
