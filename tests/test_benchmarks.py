"""The benchmarks of sparse training run to their end at sizes whose figures mean nothing."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks' modules, as they find each other."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run(script: str, *options: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A benchmark in a process of its own."""
    command = [sys.executable, str(BENCHMARKS / script), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def figures(script: str, folder: Path, *options: str) -> tuple[str, Any]:
    """What a benchmark prints, and the JSON that it writes."""
    file = folder / "figures.json"
    done = run(script, *options, "--json", str(file), cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())


def page_of(folder: Path) -> str:
    """What docs/gen/gpu_tables.py makes of a benchmark's JSON."""
    script = Path(__file__).parents[1] / "docs" / "gen" / "gpu_tables.py"
    page = folder / "page.md"
    subprocess.run([sys.executable, script, folder / "figures.json", "--page", page], check=True)
    return page.read_text()


def test_sparse_step(tmp_path: Path) -> None:
    small = ["--sizes", "64", "--tokens", "32", "--d", "16", "--k", "4", "--repeats", "1"]
    printed, found = figures("sparse_step.py", tmp_path, *small)
    (result,) = found["results"]
    rows = {(row["level"], row["provider"], row.get("dead")): row for row in result["rows"]}
    for key in (("decode", "ours", None), ("step", "sparse_topk", False), ("step", "sparse_batchtopk", True)):
        assert rows[key]["ms"] > 0
        assert rows[key]["output_error"] < 1e-5
        assert rows[key]["gradient_error"] < 1e-4
    assert result["goals"] == []  # they hold for other sizes
    assert "raises" in found["machine"]["SAELens's COO with rescaling"]
    assert "sparse_topk, fused Adam" in printed


def test_gpu_sparse_step(tmp_path: Path) -> None:
    # What there is no time for is named: compiling is not begun with less than 90 seconds left.
    limits = ["--rounds", "1", "--seconds", "0.05", "--minutes", "1.4", "--no-steps"]
    printed, found = figures("gpu_sparse_step.py", tmp_path, "--device", "cpu", "--tiny", *limits)
    assert [check for check in found["checks"] if check["passed"] is False] == []
    checked = {check["check"] for check in found["checks"]}
    assert {"ragged rows, torch.float16", "gradients of a step in plain torch"} <= checked
    for name, law in itertools.product("ABC", ("uniform", "zipf", "8 hot")):
        for what in ("", "sparse_outer, ", "sparse_encode, "):
            assert f"{what}{name}, {law}, torch.float32" in checked
            assert f"{what}{name}, uniform, torch.bfloat16" in checked
    assert {"B, D=5120, uniform, torch.float32", "two_stage_topk's values are torch.topk's, A"} <= checked
    assert {"ours", "dense autocast", "F.embedding_bag"} <= {row["provider"] for row in found["rows"]}
    assert "dense autocast, compiled" not in {row["provider"] for row in found["rows"]}
    assert "decode B, compiled dense (no time)" in found["skipped"]
    missed = [goal for goal in found["goals"] if goal["verdict"] == "missed"]
    assert all(goal["reason"] for goal in missed)
    assert any("of the device" in goal["reason"] for goal in missed)
    assert {goal["reason"] for goal in found["goals"] if goal["goal"].startswith("step")} == {
        "left out by --no-steps"
    }
    assert "no goal above means anything" in printed
    page = page_of(tmp_path)
    assert "no figure means anything" in page
    assert "| F.embedding_bag |" in page


STEPS = [f"reconstruction and gradients of sparse_{name}" for name in ("topk", "batchtopk")]


def test_gpu_checks_compare_the_training_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_checks
    from saelens_trainers import saelens_missing

    from sae_faithful_plugins.sparse_topk.dead_latents import DeadLatents

    assert saelens_missing() == ""

    def failed() -> list[str]:
        bench = gpu_checks.Bench("cpu", tiny=True, rounds=1, seconds=1.0)
        gpu_checks.check_steps(bench)
        assert [check["check"] for check in bench.checks] == [
            name + dead for name in STEPS for dead in ("", ", 5 % dead")
        ]
        # A near-tie decided otherwise would be a far greater error: the margin is wide.
        assert all(not check["passed"] or check["error"] < 2e-6 for check in bench.checks)
        return [check["check"] for check in bench.checks if not check["passed"]]

    assert failed() == []
    whole = DeadLatents.auxiliary_loss
    monkeypatch.setattr(DeadLatents, "auxiliary_loss", lambda *given: 1.001 * whole(*given))
    assert failed() == [f"{name}, 5 % dead" for name in STEPS]


def test_gpu_checks_see_what_is_wrong_for_the_encoder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_checks
    import torch
    from sparse_inputs import Shape, case, indices_by

    from sae_faithful.ops import sparse_eager

    shape = Shape(16, 8, 64, 3)
    one = case(shape, indices_by("uniform", shape, "cpu", 0), torch.float32, 0)

    def failed() -> list[str]:
        bench = gpu_checks.Bench("cpu", tiny=True, rounds=1, seconds=1.0)
        gpu_checks.check_case(bench, "some", one, 1e-6)
        assert [check["check"] for check in bench.checks] == [
            "some",
            "sparse_outer, some",
            "sparse_encode, some",
        ]
        return [check["check"] for check in bench.checks if not check["passed"]]

    assert failed() == []
    outer = sparse_eager.outer

    def wrong_sums(*given: Any) -> tuple[Any, Any]:
        by_feature, sums = outer(*given)
        return by_feature, 1.0001 * sums

    monkeypatch.setattr(sparse_eager, "outer", wrong_sums)
    assert failed() == ["sparse_outer, some", "sparse_encode, some"]


def test_gpu_sparse_step_checks_steps_before_it_times_them() -> None:
    import gpu_sparse_step
    from gpu_bench import Bench
    from saelens_trainers import saelens_missing

    saelens_missing()
    bench = Bench("cpu", tiny=True, rounds=2, seconds=5.0)
    found = gpu_sparse_step.jobs(bench)
    names = [job.name for job in found]
    timed = [place for place, name in enumerate(names) if name.startswith(("step", "model", "decode"))]
    assert names.index("checks of training steps") < timed[0]
    # Without SAELens they take the trainer's place, and there is nothing of its to compare.
    bench.no_saelens = "left out"
    without = [job.name for job in gpu_sparse_step.jobs(bench)]
    assert "checks of training steps" not in without
    bench.no_saelens = ""
    for name, precision in itertools.product("ABC", ("autocast", "fp32")):
        assert f"model {name}, {precision}" in names
        assert f"model {name}, {precision}" in without
    for job in found:
        if job.name in ("step A, fp32", "model A, fp32"):
            job.run()
    rows = {(row["level"], row["provider"], row.get("dead")): row for row in bench.rows}
    assert len(rows) == 2 * 4 + 2
    assert all(row["rounds"] == 2 and row["p20"] <= row["ms"] <= row["p80"] for row in rows.values())


def test_gpu_sparse_step_takes_thirty_rounds_of_the_longest_steps() -> None:
    import gpu_sparse_step
    from gpu_bench import Bench

    options = gpu_sparse_step.parser().parse_args([])
    bench = Bench("cpu", tiny=True, rounds=options.rounds, seconds=options.seconds)
    # So many seconds four trainings at 131,072 latents in float32 are estimated to take, with dead latents.
    assert bench.rounds_for(1.5) == 30
    page = (BENCHMARKS.parents[1] / "docs" / "performance.md").read_text(encoding="utf-8")
    said = f"Rounds are {options.rounds}, fewer where they would take more than {options.seconds:g} seconds"
    assert said in page


def test_make_keeps_a_gpu_s_figures_where_the_docs_look() -> None:
    root = BENCHMARKS.parents[1]
    page = (root / "docs" / "performance.md").read_text(encoding="utf-8")
    targets = dict(re.findall(r"^\| `make ((?:bench-)?(gpu[-_]\w+))` \|", page, re.M))
    assert len(targets) == 4
    files: list[str] = []
    for target, name in targets.items():
        script = name.replace("-", "_")
        told = subprocess.run(
            ["make", "--no-print-directory", "-n", target, "GPU=--minutes 20"],
            cwd=root, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        *_, made, last = told.splitlines()
        assert made == "mkdir -p build"
        assert last.endswith(f"/{script}.py --json build/{script}.json --minutes 20")
        files.append(f"build/{script}.json")
    (command,) = re.findall(r"^python docs/gen/gpu_tables\.py (.+)$", page, re.M)
    assert set(command.split()) == {file for file in files if "tune" not in file}


@pytest.mark.parametrize("providers", range(1, 9))
def test_every_call_takes_other_inputs_than_the_two_before_it(providers: int) -> None:
    from measuring import interleaved
    from sparse_inputs import SETS

    calls: list[tuple[int, int]] = []

    def run(provider: int, number: int) -> list[int]:
        calls.append((provider, number % SETS))
        return [provider]

    marks = interleaved({str(one): partial(run, one) for one in range(providers)}, lambda _: 2 * SETS)
    assert marks == {str(one): [[one]] * 2 * SETS for one in range(providers)}
    taken = [inputs for _, inputs in calls]
    assert all(new not in taken[max(0, place - 2) : place] for place, new in enumerate(taken))
    for provider in range(providers):
        own = [inputs for one, inputs in calls if one == provider]
        assert all(sorted(own[first : first + SETS]) == [0, 1, 2, 3] for first in range(len(own) - SETS + 1))


def test_gpu_decoders_take_turns_with_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_decoders
    from gpu_bench import Bench
    from sparse_providers import Decoder, embedding_bag

    seen: list[int] = []

    def call(indices: Any, values: Any, weight: Any, bias: Any) -> Any:
        seen.append(weight.data_ptr())
        return embedding_bag(indices, values, weight, bias)

    monkeypatch.setattr(gpu_decoders, "peak_bytes", lambda call, device: 0)
    decoders = [Decoder(name, "", call) for name in ("one", "another", "a third")]
    bench = Bench("cpu", tiny=True, rounds=4, seconds=60.0)
    gpu_decoders.measure_decoders(bench, "A", decoders=decoders)
    # What each gives for the first inputs is looked at before any is timed: 2 rounds of warm-up, 4 that count.
    timed = seen[len(decoders) :]
    assert len(timed) == 6 * len(decoders)
    assert all(len(set(timed[first : first + 3])) == 3 for first in range(len(timed) - 2))
    assert all(set(timed[place::3]) == set(timed) for place in range(3))
    assert len(set(timed)) == 4


def test_gpu_sparse_step_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = run("gpu_sparse_step.py")
    assert done.returncode == 1
    assert done.stderr.strip() == "no GPU here: run with --device cpu --tiny to try the logic"


def test_gpu_pipeline(tmp_path: Path) -> None:
    only = ["--only", "matching", "fake_features", "generate"]
    printed, found = figures("gpu_pipeline.py", tmp_path, "--device", "cpu", "--tiny", *only)
    assert found["skipped"] == []
    assert found["machine"]["model"] == "a tiny Llama with random weights"
    rows = {row["setting"]: row for row in found["rows"]}
    matched = rows["256 with 256, 36 dimensions"]
    assert matched["certified"]
    assert set(matched["parts"]) == {"candidates", "assignment and prices", "proof"}
    assert 0 < sum(matched["parts"].values()) <= matched["seconds"]
    for name in ("SAEs alone", "by default"):
        row = rows[f"{name}, 2 SAEs of 128 latents"]
        # A busy machine decides which takes longer at such sizes.
        assert row["ratio"] == pytest.approx(row["least_seconds"] / row["seconds"])
        assert row["tokens_per_second"] == pytest.approx(256 / row["seconds"])
        assert rows[f"{name}, after the pass"]["seconds"] > 0
    labels = {"static": "all at once", "continuous batching": "at most 8 at once"}
    for engine, at_once in labels.items():
        row = rows[f"transformers, {engine}, float32, 8 samples, {at_once}"]
        assert 8 <= row["tokens"] <= 8 * 15
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
        assert row["share"] == pytest.approx(row["least_seconds"] / row["seconds"])
        # All weights (the embedding is tied), read once a step or multiplied with for every token.
        weights = 512 * 32 + 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32)
        rates = found["ceilings"]
        reading = 15 * 4 * weights / (rates["copy, GB/s read and written"] * 1e9)
        multiplying = 2 * weights * row["tokens"] / (rates["GEMM fp32, TFLOP/s"] * 1e12)
        assert row["least_seconds"] <= max(reading, multiplying) * 1.001
        assert row["least_seconds"] >= multiplying * 0.999
    missing = rows["vllm, float32, 8 samples"]["missing"]
    assert missing.startswith("ValueError: engine vllm is not installed")
    assert {goal["verdict"] for goal in found["goals"]} <= {"met", "missed"}
    assert "no goal above means anything" in printed
    assert "| matching | 256 with 256, 36 dimensions |" in page_of(tmp_path)


def test_gpu_pipeline_says_how_many_samples_are_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_generation

    from sae_faithful_plugins.self_generated.engines import continuous_batching

    found = {engine: gpu_generation.at_once(engine, 1024) for engine in gpu_generation.ENGINES}
    assert found == {
        "transformers, static": ", all at once",
        "transformers, continuous batching": ", at most 256 at once",
        "vllm": "",
    }
    drawn: list[int] = []

    def configured(**options: Any) -> None:
        drawn.append(options["max_requests_per_batch"])
        raise KeyboardInterrupt

    # As many as the engine itself asks for.
    monkeypatch.setattr("transformers.generation.ContinuousBatchingConfig", configured)
    with pytest.raises(KeyboardInterrupt):
        continuous_batching.draw(None, [[0]] * 1024, SimpleNamespace(max_new_tokens=4), 0)
    assert drawn == [256]


def test_gpu_sanitize() -> None:
    pytest.importorskip("triton", reason="the kernels need Triton")
    done = run("gpu_sanitize.py", "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "_by_feature_kernel" in done.stdout
    assert "_join_kernel" in done.stdout
    assert "_decode_kernel" in done.stdout


def test_gpu_sanitize_gives_what_a_tool_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_sanitize

    tool = tmp_path / "compute-sanitizer"
    # Finds something in racecheck alone; says what it was asked to run.
    tool.write_text('#!/bin/sh\necho "$@" >> "$0.calls"\ncase "$*" in *racecheck*) exit 9;; esac\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert gpu_sanitize.run_tools(["memcheck"], 60) == 0
    assert gpu_sanitize.run_tools(["memcheck", "racecheck", "memcheck"], 60) == 9
    calls = [call for call in Path(f"{tool}.calls").read_text().splitlines() if call != "--version"]
    assert ["racecheck" in call for call in calls] == [False, False, True, False]
    assert all(call.endswith("gpu_sanitize.py --driver") and "--error-exitcode 9" in call for call in calls)
    for kernel in gpu_sanitize.KERNELS:
        assert all(f"--kernel-name kns={kernel}" in call for call in calls)


def test_gpu_sanitize_without_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_sanitize

    monkeypatch.setattr(gpu_sanitize, "sanitizer", lambda: None)
    with pytest.raises(SystemExit, match="pip install nvidia-cuda-sanitizer-api"):
        gpu_sanitize.run_tools(["memcheck"], 60)


def test_gpu_tune(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="the kernels need Triton")
    printed, found = figures("gpu_tune.py", tmp_path, "--device", "cpu", "--tiny", "--rounds", "1")
    assert found["skipped"] == []
    # Every function as it is and with another setting, which gave the same and was timed.
    assert [row["function"] for row in found["rows"]] == [
        name for name in ("decode", "decode_backward", "outer") for _ in range(2)
    ]
    assert all(row["uniform"] > 0 and row["8 hot"] > 0 for row in found["rows"])
    assert [row["ratio"] for row in found["rows"][::2]] == [1.0] * 3
    assert "block 64, entries 2, warps 1, chunk 8" in printed
    assert "no figure above means anything" in printed


def test_gpu_tune_builds_with_the_setting() -> None:
    import gpu_tune

    launched: list[tuple[Any, ...]] = []

    def launch(kernel: str, grid: tuple[int, int], **options: Any) -> None:
        launched.append((kernel, grid, options))

    kernels = SimpleNamespace(ENTRIES=4, CHUNK=256, _tile=lambda width, *widths: widths[0], _launch=launch)
    before = dict(vars(kernels))
    with gpu_tune.built_with(kernels, gpu_tune.Setting(block=512, entries=8, warps=2, chunk=128)):
        assert (kernels.ENTRIES, kernels.CHUNK, kernels._tile(2048, 256)) == (8, 128, 512)
        kernels._launch("kernel", (1, 2), BLOCK=512, num_warps=1)
    assert launched == [("kernel", (1, 2), {"BLOCK": 512, "num_warps": 2})]
    assert vars(kernels) == before
    with gpu_tune.built_with(kernels, gpu_tune.OWN):
        assert vars(kernels) == before
