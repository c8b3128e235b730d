"""Compile the kernels of `sparse_triton` for an H100-class GPU, which need not be there, and say what became of them.

    python tests/ops/sparse_triton_aot.py

Prints a JSON object: per kernel and case, the registers of a thread, its bytes of stack and spills, the bytes of
shared memory, and how often each memory instruction occurs in the machine code. The launchers themselves are run, up
to the launch, so that what is compiled is what a GPU would get.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from sae_faithful.ops import sparse_triton
from sae_faithful.ops.entries import group_by_feature

WIDTH = 2048
CASES = {
    "fp32": (torch.float32, torch.float32),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "fp32 weight, bf16 rest": (torch.float32, torch.bfloat16),
}


class Recorder:
    """A kernel that is compiled where it would be launched."""

    def __init__(self, kernel: Any, compiled: list[tuple[str, Any]]) -> None:
        self.kernel, self.compiled = kernel, compiled

    def __getitem__(self, grid: tuple[int, int]) -> Any:
        def compile(*arguments: Any, **options: Any) -> None:
            made = self.kernel.warmup(*arguments, grid=grid, **options)
            self.compiled.append((self.kernel.__name__, made))

        return compile


def run(weight_dtype: torch.dtype, dtype: torch.dtype) -> None:
    """Every launcher once, on so many entries that features are cut."""
    n_features, n_rows, k = 48, 32, 24
    indices = torch.arange(n_rows * k) % n_features
    row_offsets = torch.arange(n_rows + 1) * k
    values, grad = torch.ones(n_rows * k, dtype=dtype), torch.ones(n_rows, WIDTH, dtype=dtype)
    weight = torch.ones(n_features, WIDTH, dtype=weight_dtype)
    sparse_triton.decode(indices, row_offsets, values, weight, weight[0], dtype)
    plan = group_by_feature(indices, row_offsets, n_features)
    sparse_triton.decode_backward(grad, values, weight, plan, want_values=True, want_weight=True)
    sparse_triton.outer(values, grad, plan, n_features, dtype)


def facts(cubin: bytes) -> dict[str, Any]:
    """What a machine program needs and does."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, listing = (tool("cuobjdump", option, file.name) for option in ("-res-usage", "-sass"))
    found = dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage))
    instructions = re.findall(r"\b(LDG|STG|LDL|STL|RED|REDG|ATOM|ATOMG|ATOMS)((?:\.\w+)*)", listing)
    names = (name + (".128" if ".128" in kind else "") for name, kind in instructions)
    return {**{name.lower(): int(number) for name, number in found.items()}, "instructions": Counter(names)}


def tool(name: str, *arguments: str) -> str:
    """What one of the tools that Triton brings along prints."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


def main() -> None:
    compiled: list[tuple[str, Any]] = []
    for name in ("_decode_kernel", "_by_feature_kernel", "_join_kernel"):
        setattr(sparse_triton, name, Recorder(getattr(sparse_triton, name), compiled))
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
        )
    )
    result: dict[str, Any] = {}
    for case, (weight_dtype, dtype) in CASES.items():
        compiled.clear()
        run(weight_dtype, dtype)
        for number, (kernel, made) in enumerate(compiled):
            result[f"{case}: {number} {kernel}"] = facts(made.asm["cubin"])
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
