"""Sending datasets and SAEs to the Hugging Face hub, in the forms that stock SAELens trains on and loads."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_faithful.data import TRAIN_FILE, open_text
from sae_faithful.interfaces import RunError, UsageError
from sae_faithful.model_source import tokenizer_on_hub
from sae_faithful.progress import draws_bars
from sae_faithful.registry import unknown
from sae_faithful.report.run_data import read_runs
from sae_faithful.report.sae_card import sae_card, stored_saes
from sae_faithful.stored import read_json, reading

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from sae_faithful.report.sae_card import StoredSAE
    from sae_faithful.run_folder import RunFolder

TOKENIZATION_FILE = "sae_lens.json"
"""SAELens loads the tokenizer it names, to check that the dataset was tokenised for the model it is given to."""

SAE_FILES = ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors")
"""What SAELens loads. Its uploader would also take `runner_cfg.json`, which names folders of this machine."""


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
    config = read_json(folder.config_file)
    files = {"README.md": _readme(text.card)}
    tokenizer = tokenizer_on_hub(
        config["model_name"], config["model_class_name"], config.get("model_from_pretrained_kwargs") or {}
    )
    if tokenizer is not None:
        files[TOKENIZATION_FILE] = json.dumps(_tokenization(config, tokenizer), indent=2)
    with _in_one_line(repository):
        splits.push_to_hub(repository)
        for path, content in files.items():
            HfApi().upload_file(
                path_or_fileobj=content.encode(), path_in_repo=path, repo_id=repository, repo_type="dataset"
            )
    return f"datasets/{repository}"


def push_saes(
    folder: RunFolder,
    repository: str,
    *,
    sources: Sequence[str] = (),
    hooks: Sequence[str] = (),
    variants: Sequence[str] = (),
    private: bool = False,
    licence: str | None = None,
) -> list[str]:
    """Upload the SAEs of a finished run by SAELens's own uploader, and their card; returns their names there.

    `SAE.from_pretrained(repository, name)` loads each. Baselines stay here: they are fitted again in seconds.

    Args:
        folder: of the run.
        repository: `USER/NAME`; made if it is not there.
        sources: only SAEs of these.
        hooks: only SAEs at these.
        variants: only these.
        private: whether the repository is to be private.
        licence: the hub's name of a licence; None states none.

    Raises:
        UsageError: no finished run, no such SAEs, or a name that no repository can have.
        RunError: nobody is logged in, the hub cannot be reached or refuses, or the repository is public
            where a private one was asked for.
    """
    _check_repository(repository)
    with reading(str(folder.root)):
        (run,) = read_runs([folder])
        saes = stored_saes(run, sources, hooks, variants)
        name = tokenizer_on_hub(run.manifest["model"].partition("@")[0], "AutoModelForCausalLM", {})
        base_model = name if name is not None and "/" in name else None
        card = sae_card(run, saes, repository, base_model=base_model, licence=licence)
    with _in_one_line(repository):
        _make_repository(repository, private)
        _upload(saes, card, repository)
    return [sae.name for sae in saes]


def _check_repository(repository: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UsageError(_first_line(error)) from error
    # SAELens takes a name without an owner for one of its releases.
    if "/" not in repository:
        raise UsageError(f"'{repository}' names no repository of the hub; give USER/NAME")


def _make_repository(repository: str, private: bool) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    api = HfApi()
    try:
        api.whoami()
    except LocalTokenNotFoundError:
        raise RunError(
            f"cannot push to '{repository}': nobody is logged in; run hf auth login, or set HF_TOKEN"
        ) from None
    # SAELens's uploader makes public ones only.
    api.create_repo(repository, private=private or None, exist_ok=True)
    if private and not api.repo_info(repository).private:
        raise RunError(f"cannot push to '{repository}': --private was given, and it is there and public")


def _upload(saes: Sequence[StoredSAE], card: str, repository: str) -> None:
    from huggingface_hub import HfApi
    from sae_lens import upload_saes_to_huggingface

    with tempfile.TemporaryDirectory() as root:
        staged: dict[str, Any] = {}
        for sae in saes:
            staged[sae.name] = Path(root) / sae.name
            staged[sae.name].mkdir(parents=True)
            for file in SAE_FILES:
                # A link in somebody's run folder would send another file of this machine.
                if (sae.folder / file).is_file() and not _leads_out(sae.folder / file):
                    (staged[sae.name] / file).symlink_to(sae.folder / file)
        upload_saes_to_huggingface(staged, repository, show_progress=draws_bars(), add_default_readme=False)
    # Last: it says that they are there.
    HfApi().upload_file(
        path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=repository, commit_message="Card"
    )


def _leads_out(file: Path) -> bool:
    return file.resolve().parent != file.parent.resolve()


@contextlib.contextmanager
def _in_one_line(repository: str) -> Generator[None]:
    """Whatever the hub, or the way to it, says is wrong."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    # The hub's refusals are OSErrors too; a connection that fails is an HTTPError alone.
    except (OSError, ValueError, HTTPError) as error:
        raise RunError(f"cannot push to '{repository}': {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
            *([f"**{card['warning']}.**", ""] if "warning" in card else []),
            "```json",
            json.dumps(card, indent=2),
            "```",
            "",
        ]
    )
