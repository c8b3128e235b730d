"""Sending a dataset to the Hugging Face hub, in the form that stock SAELens trains on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sae_faithful.data import TRAIN_FILE, open_text
from sae_faithful.interfaces import RunError, UsageError
from sae_faithful.model_source import tokenizer_on_hub
from sae_faithful.registry import unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sae_faithful.run_folder import RunFolder

TOKENIZATION_FILE = "sae_lens.json"
"""SAELens loads the tokenizer it names, to check that the dataset was tokenised for the model it is given to."""


def push_source(folder: RunFolder, repository: str, name: str | None = None) -> str:
    """Upload a source's rows as the splits `train` and `held_out`, with its card; returns the address.

    Raises:
        UsageError: the run folder has several sources and `name` is none of them.
        RunError: the hub cannot be reached or refuses.
    """
    from datasets import DatasetDict
    from huggingface_hub import HfApi

    sources = sorted(path.parent.name for path in (folder.root / "data").glob(f"*/{TRAIN_FILE}"))
    text = open_text(folder.data_dir(source_to_push(sources, name)))
    assert text.train is not None  # it was found by its training file
    splits = DatasetDict({"train": text.train.dataset, "held_out": text.held_out.dataset})
    config = json.loads(folder.config_file.read_text())
    files = {"README.md": _readme(text.card)}
    tokenizer = tokenizer_on_hub(config["model_name"], config["model_class_name"])
    if tokenizer is not None:
        files[TOKENIZATION_FILE] = json.dumps(_tokenization(config, tokenizer), indent=2)
    try:
        splits.push_to_hub(repository)
        for path, content in files.items():
            HfApi().upload_file(
                path_or_fileobj=content.encode(), path_in_repo=path, repo_id=repository, repo_type="dataset"
            )
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(f"cannot push to '{repository}': {reason}") from error
    return f"datasets/{repository}"


def source_to_push(sources: Sequence[str], name: str | None) -> str:
    """The source meant by `name`: that one, or the only one.

    Raises:
        UsageError: there are several, or none of that name.
    """
    if name is None and len(sources) == 1:
        return sources[0]
    if name is None:
        raise UsageError(f"which source is to be pushed? --source may be: {', '.join(sources) or 'none'}")
    if name not in sources:
        raise UsageError(unknown("source", name, sources, "--source may be"))
    return name


def _tokenization(config: dict[str, Any], tokenizer: str) -> dict[str, Any]:
    return {
        "tokenizer_name": tokenizer,
        "context_size": config["context_size"],
        "column_name": "input_ids",
    }


def _readme(card: dict[str, Any]) -> str:
    gap = card["typicality"]
    bounds = "" if gap["ci_low"] is None else f" (95 % interval {gap['ci_low']:.4f} to {gap['ci_high']:.4f})"
    return "\n".join(
        [
            f"# {card['name']}",
            "",
            f"Token ids for training sparse autoencoders on `{card['model']}`, made by sae-faithful "
            f"(source plugin `{card['plugin']}`). Rows of {card['context_size']} tokens; `document` says which "
            "document each token belongs to (-1: a BOS put in by packing).",
            "",
            f"Typicality gap: {gap['gap']:.4f} nats per token{bounds}, z = {gap['z']:.2f} over {gap['n_tokens']:,} "
            "tokens; zero in expectation exactly for text the model wrote itself.",
            "",
            "```json",
            json.dumps(card, indent=2),
            "```",
            "",
        ]
    )
