"""Stands in for sae-probes: its public calls, its cache and its files of results, without its probes.

A text's score is the sum of its k best latents, signed by their class; AUC is counted over all pairs of texts.
Accuracy and F1 are AUC less .1 and .2: only their places in the rows matter.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch

DATA = Path(__file__).parent / "data" / "cleaned_data"


def run_sae_evals(
    sae: Any,
    model_name: str,
    hook_name: str,
    reg_type: str,
    setting: str,
    ks: list[int],
    results_path: Path,
    model_cache_path: Path,
    datasets: list[str],
    device: str,
    seed: int,
) -> None:
    for dataset in datasets:
        activations, labels = read(model_cache_path, model_name, dataset, hook_name)
        latents = sae.encode(activations)
        gap = latents[labels == 1].mean(0) - latents[labels == 0].mean(0)
        best = gap.abs().argsort(descending=True, stable=True)
        rows = [
            scored((latents[:, best[:k]] * gap[best[:k]].sign()).sum(1), labels)
            | {"k": k, "dataset": dataset, "hook_name": hook_name, "reg_type": reg_type, "indices": best[:k].tolist()}
            for k in ks
        ]  # fmt: skip
        write(results_path / f"sae_probes_{model_name}/{setting}_setting/{dataset}_{reg_type}.json", rows)


def run_baseline_evals(
    model_name: str,
    hook_name: str,
    setting: str,
    method: str,
    results_path: Path,
    model_cache_path: Path,
    datasets: list[str],
    device: str,
    seed: int,
) -> None:
    for dataset in datasets:
        activations, labels = read(model_cache_path, model_name, dataset, hook_name)
        gap = activations[labels == 1].mean(0) - activations[labels == 0].mean(0)
        row = scored(activations @ gap, labels)
        row |= {"dataset": dataset, "hook_name": hook_name, "method": method, "num_train": 4}
        write(
            results_path / f"baseline_results_{model_name}/{setting}_setting/{dataset}_{method}.json", [row]
        )


def read(cache: Path, model_name: str, dataset: str, hook_name: str) -> tuple[torch.Tensor, torch.Tensor]:
    file = cache / f"model_activations_{model_name}" / f"{dataset}_{hook_name}.pt"
    if not file.exists():
        raise OSError(f"no model is called {model_name}")
    activations = torch.load(file, weights_only=True)
    labels = torch.tensor(pd.read_csv(DATA / f"{dataset}.csv.zst")["target"].to_numpy())
    if len(activations) != len(labels):
        raise IndexError(f"{len(activations)} activations of {len(labels)} texts")
    return activations, labels


def scored(scores: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    pairs = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    auc = float((pairs > 0).float().mean() + (pairs == 0).float().mean() / 2)
    return {"test_f1": auc - 0.2, "test_acc": auc - 0.1, "test_auc": auc, "val_auc": auc}


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows))
