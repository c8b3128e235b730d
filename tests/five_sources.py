"""A real run of five sources at different distances from the tiny model, three seeds each: under a minute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sae_faithful import ExperimentConfig, run
from tests.small_run import SMALL_RUN

if TYPE_CHECKING:
    from sae_faithful.run_folder import RunFolder

SOURCES = ("faithful", "warm", "hot", "words", "few_words")


def five_sources(model: str, output: str) -> RunFolder:
    """Its own text at temperatures 1, 1.5 and 3, uniform words, and sixteen words over and over; files lie here."""
    own = {"plugin": "self_generated", "n_tokens": 1_600, "batch_size": 64}
    rng = np.random.default_rng(0)
    for name, words in (("words", range(4, 64)), ("few_words", range(40, 56))):
        lines = [" ".join(f"w{word}" for word in rng.choice(words, size=10)) for _ in range(250)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    config = {
        **SMALL_RUN, "model_name": model, "training_tokens": 4_000, "sae_seeds": [0, 1, 2],
        "typicality_tokens": 800,
        "sources": {
            "faithful": own, "warm": {**own, "temperature": 1.5}, "hot": {**own, "temperature": 3.0},
            **{name: {"plugin": "text_files", "path": f"{name}.jsonl", "column": "text"}
               for name in ("words", "few_words")},
        },
        "evaluators": [
            "shared_features", {"fake_features": {"n_tokens": 2_000}}, {"reconstruction": {"ce_tokens": 200}},
            {"ood_score": {"n_tokens": 300}},
        ],
    }  # fmt: skip
    return run(ExperimentConfig.from_dict(config), output=output)
