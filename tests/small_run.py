"""A config of a few seconds with every kind of step, for tests that do the same run several times."""

from __future__ import annotations

from typing import Any

SMALL_RUN: dict[str, Any] = {
    "model_class_name": "AutoModelForCausalLM",
    "hook_name": "model.layers.0",
    "context_size": 16,
    "train_batch_size_tokens": 64,
    "n_batches_in_buffer": 16,
    "store_batch_size_prompts": 8,
    "lr": 1e-3,
    "seed": 7,
    "sae": {"architecture": "topk", "d_in": 64, "d_sae": 96, "k": 8},
    "logger": {"log_to_wandb": False},
    "verbose": False,
    "threads": 1,
    "sae_seeds": [0, 1],
}
"""For a model of 64 dimensions; how much of what is for the test to say."""
