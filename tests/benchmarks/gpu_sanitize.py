"""Every Triton kernel of ours under NVIDIA's compute-sanitizer: memcheck, then racecheck.

    python tests/benchmarks/gpu_sanitize.py
    python tests/benchmarks/gpu_sanitize.py --tools memcheck racecheck initcheck synccheck
    python tests/benchmarks/gpu_sanitize.py --device cpu      # the same calls in Triton's interpreter, no tool

Each tool runs a small program (`--driver`): every kernel in float32, bfloat16, float16 and mixtures of them, with empty
rows and slots, odd widths and latents that are cut into pieces, each result against float64. torch's memory pool is
off in it, so that an access beyond a tensor is one beyond its allocation. Needs torch and Triton alone.

The exit code is the first tool's that is not 0: 9 for what a tool found, 1 for a wrong result, no GPU or no tool. The
tool is looked for in PATH, in the CUDA toolkit, and where `pip install nvidia-cuda-sanitizer-api` puts it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import site
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FOUND = 9
"""The exit code that a tool is told to give where it finds something."""

NO_GPU = "no GPU here: --device cpu runs the same calls in Triton's interpreter"

IN_PACKAGE = "nvidia/*/compute-sanitizer/compute-sanitizer"
"""Of nvidia-cuda-sanitizer-api."""


def sanitizer() -> str | None:
    """Where compute-sanitizer is; None if nowhere."""
    toolkits = [
        os.environ.get("CUDA_HOME", ""),
        *map(str, sorted(Path("/usr/local").glob("cuda*"), reverse=True)),
    ]
    packages = [
        Path(folder) for folder in (*site.getsitepackages(), site.getusersitepackages(), *sys.path) if folder
    ]
    candidates = [
        shutil.which("compute-sanitizer") or "",
        *(f"{folder}/bin/compute-sanitizer" for folder in toolkits if folder),
        *(str(one) for folder in packages for one in sorted(folder.glob(IN_PACKAGE))),
    ]  # fmt: skip
    return next((one for one in candidates if one and os.access(one, os.X_OK) and Path(one).is_file()), None)


def run_tools(tools: list[str], seconds: float, file: Path | None = None) -> int:
    """Each tool once; the first exit code that is not 0. What they found is written to `file`."""
    tool = sanitizer()
    if tool is None:
        raise SystemExit(
            "no compute-sanitizer in PATH, CUDA_HOME or /usr/local/cuda*: install the CUDA toolkit, or "
            "pip install nvidia-cuda-sanitizer-api"
        )
    version = (
        subprocess.run([tool, "--version"], capture_output=True, text=True).stdout.strip().split("\n")[-1]
    )
    show(f"{tool}: {version}")
    import torch

    if not torch.cuda.is_available():
        raise SystemExit(NO_GPU)
    codes: dict[str, int] = {}
    verdicts: dict[str, str] = {}
    for name in tools:
        command = [
            tool, "--tool", name, "--error-exitcode", str(FOUND), "--report-api-errors", "no",
            "--target-processes", "application-only",
            *(part for kernel in KERNELS for part in ("--kernel-name", f"kns={kernel}")),
            sys.executable, __file__, "--driver",
        ]  # fmt: skip
        started = time.perf_counter()
        try:
            codes[name] = subprocess.run(
                command, env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, timeout=seconds
            ).returncode
        except subprocess.TimeoutExpired:
            codes[name] = 1
            show(f"{name}: stopped after {seconds:.0f} s")
        words = {0: "nothing found", FOUND: "FOUND SOMETHING"}
        verdicts[name] = words.get(codes[name], f"failed with exit code {codes[name]}")
        show(f"{name}: {verdicts[name]} ({time.perf_counter() - started:.0f} s)")
    if file is not None:
        from measuring import driver, machine

        about = machine("cuda") | {"driver": driver(), "compute-sanitizer": version}
        file.write_text(json.dumps({"machine": about, "tools": verdicts}, indent=1))
    return next((code for code in codes.values() if code), 0)


# ----------------------------------------------------------------------------------------- the program that is checked


KERNELS = ("_decode_kernel", "_by_feature_kernel", "_join_kernel")
"""All of `sparse_triton`'s, which the program compares with what the module has."""

MIXED = (
    "float32 float32",
    "bfloat16 bfloat16",
    "float32 bfloat16",
    "float16 float16",
    "float32 float16",
    "bfloat16 float32",
)
"""Of weights, and of values and gradients; the first three are what training has."""

SETTINGS = {
    # Width, entries a piece (256 is what training has), dtypes. One column, and no multiple of what a thread loads.
    "cpu": [(1, 4, MIXED[:1]), (77, 4, MIXED), (130, 4, MIXED[:1])],
    # Tiles of every width, one and several; few, as each is compiled.
    "cuda": [(77, 4, MIXED), (512, 256, MIXED[:3]), *((width, 256, MIXED[:1]) for width in (1, 768, 2304))],
}


