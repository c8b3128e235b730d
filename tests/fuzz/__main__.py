"""`python tests/fuzz --inputs 100000`: mutated files for every parser; a table of what became of them.

Fails where an input made anything but a clear error, or something was written outside, run or called.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import branches

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]


def main() -> int:
    """The exit code: 0 if nothing crashed and nothing happened outside."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="over all parsers")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds and processes give equal inputs")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="parsers with this in their name")
    parser.add_argument(
        "--folder", type=Path, help="keep everything here; made examples in it are used again"
    )
    asked = parser.parse_args()
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")]),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = (asked.folder or Path(temporary)).resolve()
        if not (folder / "examples" / "run" / "report.html").exists():
            (folder / "examples").mkdir(parents=True)
            code = "import sys, pathlib, examples; examples.make_examples(pathlib.Path(sys.argv[1]))"
            subprocess.run(
                [sys.executable, "-c", code, str(folder / "examples")],
                check=True,
                cwd=HERE,
                env={**environment, "SAE_FAITHFUL_CACHE": str(folder / "cache")},
            )
        results = _in_processes(asked, folder, environment)
        _print_table(results)
        return _print_findings(results, folder)


def _in_processes(
    asked: argparse.Namespace, folder: Path, environment: dict[str, str]
) -> list[dict[str, Any]]:
    running: list[tuple[subprocess.Popen[bytes], Path]] = []
    outputs = Path(tempfile.mkdtemp(dir=folder, prefix="work-"))
    started = time.monotonic()
    for number in range(asked.processes):
        output = outputs / f"{number}.json"
        command = [
            sys.executable,
            str(HERE / "worker.py"),
            number,
            folder / "examples",
            outputs,
            asked.inputs // asked.processes,
            asked.seed,
            asked.only,
            output,
        ]
        running.append((subprocess.Popen(list(map(str, command)), env=environment), output))
    results: list[dict[str, Any]] = []
    for process, output in running:
        if process.wait() != 0 or not output.exists():
            raise SystemExit(f"a process of the fuzzer ended with {process.returncode}: see {outputs}")
        results.append(json.loads(output.read_text()))
    print(f"{asked.processes} processes, {time.monotonic() - started:.0f} s, seed {asked.seed}\n")
    return results


def _print_table(results: list[dict[str, Any]]) -> None:
    names = list(results[0]["outcomes"])
    reached: dict[str, set[int]] = {}
    for result in results:
        for name, lines in result["lines"].items():
            reached.setdefault(str(Path(name).resolve()), set()).update(lines)
    rows: list[tuple[str, ...]] = [
        ("parser", "inputs", "different", "accepted", "clear errors", "crashes", "ms each")
    ]
    totals = [0, 0, 0, 0, 0]
    for name in names:
        of_one = [result["outcomes"][name] for result in results]
        counts = [sum(one[key] for one in of_one) for key in ("inputs", "accepted", "errors")]
        counts.insert(1, len({digest for one in of_one for digest in one["digests"]}))
        counts.append(sum(sum(one["crashes"].values()) for one in of_one))
        totals = [a + b for a, b in zip(totals, counts, strict=True)]
        each = 1e3 * sum(one["seconds"] for one in of_one) / counts[0]
        rows.append((name, *(f"{count:,}" for count in counts), f"{each:.1f}"))
    rows.append(("all", *(f"{count:,}" for count in totals), ""))
    print(_aligned(rows))
    print("\nerror branches (raise, except) of the parsers' modules that inputs reached\n")
    modules = sorted({module for of_one in results[0]["modules"].values() for module in of_one})
    table: list[tuple[str, ...]] = [("module", "reached", "of")]
    missed: list[str] = []
    for module in modules:
        path, lines = branches.error_branches(module)
        hit = reached.get(str(path), set())
        table.append((module, str(sum(line in hit for line in lines)), str(len(lines))))
        missed += [f"  {module}:{line}: {text}" for line, text in sorted(lines.items()) if line not in hit]
    print(_aligned(table))
    print("\nnot reached:\n" + "\n".join(missed))


def _print_findings(results: list[dict[str, Any]], folder: Path) -> int:
    crashes: dict[tuple[str, str], int] = {}
    for result in results:
        for name, outcome in result["outcomes"].items():
            for crash, count in outcome["crashes"].items():
                crashes[name, crash] = crashes.get((name, crash), 0) + count
    outside = list(dict.fromkeys(line for result in results for line in result["outside"]))
    print(f"\ncrashes: {len(crashes)} kinds")
    for (name, crash), count in sorted(crashes.items(), key=lambda one: -one[1]):
        print(f"  {count:6,}  {name}: {crash}")
    print(f"outside: {len(outside)}")
    for line in outside[:50]:
        print(f"  {line}")
    return 1 if crashes or outside else 0


def _aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
