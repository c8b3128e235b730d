"""Which error branches of the parsers' modules the inputs reached: lines that raise, and handlers of errors."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

OF_FILES = (ValueError, OSError)


class Measure:
    """Lines of our packages that run in a `with` block."""

    def __init__(self) -> None:
        import coverage

        root = Path(__file__).resolve().parents[2]
        include = [str(root / "sae_faithful" / "*"), str(root / "plugins" / "*")]
        self._coverage = coverage.Coverage(data_file=None, include=include)

    def __enter__(self) -> None:
        self._coverage.start()

    def __exit__(self, *_: Any) -> None:
        self._coverage.stop()

    def lines(self) -> dict[str, list[int]]:
        """By file."""
        data = self._coverage.get_data()
        return {name: sorted(data.lines(name) or []) for name in data.measured_files()}


def error_branches(module: str) -> tuple[Path, dict[int, str]]:
    """The file of a module and the lines of it at which something is found wrong, each with its text."""
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None, module
    path = Path(found.origin).resolve()
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    branches: dict[int, str] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            branches[node.lineno] = lines[node.lineno - 1].strip()
        elif isinstance(node, ast.ExceptHandler):
            first = node.body[0]
            branches.setdefault(first.lineno, lines[first.lineno - 1].strip())
    return path, branches