def check_kernels(device: str) -> None:
    """Every function of the module in every setting, against float64; RuntimeError where one is wrong."""
    import torch

    from sae_faithful.ops import sparse_triton

    launched: dict[str, int] = {}
    launch = sparse_triton._launch

    def counted(kernel: Any, grid: tuple[int, int], *arguments: Any, **options: Any) -> None:
        if all(grid):
            launched[kernel.__name__] = launched.get(kernel.__name__, 0) + 1
        launch(kernel, grid, *arguments, **options)

    sparse_triton._launch = counted
    for width, chunk, mixed in SETTINGS[device]:
        sparse_triton.CHUNK = chunk
        for names in mixed:
            check_one(sparse_triton, device, width, *(getattr(torch, name) for name in names.split()))
    written = {name for name, one in vars(sparse_triton).items() if hasattr(one, "arg_names")}
    for found, what in ((written, "has"), (set(launched), "ran")):
        if found != set(KERNELS):
            raise RuntimeError(f"sparse_triton {what} {sorted(found)}, and this looks at {sorted(KERNELS)}")
    show(
        ", ".join(f"{name} {number} times" for name, number in sorted(launched.items()))
        + ": all as float64 has it"
    )


def check_one(kernels: Any, device: str, width: int, weight_dtype: Any, dtype: Any) -> None:
    """Decode with and without bias, its gradients together and alone, and the encoder's."""
    import torch

    from sae_faithful.ops.entries import group_by_feature

    rng = torch.Generator().manual_seed(width)
    rows = 9 if device == "cpu" else 200
    n_features = 7 if device == "cpu" else 300
    lengths = torch.randint(0, 9, (rows,), generator=rng)
    lengths[::4] = 0
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    indices = torch.randint(
        -1, n_features - 1, (int(lengths.sum()),), generator=rng
    )  # the last one is in no row
    indices[::2] = 2
    values, weight, bias, grad = (
        torch.randn(*size, generator=rng).to(kind)
        for size, kind in (
            ((len(indices),), dtype), ((n_features, width), weight_dtype),
            ((width,), weight_dtype), ((rows, width), dtype),
        )
    )  # fmt: skip
    given = [part.to(device) for part in (indices, offsets, values, weight, bias, grad)]
    plan = group_by_feature(given[0], given[1], n_features)
    out = kernels.decode(*given[:5], torch.float32)
    plain = kernels.decode(*given[:4], None, dtype)
    both = kernels.decode_backward(given[5], given[2], given[3], plan, want_values=True, want_weight=True)
    alone = [
        kernels.decode_backward(given[5], given[2], given[3], plan, want_values=first, want_weight=not first)
        for first in (True, False)
    ]
    outer, sums = kernels.outer(given[2], given[5], plan, n_features, weight_dtype)

    held = indices >= 0
    of_row = torch.repeat_interleave(torch.arange(rows), lengths)
    exact = [part.double() for part in (values, weight, bias, grad)]
    dense = torch.zeros(rows, n_features, dtype=torch.double)
    dense.index_put_((of_row[held], indices[held]), exact[0][held], accumulate=True)
    by_feature = dense.T @ exact[3]
    dots = (exact[1][indices.clamp(min=0)] * exact[3][of_row]).sum(1) * held
    wanted = dense @ exact[1]
    for name, got, expected in (
        ("decode", out, wanted + exact[2]), ("decode without bias", plain, wanted),
        ("gradient to values", both[0], dots), ("gradient to weight", both[1], by_feature),
        ("gradient to values alone", alone[0][0], dots), ("gradient to weight alone", alone[1][1], by_feature),
        ("outer", outer, by_feature), ("sums", sums, dense.sum(0)),
    ):  # fmt: skip
        limit = {torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 6e-4}[got.dtype]
        error = float((got.cpu().double() - expected).norm() / expected.norm())
        if not error <= limit:
            raise RuntimeError(
                f"{name}, width {width}, {weight_dtype}, {dtype}: error {error:.1e}, limit {limit:.0e}"
            )


def in_driver(device: str) -> None:
    """The program itself, in a process that imports the module as the device needs it."""
    try:
        import torch
        import triton  # noqa: F401
        from sparse_providers import Entries  # noqa: F401 - finds the kernels where the package is not installed
    except ImportError as error:
        raise SystemExit(f"the kernels need torch and Triton: {error}") from error
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(NO_GPU)
    check_kernels(device)
    if device == "cuda":
        torch.cuda.synchronize()


def show(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def dry_run() -> int:
    """The program in the interpreter, which Triton chooses when it is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    return subprocess.run(
        [sys.executable, __file__, "--driver", "--device", "cpu"], env=environment
    ).returncode


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = ["memcheck", "racecheck", "initcheck", "synccheck"]
    parser.add_argument("--tools", nargs="+", choices=choices, default=choices[:2])
    parser.add_argument("--seconds", type=float, default=280.0, help="the most that one tool takes")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--driver", action="store_true", help="the program that the tools check, without a tool"
    )
    parser.add_argument("--json", type=Path, help="also write what was found here")
    options = parser.parse_args()
    if options.driver:
        in_driver(options.device)
        return
    if options.device == "cpu":
        raise SystemExit(dry_run())
    raise SystemExit(run_tools(options.tools, options.seconds, options.json))


if __name__ == "__main__":
    main()
