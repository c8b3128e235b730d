"""sae-faithful: train sparse autoencoders on text the model itself generates, and measure how faithful they are.

Importing this package imports neither torch nor SAELens; each name below loads what it needs on first use.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from sae_faithful.hookspecs import hookimpl

if TYPE_CHECKING:
    from sae_faithful.architectures import register_architectures
    from sae_faithful.config import ExperimentConfig
    from sae_faithful.detokenizer import Detokenizer, marked
    from sae_faithful.experiment import run, run_models
    from sae_faithful.hashing import derive_seed, hash_file, hash_settings
    from sae_faithful.http_client import HttpFailure, JsonClient, Manners
    from sae_faithful.interfaces import (
        ActivationBatch,
        Artifact,
        Baseline,
        Directions,
        EvalContext,
        EvalResult,
        Evaluator,
        FeatureTable,
        Observer,
        RunError,
        Source,
        Trial,
        UsageError,
        Work,
        own_texts,
    )
    from sae_faithful.language_model import LanguageModel
    from sae_faithful.packing import SeenDocuments
    from sae_faithful.progress import Progress
    from sae_faithful.registry import PluginManager, load_plugins
    from sae_faithful.report.figures import Figure, figures
    from sae_faithful.report.run_data import RunData, read_run
    from sae_faithful.run_folder import cache_dir
    from sae_faithful.runner import PluginTrainingRunner
    from sae_faithful.sae_handle import SAEHandle, name_of_sae
    from sae_faithful.several_models import models_in_file
    from sae_faithful.smaller_sae import keep_latents
    from sae_faithful.source_request import SourceRequest
    from sae_faithful.tokens import TokenSet, row_batches, special_token_mask
    from sae_faithful.wandb_names import logged_names
    from sae_faithful.wandb_run import WandbRun, open_wandb_run

__version__ = _version("sae-faithful")

_HOMES = {
    "ActivationBatch": "interfaces",
    "Artifact": "interfaces",
    "Baseline": "interfaces",
    "Detokenizer": "detokenizer",
    "Directions": "interfaces",
    "EvalContext": "interfaces",
    "EvalResult": "interfaces",
    "Evaluator": "interfaces",
    "ExperimentConfig": "config",
    "FeatureTable": "interfaces",
    "Figure": "report.figures",
    "HttpFailure": "http_client",
    "JsonClient": "http_client",
    "LanguageModel": "language_model",
    "Manners": "http_client",
    "Observer": "interfaces",
    "PluginManager": "registry",
    "PluginTrainingRunner": "runner",
    "Progress": "progress",
    "RunData": "report.run_data",
    "RunError": "interfaces",
    "SAEHandle": "sae_handle",
    "SeenDocuments": "packing",
    "Source": "interfaces",
    "SourceRequest": "source_request",
    "TokenSet": "tokens",
    "Trial": "interfaces",
    "UsageError": "interfaces",
    "WandbRun": "wandb_run",
    "Work": "interfaces",
    "cache_dir": "run_folder",
    "derive_seed": "hashing",
    "figures": "report.figures",
    "hash_file": "hashing",
    "hash_settings": "hashing",
    "keep_latents": "smaller_sae",
    "load_plugins": "registry",
    "logged_names": "wandb_names",
    "marked": "detokenizer",
    "models_in_file": "several_models",
    "name_of_sae": "sae_handle",
    "open_wandb_run": "wandb_run",
    "own_texts": "interfaces",
    "read_run": "report.run_data",
    "register_architectures": "architectures",
    "row_batches": "tokens",
    "run": "experiment",
    "run_models": "experiment",
    "special_token_mask": "tokens",
}

__all__ = [
    "ActivationBatch",
    "Artifact",
    "Baseline",
    "Detokenizer",
    "Directions",
    "EvalContext",
    "EvalResult",
    "Evaluator",
    "ExperimentConfig",
    "FeatureTable",
    "Figure",
    "HttpFailure",
    "JsonClient",
    "LanguageModel",
    "Manners",
    "Observer",
    "PluginManager",
    "PluginTrainingRunner",
    "Progress",
    "RunData",
    "RunError",
    "SAEHandle",
    "SeenDocuments",
    "Source",
    "SourceRequest",
    "TokenSet",
    "Trial",
    "UsageError",
    "WandbRun",
    "Work",
    "__version__",
    "cache_dir",
    "derive_seed",
    "figures",
    "hash_file",
    "hash_settings",
    "hookimpl",
    "keep_latents",
    "load_plugins",
    "logged_names",
    "marked",
    "models_in_file",
    "name_of_sae",
    "open_wandb_run",
    "own_texts",
    "read_run",
    "register_architectures",
    "row_batches",
    "run",
    "run_models",
    "special_token_mask",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sae_faithful' has no attribute '{name}'")
    return getattr(import_module(f"sae_faithful.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
