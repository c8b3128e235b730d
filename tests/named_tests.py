"""Tests named in a table: whether they exist, and whether they claim anything."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parent


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    """The functions of a file that pytest could collect, without running the file."""
    return {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def claims(function: ast.FunctionDef) -> bool:
    """Whether it asserts something, or expects an error."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = ast.unparse(node.func)
            if name == "pytest.raises" or node.func.attr.startswith("assert_"):
                return True
    return False


def claims_something(test: str) -> bool:
    """Of `path::name`, the path from this folder.

    Raises:
        FileNotFoundError: there is no such file.
        KeyError: the file has no such test.
    """
    path, name = test.split("::")
    return name.startswith("test_") and claims(functions(TESTS / path)[name])
