"""Names and defaults of the calls of vLLM that `self_generated` makes, read from its source: nothing of it is imported.

    python tests/plugins/self_generated/vllm_signatures.py WHEEL_OR_FOLDER

writes `vllm_signatures.json` beside this file, from a wheel (`pip download --no-deps vllm`) or from a folder that
holds `vllm/`. The tests bind our calls to it, and to the vLLM that is installed or that `SAE_FAITHFUL_VLLM` names.
"""

from __future__ import annotations

import ast
import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FUNCTIONS = {"LLM.__init__": ("LLM", "__init__"), "LLM.generate": ("LLM", "generate"),
             "RequestOutput.__init__": ("RequestOutput", "__init__")}  # fmt: skip
FIELDS = ("SamplingParams", "TokensPrompt", "CompletionOutput", "EngineArgs", "CompletionRequest",
          "CompletionResponseChoice", "ModelCard")  # fmt: skip
PLACES = ("vllm/entrypoints/llm.py", "vllm/sampling_params.py", "vllm/outputs.py", "vllm/engine/arg_utils.py",
          "vllm/inputs/", "vllm/entrypoints/")  # fmt: skip
"""Where these have been; folders are searched."""
LONGEST = 40
"""Characters of a default that is written out."""


def sources(path: Path) -> Iterator[str]:
    """Files in which a class may stand."""
    read: Callable[[str], str]
    if path.suffix == ".whl":
        archive = zipfile.ZipFile(path)
        names, read = archive.namelist(), lambda name: archive.read(name).decode()
    else:
        names = [str(file.relative_to(path)) for file in (path / "vllm").rglob("*.py")]
        read = lambda name: (path / name).read_text()  # noqa: E731
    yield from (read(name) for name in sorted(names) if name.endswith(".py") and name.startswith(PLACES))


def short(default: ast.expr | None) -> str | None:
    """A default as text; None where there is none."""
    text = None if default is None else ast.unparse(default)
    return "..." if text is not None and len(text) > LONGEST else text


def parameters(arguments: ast.arguments) -> list[dict[str, Any]]:
    """As `inspect.Parameter` has them; defaults as text."""
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(arguments.defaults)) + list(
        arguments.defaults
    )
    found = [
        (one.arg, "POSITIONAL_OR_KEYWORD", default) for one, default in zip(plain, defaults, strict=True)
    ]
    found += [
        (one.arg, "KEYWORD_ONLY", default)
        for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg:
        found.append((arguments.kwarg.arg, "VAR_KEYWORD", None))
    return [
        {"name": name, "kind": kind, "default": short(default)}
        for name, kind, default in found
        if name != "self"
    ]


def read(path: Path) -> dict[str, Any]:
    """Functions' parameters, and classes' fields with their defaults, by name."""
    found: dict[str, Any] = {}
    for text in sources(path):
        if not any(f"class {name}" in text for name in (*FIELDS, "LLM", "RequestOutput")):
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.ClassDef):
                continue
            if node.name in FIELDS and node.name not in found:
                entries = [one for one in node.body if isinstance(one, ast.AnnAssign)]
                found[node.name] = {
                    ast.unparse(one.target): short(one.value)
                    for one in entries
                    if not ast.unparse(one.target).startswith("_")
                }
            for label, (owner, method) in FUNCTIONS.items():
                for one in node.body if node.name == owner else ():
                    if isinstance(one, ast.FunctionDef) and one.name == method:
                        found[label] = parameters(one.args)
    missing = {*FIELDS, *FUNCTIONS} - set(found)
    if missing:
        raise ValueError(f"not found in {path}: {', '.join(sorted(missing))}")
    return found


def main(path: Path) -> None:
    if path.suffix == ".whl":
        version = path.name.split("-")[1]
    else:
        version = next(path.glob("vllm-*.dist-info")).name.split("-")[1].removesuffix(".dist-info")
    made = {"version": version, "made_by": "tests/plugins/self_generated/vllm_signatures.py", **read(path)}
    target = Path(__file__).with_suffix(".json")
    target.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
