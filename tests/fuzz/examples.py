"""What is mutated: the files of a small real run, made once, and a few files that are written here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

WORDS = [f"w{i}" for i in range(4, 64)]


def make_examples(folder: Path) -> None:
    """`model/`, `run/` (a finished run of almost every evaluator) and a few inputs of evaluators, below `folder`."""
    make_model(folder / "model")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=10)) for _ in range(160)]
    rows = [{"text": text, "label": int("w9" in text)} for text in texts]
    _write_lines(folder / "texts.jsonl", rows)
    (folder / "texts.csv").write_text(
        "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows)
    )
    _write_lines(folder / "pairs.jsonl", [_pair(rng) for _ in range(8)])
    (folder / "config.json").write_text(json.dumps(config(folder)))
    from sae_faithful import ExperimentConfig, run

    run(ExperimentConfig.from_file(folder / "config.json"), output=folder / "run")
    # Fewer rows, so that a report of them is quick: what is read is the same.
    results = folder / "run" / "results.jsonl"
    lines = results.read_text().splitlines(keepends=True)
    results.write_text(
        "".join(
            line
            for i, line in enumerate(lines)
            if i % 12 == 0 or '"headline": true' in line or '"typicality"' in line
        )
    )


def config(folder: Path) -> dict[str, Any]:
    """A config of nearly everything that a config can say."""
    return {
        "model_name": str(folder / "model"),
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": "model.layers.0",
        "context_size": 16,
        "training_tokens": 1_024,
        "train_batch_size_tokens": 64,
        "n_batches_in_buffer": 16,
        "store_batch_size_prompts": 8,
        "lr": 1e-3,
        "seed": 7,
        "verbose": False,
        "typicality_tokens": 200,
        "n_checkpoints": 0,
        "sae": {"architecture": "topk", "d_in": 64, "d_sae": 48, "k": 8},
        "logger": {"log_to_wandb": False},
        "sources": {
            "faithful": {"plugin": "self_generated", "n_tokens": 1_200, "batch_size": 32},
            "words": {"plugin": "text_files", "path": str(folder / "texts.jsonl"), "column": "text"},
        },
        "datasets": {"table": {"plugin": "text_files", "path": str(folder / "texts.csv")}},
        "sae_seeds": [0, 1],
        "baselines": ["pca"],
        "baseline_tokens": 300,
        "monitors": [{"fake_features": {"n_tokens": 200}}],
        "monitor_tokens": 64,
        "evaluators": [
            "shared_features",
            {"fake_features": {"n_tokens": 200}},
            {"reconstruction": {"ce_tokens": 100}},
            "ood_score",
            {"top_contexts": {"n_latents": 4}},
            "polysemanticity",
            {
                "probing": {
                    "tasks": [{"mine": {"path": str(folder / "texts.csv")}}],
                    "sparse_k": [1],
                    "cs": [0.1],
                }
            },
            {
                "ioi_patching": {
                    "pairs": str(folder / "pairs.jsonl"),
                    "selection_pairs": 2,
                    "candidates": 4,
                    "comparisons": ["pca"],
                }
            },
            {"case_studies": {"features": [{"latent": 3}, {"latent": 5}]}},
            {"autointerp": {"n_features": 4, "fragment_tokens": 8}},
        ],
    }


def make_model(folder: Path) -> None:
    """A random Llama of two layers, with a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {"<bos>": 0, "<eos>": 1, "<pad>": 2, "user": 3} | {
        word: 4 + i for i, word in enumerate(WORDS)
    }
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
            initializer_range=0.15,
        )
    )
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)


def _pair(rng: np.random.Generator) -> dict[str, str]:
    one, two, three, end = (str(word) for word in rng.choice(WORDS, 4, replace=False))
    return {
        "base": f"{one} {two} {end}",
        "target": f"{one} {three} {end}",
        "answer": f" {two}",
        "distractor": f" {one}",
    }


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
