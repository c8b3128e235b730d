"""Runs in the environment of sae-probes, executed by its path: nothing of this project is installed there.

    python worker.py describe|texts|score REQUEST ANSWER

REQUEST and ANSWER are JSON files. The exit status is 0 exactly when ANSWER has been written.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("sae-probes", "sae-lens", "scikit-learn", "torch")
MODEL = "model"
"""What sae-probes is told the model is called. All activations are in its cache, so that it loads none."""


def describe(request: Any) -> dict[str, Any]:
    """Versions of what is installed, and the benchmark's datasets. Importing sae-probes itself takes 20 s."""
    del request  # asks for nothing
    if importlib.util.find_spec("sae_probes") is None:
        return {"versions": {}, "datasets": []}
    import pandas as pd

    table: Any = pd.read_csv(_data() / "probing_datasets_MASTER.csv.zst")
    files = table[table["Data type"] == "Binary Classification"]["Dataset save name"]
    return {
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "datasets": [Path(file).stem for file in files],
    }


def texts(request: Any) -> dict[str, list[str]]:
    """All texts of each dataset, in the order of its labels."""
    import pandas as pd

    found: dict[str, list[str]] = {}
    for name in request["datasets"]:
        table: Any = pd.read_csv(_data() / "cleaned_data" / f"{name}.csv.zst", keep_default_na=False)
        found[name] = [str(text) for text in table["prompt"]]
    return found


def score(request: Any) -> list[dict[str, Any]]:
    """What sae-probes finds for every SAE and, as its baseline, for the activations of every hook."""
    import torch

    sae_probes: Any = importlib.import_module("sae_probes")
    SAE: Any = importlib.import_module("sae_lens").SAE
    torch.set_num_threads(request["threads"])
    common: dict[str, Any] = {
        "model_name": MODEL,
        "setting": request["setting"],
        "model_cache_path": Path(request["activations"]),
        "datasets": request["datasets"],
        "device": "cpu",
        "seed": request["seed"],
    }
    rows: list[dict[str, Any]] = []
    for i, (hook, folder) in enumerate(request["saes"]):
        results = Path(f"sae{i}")
        sae_probes.run_sae_evals(
            sae=SAE.load_from_disk(folder, device="cpu").eval(),
            hook_name=hook,
            reg_type=request["reg_type"],
            ks=request["ks"],
            results_path=results,
            **common,
        )
        rows += [{"sae": i, **row} for row in _results(results)]
    for i, hook in enumerate(dict.fromkeys(hook for hook, _ in request["saes"])):
        results = Path(f"baseline{i}")
        sae_probes.run_baseline_evals(hook_name=hook, method="logreg", results_path=results, **common)
        rows += _results(results)
    return rows


def _data() -> Path:
    spec = importlib.util.find_spec("sae_probes")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "data"


def _results(folder: Path) -> list[dict[str, Any]]:
    """Every row of the JSON files that sae-probes wrote: one file a dataset (and number of training texts)."""
    return [row for file in sorted(folder.rglob("*.json")) for row in json.loads(file.read_text("utf-8"))]


if __name__ == "__main__":
    action, request_file, answer_file = sys.argv[1:]
    answer = {"describe": describe, "texts": texts, "score": score}[action](
        json.loads(Path(request_file).read_text("utf-8"))
    )
    Path(answer_file).write_text(json.dumps(answer), "utf-8")
