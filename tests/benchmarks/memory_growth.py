"""Peak memory and time of each step at some tokens and at ten times as many, each in a process of its own.

    python tests/benchmarks/memory_growth.py
    python tests/benchmarks/memory_growth.py --only packing generation --json growth.json

Judged is the peak of anonymous memory (`RssAnon`): what a process cannot give back. Pages of files that are mapped
(`RssFile`: texts, libraries) are dropped by the system where others need the memory, and are as many as it likes to
keep; the peak of both (`VmHWM`) is printed beside it.

A process has some hundred megabytes before it does anything, which hide growth: so the growth is printed in bytes a
token, too. Tokens are what grows; where a setting holds a number of things (nearest neighbours, examples of a task,
activations that a baseline is fitted to), memory is that setting's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONTEXT = 64
VOCAB = 512
D_MODEL = 64
HOOK = "model.layers.0"
LIMIT = 1.1
INTERVAL = 0.005
"""Seconds between two looks at the memory."""


# What is measured


def random_documents(n_tokens: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Documents of 20 to 180 tokens, about as many tokens as asked for and half as many again."""
    rng = np.random.default_rng(seed)
    left = n_tokens * 3 // 2
    while left > 0:
        document = rng.integers(3, VOCAB, size=rng.integers(20, 181), dtype=np.int32)
        left -= len(document)
        yield document


def packing(folder: Path, n: int) -> None:
    """A source's documents into rows, checked, split, and saved; where each document begins is found again."""
    from sae_faithful.tokens import TokenSet

    tokens = TokenSet.from_documents(
        random_documents(n), n_tokens=n, context_size=128, bos_token_id=0, path=folder / "rows.arrow"
    )
    tokens.check("the benchmark", context_size=128, vocab_size=VOCAB)
    train, held_out = tokens.split()
    train.save(folder / "train.arrow")
    held_out.save(folder / "held_out.arrow")
    saved = TokenSet.open(folder / "train.arrow", card=tokens.card)
    documents = saved.documents_as_given(0)
    assert sum(len(documents[i]) for i in range(0, len(documents), 1_000)) > 0


def generation(folder: Path, n: int) -> None:
    """Shards drawn, written to the cache and read again, without the model's own time and memory."""
    from sae_faithful_plugins.self_generated.shards import ShardCache

    class Sampler:
        settings: ClassVar = {"model": "none"}
        observed: ClassVar[dict[str, Any]] = {}

        def sample(self, number: int, seed: int) -> list[np.ndarray]:
            rng = np.random.default_rng(seed)
            return [rng.integers(3, VOCAB, size=rng.integers(20, 181), dtype=np.int32) for _ in range(number)]

    total = 0
    for document in ShardCache(Sampler(), 1_024, 0, folder).documents(n):  # pyright: ignore[reportArgumentType]
        total += len(document)
        if total >= n:
            return


def typicality(folder: Path, n: int) -> None:
    """The typicality gap of a text so long, at the same `typicality_tokens`."""
    from sae_faithful.data import measure_typicality

    text = write_text(folder, "text", n)
    measure_typicality(text.documents_as_given(0), 1, tiny_model(folder), 2_000, 0)


def training(folder: Path, n: int) -> None:
    """Two SAEs on so many training tokens of a text as long."""
    from sae_faithful import load_plugins
    from sae_faithful.plan import make_plan
    from sae_faithful.run_folder import RunFolder
    from sae_faithful.training import train_source

    text = write_text(folder, "text", n)
    config = config_of(folder, training_tokens=n)
    model = tiny_model(folder)
    saes = make_plan(config, load_plugins(), model).saes
    train_source("text", saes, config, model, RunFolder(folder / "run"), {}, text, "text")


def draw_for_baselines(folder: Path, n: int) -> None:
    """Activations for baselines, drawn from a text so long; `baseline_tokens` is the same."""
    from sae_faithful.baselines import draw_activations

    text = write_text(folder, "text", n)
    draw_activations("text", text, [HOOK], config_of(folder, baseline_tokens=20_000), tiny_model(folder))


def evaluator(
    name: str, options: Callable[[int], dict[str, Any]], n_text: int | None = None
) -> Callable[[Path, int], None]:
    """One evaluator on two texts of so many tokens (or of `n_text`), with two SAEs of each; `options` may depend on
    the tokens."""

    def measure(folder: Path, n: int) -> None:
        from sae_faithful import EvalContext, load_plugins
        from sae_faithful.evaluation import evaluate
        from sae_faithful.plan import plan_evaluators
        from sae_faithful.run_folder import RunFolder

        texts = {source: write_text(folder, source, n_text or n, seed) for seed, source in enumerate("ab")}
        handles = [random_sae(source, seed) for source in texts for seed in range(2)]
        context = EvalContext(
            handles=handles, held_out=texts, sources=list(texts), language_model=tiny_model(folder), seed=0
        )
        planned = plan_evaluators([{name: options(n)}], 0, load_plugins())
        evaluate(planned, context, RunFolder(folder / "run"), {}, 64)

    measure.__doc__ = f"`{name}` on two texts with two SAEs of each."
    return measure


def patching(folder: Path, n: int) -> None:
    """`ioi_patching` on random pairs of eight tokens that differ in one."""
    rng, path = np.random.default_rng(0), folder / "pairs.jsonl"
    lines: list[str] = []
    for base in rng.integers(4, VOCAB, size=(n // 16 + 8, 8)):
        target = base.copy()
        target[3] = 4 + (base[3] - 3) % (VOCAB - 4)
        lines.append(json.dumps({"base": _words(base), "target": _words(target)}))
    path.write_text("\n".join(lines))
    options = {"pairs": str(path), "n_pairs": n // 16, "component_tokens": 2_000, "candidates": 8}
    evaluator("ioi_patching", lambda _: options, n_text=20_000)(folder, n)


def probes(folder: Path, n: int) -> None:
    """`probing` on a table of random sentences of twenty words, of which the default budget is taken."""
    rng, path = np.random.default_rng(0), folder / "task.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write("text,label\n")
        for label in np.tile([0, 1], n // 40):
            # The second class likes the later words, so that there is something to read.
            low = 4 if label == 0 else VOCAB // 8
            file.write(f"{_words(rng.integers(low, VOCAB, size=20))},{label}\n")
    options = {"tasks": [{"table": {"path": str(path)}}], "sparse_k": [1, 4], "cs": [0.01]}
    evaluator("probing", lambda _: options, n_text=20_000)(folder, n)


def _words(tokens: np.ndarray) -> str:
    return " ".join(f"w{token}" for token in tokens)


def report(folder: Path, n: int) -> None:
    """Results in one file, features in one table and the report, of a run that trained and measured on so many."""
    from sae_faithful import load_plugins
    from sae_faithful.experiment import collect_results
    from sae_faithful.plan import make_plan
    from sae_faithful.report import write_report
    from sae_faithful.run_folder import RunFolder

    if not (folder / "run/report.md").exists():
        # The run itself is another process: only its report is judged.
        subprocess.run([sys.executable, __file__, "--run", str(folder), str(n)], check=True)
    model, config = tiny_model(folder), config_of(folder, **of_run(n))
    collect_results(make_plan(config, load_plugins(), model), config, model, RunFolder(folder / "run"))
    write_report(RunFolder(folder / "run"))


@dataclass(frozen=True)
class Case:
    """One step, and how many tokens are few for it."""

    measure: Callable[[Path, int], None]
    tokens: int
    note: str = ""


CASES = {
    "packing": Case(packing, 2_000_000),
    "generation": Case(generation, 2_000_000, "shards and repeats; the model's own time left out"),
    "typicality": Case(typicality, 500_000),
    "training": Case(training, 20_000),
    "baselines": Case(draw_for_baselines, 300_000, "20,000 activations of it"),
    "shared_features": Case(evaluator("shared_features", lambda _: {}), 60_000),
    "fake_features": Case(evaluator("fake_features", lambda n: {"n_tokens": n}), 40_000),
    "reconstruction": Case(evaluator("reconstruction", lambda n: {"ce_tokens": n // 4}), 40_000),
    "ood_score": Case(
        evaluator("ood_score", lambda n: {"n_tokens": n // 4, "n_unigrams": n // 2, "n_vectors": 1_000}),
        60_000,
        "1,000 vectors",
    ),
    "ood_score_long": Case(
        evaluator("ood_score", lambda _: {"n_vectors": 1_000}), 1_000_000, "`ood_score`, the text alone grows"
    ),
    "probing": Case(probes, 200_000, "the table; the default 2,000 examples of it"),
    "polysemanticity": Case(evaluator("polysemanticity", lambda n: {"n_tokens": n}), 60_000),
    "case_studies": Case(
        evaluator(
            "case_studies", lambda n: {"n_tokens": n, "features": [{"latent": 3}], "tree_candidates": 4}
        ),
        40_000,
    ),
    "autointerp": Case(
        evaluator("autointerp", lambda n: {"n_fragments": n // 80, "fragment_tokens": 16, "n_features": 10}),
        80_000,
        "look-up of tokens",
    ),
    "autointerp_long": Case(
        evaluator("autointerp", lambda _: {"n_fragments": 1_000, "fragment_tokens": 16, "n_features": 10}),
        2_000_000,
        "`autointerp`, the text alone grows",
    ),
    "top_contexts": Case(evaluator("top_contexts", lambda _: {}), 60_000),
    "ioi_patching": Case(patching, 3_200, "in pairs of 16 tokens"),
    "report": Case(report, 20_000, "of a whole run"),
}


# What they are measured on


def write_text(folder: Path, name: str, n_tokens: int, seed: int = 0) -> Any:
    """A text on disk, written block by block."""
    from sae_faithful.tokens import TokenSet

    path = folder / f"{name}.arrow"
    if not path.exists():
        documents = random_documents(n_tokens, seed)
        options: dict[str, Any] = {"n_tokens": n_tokens, "context_size": CONTEXT, "bos_token_id": 0}
        TokenSet.from_documents(documents, **options, path=path)
    return TokenSet.open(path)


def tiny_model(folder: Path) -> Any:
    """A random two-layer Llama with a tokenizer of words."""
    from sae_faithful import LanguageModel

    if not (folder / "model").exists():
        _write_model(folder / "model")
    return LanguageModel(
        name=str(folder / "model"), class_name="AutoModelForCausalLM", hooks=(HOOK,), hook_head_index=None,
        device="cpu", from_pretrained_kwargs={}, given=None,
    )  # fmt: skip


def _write_model(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=D_MODEL, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0,
        eos_token_id=1, pad_token_id=2, initializer_range=0.15,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {"<bos>": 0, "<eos>": 1, "<pad>": 2} | {f"w{i}": i for i in range(3, VOCAB)}
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)


def random_sae(source: str, seed: int) -> Any:
    """A TopK SAE that was not trained."""
    from sae_faithful import SAEHandle

    def load() -> Any:
        import torch
        from sae_lens import TopKSAE, TopKSAEConfig

        torch.manual_seed(seed)
        made = TopKSAE(TopKSAEConfig(d_in=D_MODEL, d_sae=256, k=8))
        with torch.no_grad():
            made.W_enc.copy_(torch.nn.functional.normalize(torch.randn_like(made.W_enc), dim=0))
            made.W_dec.copy_(made.W_enc.T)
        return made

    return SAEHandle(source=source, hook=HOOK, variant="topk", seed=seed, load=load)


def of_run(n: int) -> dict[str, Any]:
    """The run whose report is made."""
    return {
        "training_tokens": n,
        "sources": {"faithful": {"plugin": "self_generated", "n_tokens": n, "batch_size": 256}},
        "typicality_tokens": 2_000,
        "evaluators": ["shared_features", {"fake_features": {"n_tokens": n}}, "reconstruction"],
    }


def config_of(folder: Path, **changes: Any) -> Any:
    """A config that trains two small SAEs."""
    from sae_faithful import ExperimentConfig

    settings: dict[str, Any] = {
        "model_name": str(folder / "model"), "model_class_name": "AutoModelForCausalLM", "hook_name": HOOK,
        "context_size": CONTEXT, "training_tokens": 10_000, "train_batch_size_tokens": 512,
        "n_batches_in_buffer": 32, "store_batch_size_prompts": 16, "lr": 1e-3, "seed": 0,
        "sae": {"architecture": "topk", "d_in": D_MODEL, "d_sae": 256, "k": 8}, "sae_seeds": [0, 1],
        "logger": {"log_to_wandb": False}, "verbose": False, "output_path": str(folder / "run"),
        "sources": {"text": {"plugin": "self_generated"}},
    }  # fmt: skip
    tiny_model(folder)
    return ExperimentConfig.from_dict({**settings, **changes})


# Measuring


def memory(field: str) -> int:
    """Bytes, as the kernel counts them for this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def measured(case: Case, folder: Path, n: int) -> dict[str, float]:
    """Peaks of this process, and seconds of the step."""
    peak, done = 0, threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(INTERVAL):
            peak = max(peak, memory("RssAnon"))

    thread = threading.Thread(target=look)
    thread.start()
    begun = time.monotonic()
    try:
        case.measure(folder, n)
    finally:
        seconds = time.monotonic() - begun
        done.set()
        thread.join()
    return {"tokens": n, "seconds": seconds, "anonymous": peak, "all": memory("VmHWM")}


def in_a_process(name: str, n: int) -> dict[str, float]:
    """One case at one size, with a first call that pays for what is made once (texts, models, the run)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--case", name, folder, str(n)]
        environment = {**os.environ, "SAE_FAITHFUL_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": "1"}
        if CASES[name].measure is report:
            subprocess.run(command, check=True, env=environment, capture_output=True)
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name} at {n:,} tokens:\n{done.stderr[-3_000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def row(name: str, scale: int, tokens: int | None) -> dict[str, Any]:
    """One line of the table."""
    few, many = (in_a_process(name, (tokens or CASES[name].tokens) * factor) for factor in (1, scale))
    growth = (many["anonymous"] - few["anonymous"]) / (many["tokens"] - few["tokens"])
    return {
        "step": name,
        "few": few,
        "many": many,
        "ratio": many["anonymous"] / few["anonymous"],
        "bytes_per_token": growth,
        "ratio_of_seconds": many["seconds"] / few["seconds"],
        "note": CASES[name].note,
    }


def table(rows: list[dict[str, Any]], scale: int) -> Iterator[str]:
    """Markdown, as it stands in the docs."""
    yield f"| step | tokens | MB | MB at {scale}× | ratio | bytes a token | with mapped files | time at {scale}× |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in rows:
        few, many = one["few"], one["many"]
        yield (
            f"| `{one['step']}`{': ' + one['note'] if one['note'] else ''} | {few['tokens']:,} "
            f"| {few['anonymous'] / 1e6:,.0f} | {many['anonymous'] / 1e6:,.0f} | {one['ratio']:.2f} "
            f"| {one['bytes_per_token']:,.1f} | {many['all'] / few['all']:.2f} | {one['ratio_of_seconds']:.1f}× |"
        )


def say(*lines: str) -> None:
    """On the standard output, at once."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def main() -> int:
    """Print the table; 1 if a ratio is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), metavar="STEP")
    parser.add_argument("--scale", type=int, default=10)
    parser.add_argument("--tokens", type=int, help="the few; default: each step's own")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", nargs=3, metavar=("STEP", "FOLDER", "TOKENS"), help=argparse.SUPPRESS)
    parser.add_argument("--run", nargs=2, metavar=("FOLDER", "TOKENS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        name, folder, n = options.case
        say(json.dumps(measured(CASES[name], Path(folder), int(n))))
        return 0
    if options.run:
        from sae_faithful import run

        folder, n = Path(options.run[0]), int(options.run[1])
        run(config_of(folder, **of_run(n)), output=folder / "run")
        return 0
    rows: list[dict[str, Any]] = []
    for name in options.only:
        rows.append(row(name, options.scale, options.tokens))
        say(*list(table(rows[-1:], options.scale))[0 if len(rows) == 1 else 2 :])
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("sae-faithful", "torch", "sae-lens", "pyarrow")
    )
    say(f"\n{date.today()}, {versions}, Python {platform.python_version()}, {platform.machine()}")
    above = [one["step"] for one in rows if one["ratio"] > LIMIT]
    say(f"above {LIMIT}: {', '.join(above) or 'none'}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    return 1 if above else 0


if __name__ == "__main__":
    raise SystemExit(main())
